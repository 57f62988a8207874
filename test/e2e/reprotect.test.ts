/** After a failover the other host comes back, the survivor protects the VM again, and roles swap. */
import { describe, expect, test } from "bun:test";
import { GUEST_IPV4, type HostLetter } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { labUnderTest } from "./lab_under_test.ts";

describe("a pair that loses its primary again and again", () => {
  const lab = labUnderTest("reprotect");

  test("one connection goes on through two takeovers, each after a new protection", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 500_000 });
    using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 5 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    let primary: HostLetter = "a";
    for (let round = 0; round < 2; round++) {
      const survivor: HostLetter = primary === "a" ? "b" : "a";
      await lab().kill(primary, "both");
      await lab().waitFor(`${survivor} goes on alone`, (s) => s[survivor]?.phase === "alone", 30_000);
      const before = connection.last!.received;
      await connection.until("traffic", (report) => report.received > before + 100_000, 30_000);
      await lab().bringBack(primary);
      await lab().waitFor(`${survivor} protects it again`, (s) => s[survivor]?.protected === true, 60_000);
      const protectedAt = connection.last!.received;
      await connection.until("traffic", (report) => report.received > protectedAt + 500_000, 60_000);
      primary = survivor;
    }
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    expect((await disk.finish()).answers).toBeGreaterThan(50);
  });
});
