/**
 * What is needed to start a VM's QEMU: the user's own arguments, and the disks and network cards that the
 * agent protects.
 */
import { join } from "node:path";
import type { Disk } from "../storage/disk_graph.ts";

/** The primary has the VM; the secondary waits to become its replica. */
export type QemuRole = "primary" | "secondary";

export const NIC_MODELS = ["virtio-net-pci", "e1000", "rtl8139"] as const;

export interface ManagedNic {
  /** An existing tap. */
  tap: string;
  /** The same on both hosts. */
  mac: string;
  model: (typeof NIC_MODELS)[number];
  /** Pairs of queues of a virtio card. */
  queues: number;
  vhost: boolean;
}

export interface QemuSettings {
  /** The VM's name. */
  name: string;
  /** What starts qemu-system-x86_64, and what starts qemu-img. */
  command: readonly string[];
  imgCommand: readonly string[];
  /** The user's own, the same for both roles. */
  arguments: readonly string[];
  /** On top of the agent's own environment. */
  environment: Readonly<Record<string, string>>;
  /** Sockets, log, pid file. Created if missing. */
  directory: string;
  /** Where a secondary's overlays are made; of this VM alone. */
  overlayDirectory: string;
  /** Free space that they need, in bytes; 0: a minimum (images.ts). */
  overlayBytes: number;
  disks: readonly Disk[];
  nics: readonly ManagedNic[];
}

export interface QemuPaths {
  /** For the agent, and only for it: QEMU serves one client per socket. */
  qmp: string;
  /** QEMU's own output. */
  log: string;
  /** Written and locked by QEMU. */
  pidFile: string;
  /** Which process it is, written by the agent. */
  identity: string;
}

export function qemuPaths(directory: string): QemuPaths {
  return {
    qmp: join(directory, "qmp.sock"),
    log: join(directory, "qemu.log"),
    pidFile: join(directory, "qemu.pid"),
    identity: join(directory, "qemu.json"),
  };
}
