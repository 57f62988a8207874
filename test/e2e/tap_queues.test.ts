/**
 * A guest with two processors and a network card of two queues, both in use, and two workers that compare.
 */
import { describe, expect, test } from "bun:test";
import { GUEST_IPV4 } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { total } from "../metrics_text.ts";
import { labUnderTest } from "./lab_under_test.ts";

const CONNECTIONS = 4;

describe("a VM with two queues and two workers", () => {
  const lab = labUnderTest("plab", { queues: 2, vmConfig: "workers = 2" });

  test("every byte is right on several connections both ways, and after a takeover", async () => {
    const compared = async () =>
      total(await lab().metrics("a"), "colo_frames_released_total", 'reason="compared"');
    const before = await compared();
    // Those that are attached: QEMU takes a queue away that the guest does not use (drivers/net/tun.c).
    const queues = Bun.spawnSync([
      "ip",
      "netns",
      "exec",
      lab().host("a").netns,
      "ls",
      "/sys/class/net/tap0/queues",
    ]);
    expect(queues.stdout.toString().trim().split("\n").sort()).toEqual(["rx-0", "rx-1", "tx-0", "tx-1"]);
    const many = Array.from(
      { length: CONNECTIONS },
      (_, i) =>
        new LabTraffic(lab(), i % 2 === 0 ? "source" : "sink", { host: GUEST_IPV4, bytesPerSecond: 500_000 }),
    );
    try {
      for (const traffic of many) {
        await traffic.until("bytes", ({ received, sent }) => received + sent > 1_000_000, 60_000);
      }
      expect(await compared()).toBeGreaterThan(before);
      expect((await lab().agentStatus("a"))?.protected).toBe(true);
      await lab().kill("a", "both");
      await lab().waitFor("takeover", ({ b }) => b?.role === "primary", 60_000);
      const marks = many.map((traffic) => (traffic.last?.received ?? 0) + (traffic.last?.sent ?? 0));
      for (const [i, traffic] of many.entries()) {
        const wanted = (marks[i] ?? 0) + 500_000;
        await traffic.until("bytes", ({ received, sent }) => received + sent > wanted, 60_000);
      }
      for (const traffic of many) await traffic.finish(); // throws at a wrong byte
    } finally {
      for (const traffic of many) traffic[Symbol.dispose]();
    }
  });
});
