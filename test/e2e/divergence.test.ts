/** A guest whose two copies answer differently: checkpoints make them one, and traffic goes on. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { GUEST_IPV4, inNamespace } from "../../src/lab/network.ts";
import { checkpointCounts } from "../../src/lab/scenario.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { total } from "../metrics_text.ts";
import { labUnderTest } from "./lab_under_test.ts";

describe("a guest that answers with random bytes", () => {
  const lab = labUnderTest("diverge");

  test("the client sees one stream, checkpoints are counted, throughput is never zero", async () => {
    const before = await checkpointCounts(lab());
    const divergencesBefore = total(await lab().metrics("a"), "colo_divergences_total");
    // Each connection starts a chain of its own; the clock's page differs in every answer.
    const host = { host: GUEST_IPV4 };
    using stack = new DisposableStack();
    const traffic = [
      ...[0, 1, 2].map(() => new LabTraffic(lab(), "random", { ...host, pauseMs: 20 })),
      new LabTraffic(lab(), "clock", { ...host, pauseMs: 50 }),
    ].map((one) => stack.use(one));
    // That they get there at all is the point: a service that stands still runs into the limit.
    await Promise.all(traffic.map((one) => one.until("answers", (report) => report.answers >= 50, 100_000)));
    await Promise.all(traffic.map((one) => one.finish()));
    const after = await checkpointCounts(lab());
    expect(after.divergence! - before.divergence!).toBeGreaterThan(10);
    const text = await lab().metrics("a");
    expect(total(text, "colo_divergences_total") - divergencesBefore).toBeGreaterThan(10);
    expect(total(text, "colo_frames_released_total", 'reason="checkpoint"')).toBeGreaterThan(10);
    expect((await lab().agentStatus("a"))?.protected).toBe(true);
  });

  test("each divergence is kept and explained, with both packets", async () => {
    const api = (await lab().report()).hosts[0]!.api!;
    const main = join(import.meta.dir, "../../src/cli/main.ts");
    const cli = async (...words: string[]) => {
      const command = [
        ...inNamespace(lab().namespaces.client),
        process.execPath,
        main,
        ...words,
        "--api",
        api,
      ];
      const child = Bun.spawn(command, { stdout: "pipe", stderr: "inherit" });
      const said = await new Response(child.stdout).text();
      expect(await child.exited).toBe(0);
      return said;
    };
    const records = JSON.parse(await cli("divergences", "--json", "--limit", "50")) as {
      divergences: { id: number; class: string; action: string; checkpoint?: { pauseMs: number } }[];
    };
    const found = records.divergences.find(
      (record) => record.class === "payload" && record.checkpoint !== undefined,
    )!;
    expect(found.action).toMatch(/^checkpoint \d+$/);
    expect(found.checkpoint!.pauseMs).toBeGreaterThan(0);
    const explained = await cli("explain", String(found.id));
    expect(explained).toContain("passthrough");
    expect(explained).toContain("primary");
    const capture = join(lab().directory, "divergence.pcapng");
    await cli("explain", String(found.id), "--pcapng", capture);
    const dump = Bun.spawn(["tcpdump", "-nn", "-r", capture], { stdout: "pipe", stderr: "ignore" });
    expect((await new Response(dump.stdout).text()).trim().split("\n")).toHaveLength(2);
  });
});

describe("traffic that a rule lets pass", () => {
  const lab = labUnderTest("passthrough", { vmConfig: 'passthrough = ["tcp port 80"]' });

  test("is released at once and costs no checkpoint", async () => {
    using clock = new LabTraffic(lab(), "clock", { host: GUEST_IPV4, pauseMs: 10 });
    await clock.until("answers", (report) => report.answers >= 100, 60_000);
    await clock.finish();
    const text = await lab().metrics("a");
    expect(total(text, "colo_frames_released_total", 'reason="passthrough"')).toBeGreaterThanOrEqual(100);
    expect(total(text, "colo_divergences_total", 'class="payload"')).toBe(0);
  });
});
