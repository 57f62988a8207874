/** Metrics of frames, for each interface: what the workers and the BPF programs count. */
import { Counter, type Registry } from "prom-client";
import type { CounterName } from "../../ffi/layout.ts";
import type { NicReading } from "../../proxy/proxy.ts";
import type { Readings } from "./reading.ts";

/** Labels beside `vm` and `tap`, and the value. */
type Sample = readonly [Readonly<Record<string, string>>, number];

interface FrameCounter {
  name: string;
  help: string;
  labels?: readonly string[];
  read(nic: NicReading): readonly Sample[];
}

/** Why the BPF programs dropped what they count under a name; undefined: that counter is not of a drop. */
const DROP_REASON: Readonly<Record<CounterName, string | undefined>> = {
  held: undefined,
  hold_ring_full: "hold_ring_full",
  hold_failed: "hold_failed",
  passed_direct: undefined,
  passed_solo: undefined,
  passed_released: undefined,
  dropped_lease: "lease",
  dropped_blocked: "blocked",
  mirrored: undefined,
  // The frame has reached the primary VM; the loss is the secondary's and costs a checkpoint.
  mirror_failed: undefined,
  diverted: undefined,
  divert_failed: "input_ring_full",
  input_solo: undefined,
  input_blocked: "input_blocked",
  forwarded: undefined,
  forward_failed: "forward_failed",
  forward_suppressed: "forward_suppressed",
  collected: undefined,
  collect_ring_full: "collect_ring_full",
  collect_failed: "collect_failed",
  delivered: undefined,
  deliver_rejected: "deliver_rejected",
  foreign_dropped: "foreign",
  connection_full: undefined,
  replayed: undefined,
};

const FRAME_COUNTERS: readonly FrameCounter[] = [
  {
    name: "colo_frames_held_total",
    help: "Primary frames taken from the VM and held",
    read: ({ counters }) => [[{}, counters.held ?? 0]],
  },
  {
    name: "colo_frames_released_total",
    help: "Primary frames released, by reason",
    labels: ["reason"],
    read: ({ shared, counters }) => [
      [{ reason: "compared" }, shared.stat("released_compared")],
      [{ reason: "checkpoint" }, shared.stat("released_checkpoint")],
      [{ reason: "alone" }, shared.stat("released_alone") + shared.stat("released_late")],
      [{ reason: "passthrough" }, shared.stat("released_passthrough")],
      [{ reason: "address_resolution" }, shared.stat("released_bypass")],
      [{ reason: "direct" }, counters.passed_direct ?? 0],
      [{ reason: "solo" }, counters.passed_solo ?? 0],
    ],
  },
  {
    name: "colo_frame_parts_total",
    help: "Verified beginnings of held TCP segments that were sent before the rest",
    read: ({ shared }) => [[{}, shared.stat("parts_sent")]],
  },
  {
    name: "colo_frames_sent_in_parts_total",
    help: "Released TCP segments that had been sent completely in parts",
    read: ({ shared }) => [[{}, shared.stat("sent_in_parts")]],
  },
  {
    name: "colo_frames_joined_total",
    help: "Released TCP segments that left in one large frame with the segment before them",
    read: ({ shared }) => [[{}, shared.stat("joined_frames")]],
  },
  {
    name: "colo_frames_live_total",
    help: "Released frames that left in runs of live frames and not through the packet socket",
    read: ({ shared }) => [[{}, shared.stat("live_frames")]],
  },
  {
    name: "colo_windows_clamped_total",
    help: "Released TCP frames with the window reduced to the secondary's",
    read: ({ shared }) => [[{}, shared.stat("windows_clamped")]],
  },
  {
    name: "colo_frames_dropped_total",
    help: "Frames dropped, by reason",
    labels: ["reason"],
    read: ({ shared, counters }) => [
      ...Object.entries(DROP_REASON).flatMap(([counter, reason]): Sample[] =>
        reason === undefined ? [] : [[{ reason }, counters[counter] ?? 0]],
      ),
      [{ reason: "send_failed" }, shared.stat("send_failed")],
      [{ reason: "secondary_stale" }, shared.stat("secondary_stale")],
    ],
  },
  {
    name: "colo_bpf_frames_total",
    help: "Frames counted by the BPF programs, by action",
    labels: ["action"],
    read: ({ counters }) => Object.entries(counters).map(([action, value]) => [{ action }, value]),
  },
];

export function addFrameMetrics(registry: Registry, readings: Readings): void {
  for (const { name, help, labels = [], read } of FRAME_COUNTERS) {
    new Counter({
      name,
      help,
      labelNames: ["vm", "tap", ...labels],
      registers: [registry],
      collect() {
        this.reset();
        for (const [vm, { nics }] of readings.vms()) {
          for (const nic of nics) {
            for (const [extra, value] of read(nic)) this.inc({ vm, tap: nic.tap, ...extra }, value);
          }
        }
      },
    });
  }
}
