/** Metrics of a VM's protection: its state, its replica, its failovers. */
import { Counter, Gauge, Histogram, type Registry } from "prom-client";
import { PHASES } from "../../failover/state.ts";
import { type Readings, stat, type VmReading } from "./reading.ts";

const FAILOVER_BUCKETS_SECONDS = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30];
const ROLES = ["primary", "secondary", "none"] as const;

/** Name, help, value; without a value the VM has no sample. */
const GAUGES: readonly [string, string, (vm: VmReading) => number | undefined][] = [
  [
    "colo_vm_protected",
    "1 while another host could take the VM over",
    (vm) => (vm.phase === "protected" ? 1 : 0),
  ],
  ["colo_vm_epoch", "Number of the epoch, which grows with each checkpoint", (vm) => vm.epoch],
  [
    "colo_heartbeat_age_seconds",
    "Time since the last heartbeat of the VM's other host",
    ({ heartbeatAgeMs }) => (heartbeatAgeMs === undefined ? undefined : heartbeatAgeMs / 1000),
  ],
  [
    "colo_resync_copied_bytes",
    "Sent so far of the disks that are being copied",
    (vm) => vm.resync?.copiedBytes,
  ],
  ["colo_resync_total_bytes", "To be sent of the disks that are being copied", (vm) => vm.resync?.totalBytes],
  ["colo_overlay_bytes", "Size of the replica's overlays on this host", (vm) => vm.overlayBytes],
  ["colo_frames_held", "Primary frames that wait for their counterpart now", (vm) => stat(vm, "held_frames")],
  [
    "colo_secondary_frames_pending",
    "Secondary frames that wait for their counterpart now",
    (vm) => stat(vm, "secondary_pending_frames"),
  ],
  ["colo_flows", "Flows in the comparer's table", (vm) => stat(vm, "flows")],
];

export class ProtectionMetrics {
  readonly #failovers: Counter<"vm" | "survivor">;
  readonly #failoverSeconds: Histogram<"vm">;

  constructor(registry: Registry, readings: Readings) {
    const registers = [registry];
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
    for (const [name, help, read] of GAUGES) {
      new Gauge({
        name,
        help,
        labelNames: ["vm"],
        registers,
        collect() {
          this.reset();
          for (const [vm, reading] of readings.vms()) {
            const value = read(reading);
            if (value !== undefined) this.set({ vm }, value);
          }
        },
      });
    }
    new Gauge({
      name: "colo_vm_role",
      help: "1 for the role that this agent has for the VM",
      labelNames: ["vm", "role"],
      registers,
      collect() {
        this.reset();
        for (const [vm, { phase }] of readings.vms()) {
          for (const role of ROLES) this.set({ vm, role }, role === PHASES[phase].role ? 1 : 0);
        }
      },
    });
  }

  failedOver(vm: string, survivor: "primary" | "secondary", seconds: number): void {
    this.#failovers.inc({ vm, survivor });
    this.#failoverSeconds.observe({ vm }, seconds);
  }
}
