/**
 * Mixed traffic with checkpoints: every frame is accounted for and the agent's memory does not grow.
 * COLO_SOAK_SECONDS=600 is the long form; the default is short enough for every run.
 */
import { describe, expect, test } from "bun:test";
import { promtool } from "../../src/lab/assets.ts";
import { GUEST_IPV4, GUEST_IPV6, inNamespace } from "../../src/lab/network.ts";
import type { ClientKind, ClientOptions } from "../../src/lab/traffic/contract.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { total } from "../metrics_text.ts";
import { lasting, until } from "../until.ts";
import { count } from "../variables.ts";
import { labUnderTest } from "./lab_under_test.ts";

const SECONDS = count("COLO_SOAK_SECONDS");

const MIX: [ClientKind, Partial<ClientOptions>][] = [
  ["http", { pauseMs: 5 }],
  ["http", { host: GUEST_IPV6, pauseMs: 20 }],
  ["source", { bytesPerSecond: 4_000_000 }],
  ["sink", { bytesPerSecond: 4_000_000 }],
  ["duplex", { host: GUEST_IPV6, bytesPerSecond: 500_000 }],
  ["udp", { pauseMs: 10 }],
  ["random", { pauseMs: 50 }],
  ["clock", { pauseMs: 500 }],
  ["disk", { pauseMs: 20 }],
];

describe(`${SECONDS} s of mixed traffic`, () => {
  const lab = labUnderTest("soak", { vmConfig: "checkpoint = { period_ms = 2000 }" });

  test(
    "counters add up, drops are counted, memory does not grow",
    async () => {
      const ping = Bun.spawn(
        [
          ...inNamespace(lab().namespaces.client),
          "ping",
          "-q",
          "-i",
          "0.05",
          "-w",
          String(SECONDS),
          GUEST_IPV4,
        ],
        { stdout: "pipe" },
      );
      using stack = new DisposableStack();
      const traffic = MIX.map(([kind, options]) =>
        stack.use(new LabTraffic(lab(), kind, { host: GUEST_IPV4, seconds: SECONDS, ...options })),
      );
      // The first third warms up: code is compiled, buffers reach their size.
      await lasting((SECONDS * 1000) / 3);
      const early = await lab().metrics("a");
      const reports = await Promise.all(traffic.map((one) => one.ended()));
      for (const report of reports) expect(report.answers + report.received).toBeGreaterThan(20);
      const pinged = /(\d+) packets transmitted, (\d+) received/.exec(await new Response(ping.stdout).text());
      expect(Number(pinged![2])).toBeGreaterThan(0.95 * Number(pinged![1]));
      const udp = reports.find((report) => report.kind === "udp")!;
      expect(udp.lost).toBeLessThan(udp.answers / 20);

      // What is still held comes out with the next checkpoint.
      const late = await until(
        "nothing is held",
        async () => {
          const text = await lab().metrics("a");
          return total(text, "colo_frames_held") === 0 && text;
        },
        { pollMs: 100 },
      );
      const released = (reason: string) => total(late, "colo_frames_released_total", `reason="${reason}"`);
      const dropped = (reason: string) => total(late, "colo_frames_dropped_total", `reason="${reason}"`);
      const held = total(late, "colo_frames_held_total");
      expect(held).toBeGreaterThan(1_000);
      expect(released("compared") + released("checkpoint") + total(late, "colo_frames_held")).toBe(held);
      expect(total(late, "colo_bpf_frames_total", 'action="passed_released"')).toBe(
        released("compared") +
          released("checkpoint") +
          total(late, "colo_frame_parts_total") -
          total(late, "colo_frames_sent_in_parts_total") -
          total(late, "colo_frames_joined_total") -
          dropped("send_failed") -
          dropped("lease"),
      );
      for (const reason of ["hold_ring_full", "hold_failed", "lease", "input_ring_full", "send_failed"]) {
        expect(dropped(reason)).toBe(0);
      }
      expect(total(late, "colo_checkpoints_total")).toBeGreaterThan(SECONDS / 4);

      // Between the hosts nothing is lost without being counted either.
      let counts: Record<string, number | undefined> = {};
      const haveArrived = async () => {
        const [a, b] = await Promise.all([lab().agentStatus("a"), lab().agentStatus("b")]);
        const { mirrored, collected, collect_ring_full: full, collect_failed: failed } = a!.counters;
        const { delivered, forwarded } = b!.counters;
        counts = { mirrored, delivered, forwarded, taken: collected! + full! + failed! };
        return counts.delivered === counts.mirrored && counts.taken === counts.forwarded;
      };
      await until("all frames between the hosts have arrived", haveArrived, {
        pollMs: 100,
        seen: () => counts,
      });

      const memory = (text: string) => total(text, "colo_agent_resident_memory_bytes");
      expect(memory(late)).toBeLessThan(memory(early) * 1.15 + 16e6);
      expect((await lab().agentStatus("a"))?.protected).toBe(true);
    },
    (SECONDS + 120) * 1000,
  );

  test("promtool finds nothing to complain about on either side", async () => {
    for (const letter of ["a", "b"] as const) {
      const child = Bun.spawn([promtool(), "check", "metrics"], {
        stdin: new Blob([await lab().metrics(letter)]),
        stdout: "pipe",
        stderr: "pipe",
      });
      const said = (await new Response(child.stdout).text()) + (await new Response(child.stderr).text());
      expect(said).toBe("");
      expect(await child.exited).toBe(0);
    }
  });

  test("the metrics have role, protection, epoch, causes, histograms and heartbeat", async () => {
    const [a, b] = await Promise.all([lab().metrics("a"), lab().metrics("b")]);
    expect(total(a, "colo_vm_protected")).toBe(1);
    expect(total(a, "colo_vm_role", 'role="primary"')).toBe(1);
    expect(total(b, "colo_vm_role", 'role="secondary"')).toBe(1);
    expect(total(a, "colo_vm_epoch")).toBe(total(b, "colo_vm_epoch"));
    expect(total(a, "colo_hold_seconds_count")).toBe(
      total(a, "colo_frames_released_total", 'reason="compared"') +
        total(a, "colo_frames_released_total", 'reason="checkpoint"'),
    );
    expect(total(a, "colo_checkpoint_pause_seconds_count")).toBe(total(a, "colo_checkpoints_total"));
    for (const text of [a, b]) expect(total(text, "colo_heartbeat_age_seconds")).toBeLessThan(1);
  });
});
