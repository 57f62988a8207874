/**
 * The loss of a host, or of its QEMU, on either side: one connection, every byte, every acknowledged block.
 */
import { describe, expect, test } from "bun:test";
import { LOSSES, type LossName, runLoss } from "../../src/lab/scenario.ts";
import { labUnderTest } from "./lab_under_test.ts";

const quiet = { step: () => undefined, detail: () => undefined };

for (const loss of Object.keys(LOSSES) as LossName[]) {
  describe(LOSSES[loss].title, () => {
    const lab = labUnderTest("failover");

    test(
      "one connection goes on, with every byte right, and every acknowledged block is on the survivor's " +
        "disk",
      async () => {
        const result = await runLoss(lab(), loss, quiet);
        expect(result.survivor).toBe(LOSSES[loss].host === "a" ? "b" : "a");
        expect(result.connection).toMatchObject({ wrongBytes: 0, reconnects: 0 });
        expect(result.connection.bytesReceived).toBe(result.connection.bytesSent);
        expect(result.connection.bytesReceived).toBeGreaterThan(1_000_000);
        expect(result.disk.acknowledgedBlocks).toBeGreaterThan(20);
        expect(result.disk.verifiedBlocks).toBe(result.disk.acknowledgedBlocks);
        expect(result.randomAnswers).toBeGreaterThan(5);
        const status = await lab().agentStatus(result.survivor);
        expect(status?.role).toBe("primary");
      },
    );

    test("a new connection works with the survivor", async () => {
      const { LabTraffic } = await import("../../src/lab/traffic.ts");
      const { GUEST_IPV4, GUEST_IPV6 } = await import("../../src/lab/network.ts");
      for (const host of [GUEST_IPV4, GUEST_IPV6]) {
        const report = await new LabTraffic(lab(), "http", { host, seconds: 1, pauseMs: 10 }).ended();
        expect(report.answers).toBeGreaterThan(5);
      }
    });
  });
}
