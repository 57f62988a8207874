/**
 * QEMU's own TLS between the hosts: a pair that loses its primary, protects itself again with swapped roles
 * and loses the other.
 */

import { describe, expect, test } from "bun:test";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { GUEST_IPV4, type HostLetter, inNamespace } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { endProcess, startDetached } from "../../src/qemu/process.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { labUnderTest } from "./lab_under_test.ts";

describe("a pair with TLS", () => {
  const lab = labUnderTest("tls", { tls: true });

  /** The side of QEMU's credentials on a host, undefined without any. */
  async function endpoint(letter: HostLetter): Promise<string | undefined> {
    const qmp = await QmpClient.connect(lab().host(letter).qmp);
    try {
      const objects = await qmp.execute<{ name: string }[]>("qom-list", { path: "/objects" });
      if (!objects.some(({ name }) => name === "colo-tls")) return undefined;
      return await qmp.execute("qom-get", { path: "/objects/colo-tls", property: "endpoint" });
    } finally {
      qmp.close();
    }
  }

  test("one connection goes on through both losses", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 500_000 });
    using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 5 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    let [primary, survivor]: HostLetter[] = ["a", "b"];
    for (let round = 0; round < 2; round++) {
      expect([await endpoint(primary!), await endpoint(survivor!)]).toEqual(["client", "server"]);
      await lab().kill(primary!, "both");
      const name = survivor!;
      await lab().waitFor(`${name} goes on alone`, (s) => s[name]?.phase === "alone", 30_000);
      const before = connection.last!.received;
      await connection.until("traffic", (report) => report.received > before + 100_000, 30_000);
      expect(await endpoint(name)).toBeUndefined();
      if (round === 0) {
        await lab().bringBack(primary!);
        await lab().waitFor(`${name} protects it again`, (s) => s[name]?.protected === true, 60_000);
        const protectedAt = connection.last!.received;
        await connection.until("traffic", (report) => report.received > protectedAt + 500_000, 60_000);
      }
      [primary, survivor] = [survivor, primary];
    }
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    expect((await disk.finish()).answers).toBeGreaterThan(50);
  }, 240_000);

  test("a peer without TLS: the VM runs alone and says why, until both have it", async () => {
    // Host b is down since the last loss.
    const { directory, netns } = lab().host("b");
    const config = join(directory, "no-tls.toml");
    const text = readFileSync(join(directory, "agent.toml"), "utf8");
    writeFileSync(config, text.replace(/\[tls\]\ndirectory = .*\n/, ""));
    expect(readFileSync(config, "utf8")).not.toContain("[tls]");
    const main = join(import.meta.dir, "../../src/cli/main.ts");
    const agent = startDetached(
      [...inNamespace(netns), process.execPath, main, "run", "--config", config],
      join(directory, "agent.log"),
    );
    try {
      const log = join(lab().host("a").directory, "agent.log");
      const said = () => readFileSync(log, "utf8").includes("write [tls] on both hosts or on neither");
      await lab().waitFor(
        "a says why it is not protected",
        ({ a }) => a?.phase === "alone" && said(),
        60_000,
      );
      expect(await endpoint("a")).toBeUndefined();
    } finally {
      await endProcess(agent);
    }
    await lab().bringBack("b");
    await lab().waitFor("the VM is protected", ({ a }) => a?.protected === true, 60_000);
    expect([await endpoint("a"), await endpoint("b")]).toEqual(["client", "server"]);
  }, 180_000);
});
