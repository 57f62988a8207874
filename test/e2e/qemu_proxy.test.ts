/**
 * A pair with QEMU's own packet proxy: it survives the loss of either host with its connection, and is
 * protected again.
 */
import { describe, expect, test } from "bun:test";
import { otherHost } from "../../src/lab/faults.ts";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, type HostLetter, inNamespace } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { run } from "../bpf/network.ts";
import { total } from "../metrics_text.ts";
import { until } from "../until.ts";
import { labUnderTest } from "./lab_under_test.ts";

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

const OFTEN = { vmConfig: `${VM_CONFIG.vmConfig}\n[vm.checkpoint]\nperiod_ms = 1000` };

async function checkpoints(lab: Lab, letter: HostLetter): Promise<number> {
  return total(await lab.metrics(letter), "colo_checkpoints_total");
}

for (const lost of ["a", "b"] as const) {
  const survivor = otherHost(lost);
  describe(`the ${lost === "a" ? "primary" : "secondary"} host of a pair with QEMU's proxy is lost`, () => {
    const lab = labUnderTest("qemuproxy", OFTEN);

    test("the connection goes on, there and back, and QEMU has no more in it than before", async () => {
      expect(await made(lab(), "a")).toEqual(PRIMARY_PARTS);
      expect(await made(lab(), "b")).toEqual(SECONDARY_PARTS);
      using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
      await connection.until("traffic", (report) => report.received > 100_000, 30_000);
      const before = await checkpoints(lab(), "a");
      await until("two checkpoints are made", async () => (await checkpoints(lab(), "a")) >= before + 2);

      await lab().kill(lost, "both");
      await lab().waitFor("the survivor goes on alone", (s) => s[survivor]?.phase === "alone", 30_000);
      const alone = connection.last!.received;
      await connection.until("traffic", (report) => report.received > alone + 200_000, 30_000);
      const rewriter = lost === "a" ? [REWRITER] : [];
      expect(await made(lab(), survivor)).toEqual(rewriter);

      await lab().bringBack(lost);
      await lab().waitFor("it is protected again", (s) => s[survivor]?.protected === true, 60_000);
      expect(await made(lab(), survivor)).toEqual([...PRIMARY_PARTS, ...rewriter].sort());
      expect(await made(lab(), lost)).toEqual(SECONDARY_PARTS);
      const protectedAt = connection.last!.received;
      await connection.until("traffic", (report) => report.received > protectedAt + 200_000, 60_000);

      await lab().kill(survivor, "both");
      await lab().waitFor("the other one goes on alone", (s) => s[lost]?.phase === "alone", 30_000);
      const back = connection.last!.received;
      await connection.until("traffic", (report) => report.received > back + 200_000, 30_000);
      const ended = await connection.finish();
      expect(ended.received).toBe(ended.sent);
    });
  });
}

describe("a connection that no checkpoint had seen when QEMU's proxy took over", () => {
  const lab = labUnderTest("qemuproxy", {
    vmConfig: `${VM_CONFIG.vmConfig}\n[vm.checkpoint]\nperiod_ms = 5000`,
  });

  test("goes on with rewritten numbers, also when the VM is protected again", async () => {
    // With its first connection a Linux guest draws the secret of its timestamps (net/core/secure_seq.c),
    // each VM its own, and QEMU rewrites no timestamps: only a checkpoint after that gives both the same.
    await new LabTraffic(lab(), "http", { host: GUEST_IPV4, seconds: 1, pauseMs: 10 }).ended();
    const first = await checkpoints(lab(), "a");
    await until("a checkpoint is made", async () => (await checkpoints(lab(), "a")) > first);
    const before = await checkpoints(lab(), "a");
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    expect(await checkpoints(lab(), "a")).toBe(before); // or it is not the case that is meant
    await lab().kill("a", "both");
    await lab().waitFor("the survivor goes on alone", ({ b }) => b?.phase === "alone", 30_000);
    const alone = connection.last!.received;
    await connection.until("traffic", (report) => report.received > alone + 100_000, 30_000);
    await lab().bringBack("a");
    await lab().waitFor("it is protected again", ({ b }) => b?.protected === true, 60_000);
    const protectedAt = connection.last!.received;
    await connection.until("traffic", (report) => report.received > protectedAt + 400_000, 30_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
  });
});

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

  test("the replica's host has no lease, and its bridge reaches the replica not at all", async () => {
    const table = run(...inNamespace(lab().namespaces.b), "nft", "list", "ruleset");
    expect(table.match(/policy drop/g)).toHaveLength(2);
    expect(table).not.toContain("elements");
    expect(run(...inNamespace(lab().namespaces.a), "nft", "list", "ruleset")).toContain("expires");
  });

  test("an agent that dies and comes back lets go of what QEMU holds", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    await lab().kill("a", "agent");
    lab().startAgent("a");
    await lab().waitFor("a runs it alone again", ({ a }) => a?.phase === "alone", 30_000);
    const alone = connection.last!.received;
    await connection.until("traffic", (report) => report.received > alone + 200_000, 30_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    expect(await made(lab(), "a")).toEqual([]);
  });
});
