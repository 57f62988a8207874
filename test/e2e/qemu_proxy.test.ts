/** A pair with QEMU's own packet proxy: it survives the loss of either host with its connection, and is protected again. */
import { describe, expect, test } from "bun:test";
import { otherHost } from "../../src/lab/faults.ts";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, type HostLetter, inNamespace } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { run } from "../bpf/network.ts";
import { labUnderTest, total } from "./lab_under_test.ts";

const VM_CONFIG = { vmConfig: 'proxy = "qemu"' };

/** Names of a QEMU's objects and chardevs that the agent may have made. */
async function made(lab: Lab, letter: HostLetter): Promise<string[]> {
  const qmp = await QmpClient.connect(lab.host(letter).qmp!);
  try {
    const objects = await qmp.execute<{ name: string }[]>("qom-list", { path: "/objects" });
    const chardevs = await qmp.execute<{ label: string }[]>("query-chardev");
    return [...objects.map(({ name }) => name), ...chardevs.map(({ label }) => label)]
      .filter((name) => name.startsWith("colo-"))
      .sort();
  } finally {
    qmp.close();
  }
}

const PRIMARY_PARTS = [
  ...["colo-capture-0", "colo-captured-0", "colo-captured-in-0", "colo-compare-0", "colo-compare-thread"],
  ...["colo-forwarded-0", "colo-mirror-0", "colo-mirrored-0", "colo-notices-0"],
  ...["colo-release-0", "colo-released-0", "colo-released-out-0"],
].sort();
const REWRITER = "colo-rewriter-0";
const SECONDARY_PARTS = [
  ...["colo-follow-0", "colo-forward-0", "colo-input-0", "colo-output-0", REWRITER],
].sort();

for (const lost of ["a", "b"] as const) {
  const survivor = otherHost(lost);
  describe(`the ${lost === "a" ? "primary" : "secondary"} host of a pair with QEMU's proxy is lost`, () => {
    const lab = labUnderTest("qemuproxy", VM_CONFIG);

    test("the connection goes on, the VM is protected again, and QEMU has no more in it than before", async () => {
      expect(await made(lab(), "a")).toEqual(PRIMARY_PARTS);
      expect(await made(lab(), "b")).toEqual(SECONDARY_PARTS);
      using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
      await connection.until("traffic", (report) => report.received > 300_000, 30_000);

      await lab().kill(lost, "both");
      await lab().waitFor("the survivor goes on alone", (s) => s[survivor]?.phase === "alone", 30_000);
      const alone = connection.last!.received;
      await connection.until("traffic", (report) => report.received > alone + 200_000, 30_000);
      const rewriter = lost === "a" ? [REWRITER] : [];
      expect(await made(lab(), survivor)).toEqual(rewriter);

      await lab().bringBack(lost, VM_CONFIG);
      await lab().waitFor("it is protected again", (s) => s[survivor]?.protected === true, 60_000);
      expect(await made(lab(), survivor)).toEqual([...PRIMARY_PARTS, ...rewriter].sort());
      const protectedAt = connection.last!.received;
      await connection.until("traffic", (report) => report.received > protectedAt + 300_000, 60_000);

      // And back: the connection is one that the survivor may already be rewriting.
      await lab().kill(survivor, "both");
      await lab().waitFor("the other one goes on alone", (s) => s[lost]?.phase === "alone", 30_000);
      const back = connection.last!.received;
      await connection.until("traffic", (report) => report.received > back + 200_000, 30_000);
      const ended = await connection.finish();
      expect(ended.received).toBe(ended.sent);
    });
  });
}

describe("a pair with QEMU's proxy", () => {
  const lab = labUnderTest("qemuproxy", VM_CONFIG);

  test("a divergence costs a checkpoint and nothing else", async () => {
    const before = total(await lab().metrics("a"), "colo_checkpoints_total", 'cause="divergence"');
    using random = new LabTraffic(lab(), "random", { host: GUEST_IPV4, pauseMs: 20 });
    await random.until("answers", (report) => report.answers > 20, 60_000);
    await random.finish();
    expect(total(await lab().metrics("a"), "colo_checkpoints_total", 'cause="divergence"')).toBeGreaterThan(
      before,
    );
  });

  test("nothing of the replica gets to the network when the primary's QEMU is cut off from it", async () => {
    const { table } = { table: run(...inNamespace(lab().namespaces.b), "nft", "list", "ruleset") };
    expect(table).toContain("policy drop");
    expect(table).not.toContain("expires"); // no lease
  });

  test("an agent that dies and comes back lets go of what QEMU holds", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    await lab().kill("a", "agent");
    lab().startAgent("a", VM_CONFIG);
    await lab().waitFor("a runs it alone again", ({ a }) => a?.phase === "alone", 30_000);
    const alone = connection.last!.received;
    await connection.until("traffic", (report) => report.received > alone + 200_000, 30_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    expect(await made(lab(), "a")).toEqual([]);
  });
});
