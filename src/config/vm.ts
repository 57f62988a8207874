/** [[vm]]: a protected VM. */
import { availableParallelism } from "node:os";
import { z } from "zod";
import { identifier } from "../failover/vm_record.ts";
import { WORKERS_MAX } from "../ffi/layout.ts";
import { disks } from "./disk.ts";
import { nic } from "./nic.ts";
import { qemuConfig } from "./qemu.ts";
import { absolutePath, interfaceName, milliseconds, percent, port } from "./values.ts";

/** What holds and compares a VM's packets: the agent's own proxy on BPF, or QEMU's. */
export const PROXY_KINDS = ["ebpf", "qemu"] as const;
export type ProxyKind = (typeof PROXY_KINDS)[number];

const checkpoint = z.strictObject({
  /** Longest time between two checkpoints, in milliseconds. */
  period_ms: milliseconds(100, 3_600_000).default(20_000),
  /** Longest time a frame waits for its counterpart before a checkpoint is made. */
  max_wait_ms: milliseconds(10, 60_000).default(250),
  /** Pause between the end of one checkpoint and the next for the same reason: keeps a VM that always diverges running. */
  min_interval_ms: milliseconds(0, 60_000).default(20),
  /** Longest time given to the taps to be read empty before a checkpoint. */
  input_drain_ms: milliseconds(0, 1_000).default(20),
  /** From the request to the VM's STOP event. */
  stop_timeout_ms: milliseconds(100, 600_000).default(1_500),
  /** From STOP to the report that the secondary has loaded the state. */
  load_timeout_ms: milliseconds(100, 600_000).default(30_000),
});

/**
 * Comparing and releasing keeps up with 10 Gbit/s on one core (docs/performance.md), and the VM, its QEMU and the
 * kernel want cores too.
 */
function defaultWorkers(cores: number): number {
  if (cores < 4) return 1;
  return cores < 8 ? 2 : 4;
}

const overlay = z
  .strictObject({
    /** With [vm.qemu]: where overlays are made, best in a RAM disk; a folder with the VM's name is made in it. */
    directory: absolutePath.optional(),
    /** Overlays of all disks may take so much; 0: what the file system has. */
    size_bytes: z.number().int().min(0).max(1e15).default(0),
    /** Of that: a checkpoint is made, which empties them. */
    checkpoint_percent: percent.default(50),
    /** Of that, after a checkpoint: the replica is given up, and the VM runs alone. */
    give_up_percent: percent.default(80),
  })
  .refine((one) => one.checkpoint_percent <= one.give_up_percent, {
    message: "checkpoint_percent is above give_up_percent; a checkpoint is to be tried first",
  });

const resync = z.strictObject({
  /** Of the copies of all disks together; 0: no limit. `colo-agent tune` changes it while they run. */
  bytes_per_second: z.number().int().min(0).max(1_000_000_000_000).default(0),
});

/** Of each worker. Passing one of them costs a checkpoint; nothing is dropped. */
const limits = z.strictObject({
  held_frames_max: z.number().int().min(16).max(1_048_576).default(65_536),
  held_frames_per_flow_max: z.number().int().min(16).max(1_048_576).default(16_384),
  flows_max: z.number().int().min(16).max(1_048_576).default(65_536),
});

export const vm = z.strictObject({
  name: identifier,
  /** What holds and compares the VM's packets. */
  proxy: z.enum(PROXY_KINDS).default("ebpf"),
  nic: z.array(nic).min(1, "needs at least one [[vm.nic]]").max(8, "has more than 8 network interfaces"),
  /** The QMP socket of a QEMU that somebody else starts. */
  qmp: absolutePath.optional(),
  /** A QEMU that the agent starts itself. */
  qemu: qemuConfig.optional(),
  /** Who holds the VM when no record of it exists yet. */
  initial_role: z.enum(["primary", "secondary"]),
  /** TCP port where the secondary's QEMU waits for the migration stream. */
  migrate_port: port.default(7410),
  /** NBD server of the secondary's QEMU, on the replication network. */
  nbd_port: port.default(7420),
  /** None: a VM without a disk to replicate. */
  disk: disks,
  /** Threads that each interface's output is shared among. */
  workers: z.number().int().min(1).max(WORKERS_MAX).default(defaultWorkers(availableParallelism())),
  /** Each of a worker's two packet rings of an interface: what is held and what waits for comparison has to fit. */
  ring_bytes: z
    .number()
    .int()
    .min(64 << 10)
    .max(1 << 30)
    .refine((bytes) => (bytes & (bytes - 1)) === 0, "must be a power of two")
    .default(64 << 20),
  /** TCP connections over one interface of a secondary, or of a VM that took over, that are rewritten at a time. */
  connections_max: z.number().int().min(64).max(4_000_000).default(65_536),
  /** The interface to the VM's clients; without a carrier there the VM is handed over to a host that has one. */
  uplink: interfaceName.optional(),
  /** For so long QEMU may leave a question open before it counts as hung, in milliseconds. */
  qemu_timeout_ms: milliseconds(100, 600_000).default(1_000),
  /** Traffic that is released at once and not compared, one rule a line (src/compare/rules.ts). */
  passthrough: z.array(z.string()).default([]),
  /** Byte ranges of UDP payloads that are not compared, one rule a line. */
  ignore: z.array(z.string()).default([]),
  limits: limits.default(() => limits.parse({})),
  checkpoint: checkpoint.default(() => checkpoint.parse({})),
  resync: resync.default(() => resync.parse({})),
  overlay: overlay.default(() => overlay.parse({})),
});
