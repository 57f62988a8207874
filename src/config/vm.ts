/** [[vm]]: a protected VM. */
import { availableParallelism } from "node:os";
import { z } from "zod";
import { identifier } from "../failover/vm_record.ts";
import { WORKERS_MAX } from "../ffi/layout.ts";
import { disks } from "./disk.ts";
import { nic } from "./nic.ts";
import { qemuConfig } from "./qemu.ts";
import { absolutePath, interfaceName, milliseconds, NAME, percent, port } from "./values.ts";

/** What holds and compares a VM's packets: the agent's own proxy on BPF, or QEMU's. */
export const PROXY_KINDS = ["ebpf", "qemu"] as const;
export type ProxyKind = (typeof PROXY_KINDS)[number];

const checkpoint = z
  .strictObject({
    period_ms: milliseconds(100, 3_600_000)
      .default(20_000)
      .describe("Longest time between two checkpoints. `colo-agent tune` changes it."),
    max_wait_ms: milliseconds(10, 60_000)
      .default(250)
      .describe("Longest wait of a frame for its counterpart. Then a checkpoint is made."),
    min_interval_ms: milliseconds(0, 60_000)
      .default(20)
      .describe("Shortest pause between two checkpoints. It keeps a VM running that always diverges."),
    input_drain_ms: milliseconds(0, 1_000)
      .default(20)
      .describe("Longest wait for the taps to be read empty before a checkpoint."),
    stop_timeout_ms: milliseconds(100, 600_000)
      .default(1_500)
      .describe("Limit from the request to the VM's STOP. Beyond it the replica counts as lost."),
    load_timeout_ms: milliseconds(100, 600_000)
      .default(30_000)
      .describe('Limit from STOP to the secondary\'s "loaded". Beyond it the replica counts as lost.'),
  })
  .describe("Checkpoints of the VM.");

/**
 * Comparing and releasing keeps up with 10 Gbit/s on one core (docs/performance.md), and the VM, its QEMU and
 * the kernel want cores too.
 */
function defaultWorkers(cores: number): number {
  if (cores < 4) return 1;
  return cores < 8 ? 2 : 4;
}

const overlay = z
  .strictObject({
    directory: absolutePath.optional().meta({
      description: "With `[vm.qemu]`: parent directory of the overlays' folder, best in a RAM disk.",
      otherwise: "`vm.qemu.directory`",
    }),
    size_bytes: z
      .number()
      .int()
      .min(0)
      .max(1e15)
      .default(0)
      .describe(
        "Limit for all overlays together. It must be free before a replica starts. 0: only the file " +
          "system limits them.",
      ),
    checkpoint_percent: percent
      .default(50)
      .describe("A checkpoint, which empties the overlays, is made above this part of the limit."),
    give_up_percent: percent
      .default(80)
      .describe("The replica is given up above this part of the limit, if a checkpoint did not help."),
  })
  .refine((one) => one.checkpoint_percent <= one.give_up_percent, {
    message: "checkpoint_percent is above give_up_percent; a checkpoint is to be tried first",
  })
  .describe("Overlays of a replica ([storage.md](storage.md#overlays)).");

const resync = z
  .strictObject({
    bytes_per_second: z
      .number()
      .int()
      .min(0)
      .max(1_000_000_000_000)
      .default(0)
      .describe("Limit of the copy of all disks to a replica. 0: no limit. `colo-agent tune` changes it."),
  })
  .describe("The copy of the disks to a replica ([storage.md](storage.md#resync)).");

const limit = z.number().int().min(16).max(1_048_576);
const limits = z
  .strictObject({
    held_frames_max: limit.default(65_536).describe("Held frames of the primary."),
    held_frames_per_flow_max: limit.default(16_384).describe("Held frames of one flow."),
    flows_max: limit.default(65_536).describe("Flows in the comparer's table."),
  })
  .describe("Limits of each worker. A limit that is reached costs a checkpoint. No frame is dropped.");

export const vm = z
  .strictObject({
    name: identifier.meta({
      description: "Name of the VM, unique among all pairs of an arbiter.",
      kind: NAME,
    }),
    proxy: z
      .enum(PROXY_KINDS)
      .default("ebpf")
      .describe("The packet proxy, the same on both hosts ([proxies.md](proxies.md))."),
    nic: z.array(nic).min(1, "needs at least one [[vm.nic]]").max(8, "has more than 8 network interfaces"),
    qmp: absolutePath.optional().meta({
      description: "A QMP socket for the agent alone, of a QEMU that another program starts.",
      otherwise: "required without `[vm.qemu]`",
    }),
    qemu: qemuConfig.optional(),
    initial_role: z
      .enum(["primary", "secondary"])
      .describe("Role of this host while the arbiter has no record of the VM."),
    migrate_port: port
      .default(7410)
      .describe(
        "TCP port of the secondary's QEMU for the migration, on the replication link. Unique per VM.",
      ),
    nbd_port: port
      .default(7420)
      .describe("TCP port of the secondary's NBD server, on the replication link. Unique per VM with disks."),
    disk: disks,
    workers: z.number().int().min(1).max(WORKERS_MAX).default(defaultWorkers(availableParallelism())).meta({
      description:
        "Threads that share the flows of an interface. A change takes effect at the host's next boot.",
      otherwise: "1 below 4 cores, 2 below 8, else 4",
    }),
    ring_bytes: z
      .number()
      .int()
      .min(64 << 10)
      .max(1 << 30)
      .refine((bytes) => (bytes & (bytes - 1)) === 0, "must be a power of two")
      .default(64 << 20)
      .describe(
        "Size of each of a worker's two packet rings, a power of two. A full ring costs a checkpoint. A " +
          "change takes effect at the host's next boot.",
      ),
    connections_max: z
      .number()
      .int()
      .min(64)
      .max(4_000_000)
      .default(65_536)
      .describe("TCP connections of one interface that are rewritten at the same time."),
    uplink: interfaceName.optional().meta({
      description: "Interface to the clients. A primary without a carrier there hands the VM over.",
      otherwise: "not watched",
    }),
    qemu_timeout_ms: milliseconds(100, 600_000)
      .default(1_000)
      .describe("Longest answer time of QEMU. Beyond it QEMU counts as hung."),
    passthrough: z
      .array(z.string())
      .default([])
      .describe(
        "Traffic that is released at once and not compared: `[tcp|udp|icmp|icmpv6|sctp|any|N] " +
          "[ADDRESS[/PREFIX]] [port N[-M]]`.",
      ),
    ignore: z
      .array(z.string())
      .default([])
      .describe(
        "UDP payload bytes that are not compared: `udp [ADDRESS[/PREFIX]] port N[-M] bytes A-B[,C-D]`.",
      ),
    limits: limits.default(() => limits.parse({})),
    checkpoint: checkpoint.default(() => checkpoint.parse({})),
    resync: resync.default(() => resync.parse({})),
    overlay: overlay.default(() => overlay.parse({})),
  })
  .describe("One table for each protected VM.");
