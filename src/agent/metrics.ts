/** Prometheus metrics of one agent (prom-client). docs/metrics.md lists them for readers. */
import { Counter, Gauge, Histogram, Registry } from "prom-client";
import { HOLD_BUCKETS_SECONDS, type StatName } from "../datapath/shared.ts";
import { PHASES, type Phase } from "../failover/state.ts";
import type { NicReading } from "../proxy/proxy.ts";
import type { ResyncReading } from "../storage/resync_progress.ts";
import type { CheckpointReport } from "./checkpoint.ts";

const PAUSE_BUCKETS_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];
const FAILOVER_BUCKETS_SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30];
const ROLES = ["primary", "secondary", "none"] as const;

/** What is read at the time of a scrape, for one VM. */
export interface VmReading {
  phase: Phase;
  epoch: number;
  heartbeatAgeMs: number | undefined;
  resync: ResyncReading | undefined;
  overlayBytes: number | undefined;
  nics: readonly NicReading[];
}

/** The worker's number, over all interfaces. */
function stat({ nics }: VmReading, name: StatName): number {
  return nics.reduce((sum, { shared }) => sum + shared.stat(name), 0);
}

/** The counters and histograms of one VM that the control plane writes itself. */
export interface VmMetrics {
  divergences: { inc(labels: { class: string }): void };
  failovers: { inc(labels: { survivor: "primary" | "secondary" }): void };
  failoverSeconds: { observe(seconds: number): void };
  observeCheckpoint(report: CheckpointReport): void;
}

/** BPF counters by what they mean for a frame of the VM: [name, label reason]. */
const DROPPED_BY_REASON: [string, string][] = [
  ["hold_ring_full", "hold_ring_full"],
  ["hold_failed", "hold_failed"],
  ["dropped_lease", "lease"],
  ["dropped_blocked", "blocked"],
  ["divert_failed", "input_ring_full"],
  ["input_blocked", "input_blocked"],
  ["forward_failed", "forward_failed"],
  ["forward_suppressed", "forward_suppressed"],
  ["collect_ring_full", "collect_ring_full"],
  ["collect_failed", "collect_failed"],
  ["deliver_rejected", "deliver_rejected"],
  ["foreign_dropped", "foreign"],
];

export class AgentMetrics {
  readonly registry = new Registry();
  readonly #vms = new Map<string, () => VmReading>();
  readonly #checkpoints: Counter<"vm" | "cause">;
  readonly #pause: Histogram<"vm">;
  readonly #total: Histogram<"vm">;
  readonly #drainIncomplete: Counter<"vm">;
  readonly #divergences: Counter<"vm" | "class">;
  readonly #failovers: Counter<"vm" | "survivor">;
  readonly #failoverSeconds: Histogram<"vm">;

  constructor(version: string) {
    const registers = [this.registry];
    const build = new Gauge({
      name: "colo_agent_build_info",
      help: "Version of the agent; always 1",
      labelNames: ["version"],
      registers,
    });
    build.set({ version }, 1);
    new Gauge({
      name: "colo_agent_resident_memory_bytes",
      help: "Resident memory of the agent's process",
      registers,
      collect() {
        this.set(process.memoryUsage.rss());
      },
    });
    this.#checkpoints = new Counter({
      name: "colo_checkpoints_total",
      help: "Checkpoints completed, by what asked for them",
      labelNames: ["vm", "cause"],
      registers,
    });
    this.#pause = new Histogram({
      name: "colo_checkpoint_pause_seconds",
      help: "Time the primary VM stood still in a checkpoint, STOP to RESUME",
      labelNames: ["vm"],
      buckets: PAUSE_BUCKETS_SECONDS,
      registers,
    });
    this.#total = new Histogram({
      name: "colo_checkpoint_duration_seconds",
      help: "Time from the decision to make a checkpoint until diverted input is back",
      labelNames: ["vm"],
      buckets: PAUSE_BUCKETS_SECONDS,
      registers,
    });
    this.#drainIncomplete = new Counter({
      name: "colo_checkpoint_input_not_drained_total",
      help: "Checkpoints made before both taps had been read empty",
      labelNames: ["vm"],
      registers,
    });
    this.#divergences = new Counter({
      name: "colo_divergences_total",
      help: "Differences between the outputs of primary and secondary, by class",
      labelNames: ["vm", "class"],
      registers,
    });
    this.#failovers = new Counter({
      name: "colo_failovers_total",
      help: "Failovers completed by this agent, by the role it had before",
      labelNames: ["vm", "survivor"],
      registers,
    });
    this.#failoverSeconds = new Histogram({
      name: "colo_failover_seconds",
      help: "Time from the detection of a loss until this host's VM runs alone",
      labelNames: ["vm"],
      buckets: FAILOVER_BUCKETS_SECONDS,
      registers,
    });
    this.#addReadings(registers);
    this.registry.registerMetric(new HoldHistogram(this.#vms) as unknown as Histogram);
  }

  /** Adds a VM; `read` is called at each scrape. */
  vm(name: string, read: () => VmReading): VmMetrics {
    this.#vms.set(name, read);
    for (const cause of ["prime", "periodic", "divergence", "missing", "overflow", "requested"]) {
      this.#checkpoints.inc({ vm: name, cause }, 0);
    }
    return {
      divergences: { inc: (labels) => this.#divergences.inc({ vm: name, ...labels }) },
      failovers: { inc: (labels) => this.#failovers.inc({ vm: name, ...labels }) },
      failoverSeconds: { observe: (seconds) => this.#failoverSeconds.observe({ vm: name }, seconds) },
      observeCheckpoint: (report) => {
        this.#checkpoints.inc({ vm: name, cause: report.cause });
        this.#pause.observe({ vm: name }, report.pauseMs / 1000);
        this.#total.observe({ vm: name }, report.totalMs / 1000);
        if (!report.inputDrained) this.#drainIncomplete.inc({ vm: name });
      },
    };
  }

  /** A VM without a QEMU has nothing to be read; its counters stay. */
  forget(name: string): void {
    this.#vms.delete(name);
  }

  /** The text of a scrape (Prometheus exposition format 0.0.4). */
  text(): Promise<string> {
    return this.registry.metrics();
  }

  #addReadings(registers: Registry[]): void {
    const vms = this.#vms;
    const gauge = (name: string, help: string, read: (vm: VmReading) => number | undefined) =>
      new Gauge({
        name,
        help,
        labelNames: ["vm"],
        registers,
        collect() {
          this.reset();
          for (const [vm, reading] of vms) {
            const value = read(reading());
            if (value !== undefined) this.set({ vm }, value);
          }
        },
      });
    gauge("colo_vm_protected", "1 while another host could take the VM over", (vm) =>
      vm.phase === "protected" ? 1 : 0,
    );
    gauge("colo_vm_epoch", "Number of the epoch, which grows with each checkpoint", (vm) => vm.epoch);
    gauge("colo_heartbeat_age_seconds", "Time since the last heartbeat of the VM's other host", (vm) =>
      vm.heartbeatAgeMs === undefined ? undefined : vm.heartbeatAgeMs / 1000,
    );
    gauge(
      "colo_resync_copied_bytes",
      "Sent so far of the disks that are being copied",
      (vm) => vm.resync?.copiedBytes,
    );
    gauge(
      "colo_resync_total_bytes",
      "What is to be sent of the disks that are being copied",
      (vm) => vm.resync?.totalBytes,
    );
    gauge("colo_overlay_bytes", "What the replica's overlays take on this host", (vm) => vm.overlayBytes);
    gauge("colo_frames_held", "Primary frames that wait for their counterpart now", (vm) =>
      stat(vm, "held_frames"),
    );
    gauge("colo_secondary_frames_pending", "Secondary frames that wait for their counterpart now", (vm) =>
      stat(vm, "secondary_pending_frames"),
    );
    gauge("colo_flows", "Flows in the comparer's table", (vm) => stat(vm, "flows"));
    new Gauge({
      name: "colo_vm_role",
      help: "1 for the role that this agent has for the VM",
      labelNames: ["vm", "role"],
      registers,
      collect() {
        this.reset();
        for (const [vm, reading] of vms) {
          const current = PHASES[reading().phase].role;
          for (const role of ROLES) this.set({ vm, role }, role === current ? 1 : 0);
        }
      },
    });
    this.#addCounter("colo_frames_held_total", "Primary frames taken from the VM and held", [], (nic) => [
      [{}, nic.counters.held ?? 0],
    ]);
    this.#addCounter(
      "colo_frames_released_total",
      "Primary frames released, by what allowed it",
      ["reason"],
      ({ shared, counters }) => [
        [{ reason: "compared" }, shared.stat("released_compared")],
        [{ reason: "checkpoint" }, shared.stat("released_checkpoint")],
        [{ reason: "alone" }, shared.stat("released_alone") + shared.stat("released_late")],
        [{ reason: "passthrough" }, shared.stat("released_passthrough")],
        [{ reason: "address_resolution" }, shared.stat("released_bypass")],
        [{ reason: "direct" }, counters.passed_direct ?? 0],
        [{ reason: "solo" }, counters.passed_solo ?? 0],
      ],
    );
    this.#addCounter(
      "colo_frame_parts_total",
      "Verified beginnings of held TCP segments that were sent before the rest",
      [],
      ({ shared }) => [[{}, shared.stat("parts_sent")]],
    );
    this.#addCounter(
      "colo_frames_sent_in_parts_total",
      "Released TCP segments of which everything had been sent in parts before",
      [],
      ({ shared }) => [[{}, shared.stat("sent_in_parts")]],
    );
    this.#addCounter(
      "colo_frames_joined_total",
      "Released TCP segments that left as part of one large frame with the segment before them",
      [],
      ({ shared }) => [[{}, shared.stat("joined_frames")]],
    );
    this.#addCounter(
      "colo_frames_live_total",
      "Released frames that left many at a time, in runs of live frames instead of through the packet socket",
      [],
      ({ shared }) => [[{}, shared.stat("live_frames")]],
    );
    this.#addCounter(
      "colo_windows_clamped_total",
      "Released TCP frames whose window was made as small as the secondary's",
      [],
      ({ shared }) => [[{}, shared.stat("windows_clamped")]],
    );
    this.#addCounter(
      "colo_frames_dropped_total",
      "Frames dropped, by reason",
      ["reason"],
      ({ shared, counters }) => [
        ...DROPPED_BY_REASON.map(([name, reason]): [Record<string, string>, number] => [
          { reason },
          counters[name] ?? 0,
        ]),
        [{ reason: "send_failed" }, shared.stat("send_failed")],
        [{ reason: "secondary_stale" }, shared.stat("secondary_stale")],
      ],
    );
    this.#addCounter(
      "colo_bpf_frames_total",
      "Frames seen by the BPF programs, by what was done",
      ["action"],
      ({ counters }) => Object.entries(counters).map(([action, value]) => [{ action }, value]),
    );
  }

  /** A counter of frames, of each interface, whose values are kept elsewhere and only read here. */
  #addCounter(
    name: string,
    help: string,
    labels: string[],
    read: (nic: NicReading) => [Record<string, string>, number][],
  ): void {
    const vms = this.#vms;
    new Counter({
      name,
      help,
      labelNames: ["vm", "tap", ...labels],
      registers: [this.registry],
      collect() {
        this.reset();
        for (const [vm, reading] of vms) {
          for (const nic of reading().nics) {
            for (const [extra, value] of read(nic)) this.inc({ vm, tap: nic.tap, ...extra }, value);
          }
        }
      },
    });
  }
}

/** prom-client histograms cannot be filled from buckets kept elsewhere; this has the shape that the registry reads. */
class HoldHistogram {
  readonly name = "colo_hold_seconds";
  readonly help = "Time a primary frame was held before it was released";
  readonly type = "histogram";
  readonly aggregator = "sum";

  constructor(private readonly vms: ReadonlyMap<string, () => VmReading>) {}

  get() {
    const values: { labels: Record<string, string | number>; value: number; metricName: string }[] = [];
    for (const [vm, reading] of this.vms) {
      for (const { tap, shared } of reading().nics) {
        const labels = { vm, tap };
        let cumulated = 0;
        shared.holdBuckets().forEach((frames, index) => {
          cumulated += frames;
          const le = HOLD_BUCKETS_SECONDS[index] ?? "+Inf";
          values.push({ labels: { ...labels, le }, value: cumulated, metricName: `${this.name}_bucket` });
        });
        values.push({ labels, value: shared.stat("hold_seconds_sum"), metricName: `${this.name}_sum` });
        values.push({ labels, value: cumulated, metricName: `${this.name}_count` });
      }
    }
    return Promise.resolve({
      name: this.name,
      help: this.help,
      type: this.type,
      values,
      aggregator: this.aggregator,
    });
  }

  reset(): void {}
}
