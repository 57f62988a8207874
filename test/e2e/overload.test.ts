/**
 * A VM that sends faster than the ring takes: what is dropped is counted, a checkpoint follows, TCP recovers.
 */
import { describe, expect, test } from "bun:test";
import { GUEST_IPV4 } from "../../src/lab/network.ts";
import { checkpointCounts } from "../../src/lab/scenario.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { total } from "../metrics_text.ts";
import { labUnderTest } from "./lab_under_test.ts";

describe("a ring far too small", () => {
  const lab = labUnderTest("overload", { vmConfig: "ring_bytes = 65536" });

  test("loses nothing silently", async () => {
    using bulk = new LabTraffic(lab(), "source", { host: GUEST_IPV4, bytesPerSecond: 50_000_000 });
    await bulk.until("bytes", (report) => report.received > 5_000_000, 100_000);
    await bulk.finish(); // throws at a wrong byte
    const text = await lab().metrics("a");
    const full =
      total(text, "colo_frames_dropped_total", 'reason="hold_ring_full"') +
      total(text, "colo_frames_dropped_total", 'reason="collect_ring_full"');
    expect(full).toBeGreaterThan(0);
    expect((await checkpointCounts(lab())).overflow).toBeGreaterThan(0);
    expect((await lab().agentStatus("a"))?.protected).toBe(true);
  });
});
