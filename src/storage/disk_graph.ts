/**
 * The disks of a VM on QEMU's command line. For each, from the device down (the node's names are in {@link
 * Disk} and {@link secondaryNodes}), as docs of QEMU's block replication lay it out:
 *
 *   primary    device ─ quorum ─ base (the image)
 *                          └── (added by the agent) replication, primary ─ NBD client
 *   secondary  device ─ quorum ─ replication, secondary ─ active overlay ─ hidden overlay ─ base (the image)
 *
 * The secondary exports its base over NBD. After it has taken over, the active overlay is committed into the
 * base, so the VM's disk is the image in both roles.
 */
import { join } from "node:path";

/** Models of disks that are known to work, by the name in the configuration. */
export const DISK_DEVICES = ["virtio-blk", "scsi-hd", "ide-hd"] as const;
export type DiskDevice = (typeof DISK_DEVICES)[number];

export const DISK_FORMATS = ["raw", "qcow2"] as const;
export type DiskFormat = (typeof DISK_FORMATS)[number];

export interface Disk {
  /** Unique in its VM, the same on both hosts; also the device's id. */
  name: string;
  /**
   * The image; on the secondary it is overwritten with the primary's. All lengths have to be a multiple of 64
   * KiB.
   */
  path: string;
  format: DiskFormat;
  device: DiskDevice;
  quorumNode: string;
  baseNode: string;
}

/** Nodes that only a secondary has. */
export function secondaryNodes({ name }: Pick<Disk, "name">): {
  replication: string;
  active: string;
  hidden: string;
} {
  return { replication: `${name}-secondary`, active: `${name}-active`, hidden: `${name}-hidden` };
}

/** Files of a secondary's overlays, made for each of its instances. */
export function overlayPaths(
  directory: string,
  { name }: Pick<Disk, "name">,
): { active: string; hidden: string } {
  return { active: join(directory, `${name}-active.qcow2`), hidden: join(directory, `${name}-hidden.qcow2`) };
}

/**
 * The -blockdev and -device arguments of all disks; see the graph above. The VM boots from the first. Machine
 * type pc, where IDE is used.
 */
export function diskArguments(
  role: "primary" | "secondary",
  disks: readonly Disk[],
  overlayDirectory: string,
): string[] {
  const blockdevs = disks.flatMap((disk) => blockNodesOf(role, disk, overlayDirectory));
  const controllers = disks.some((disk) => disk.device === "scsi-hd") ? ["virtio-scsi-pci,id=scsi0"] : [];
  let ide = 0;
  const devices = disks.map(({ name, device, quorumNode }, index) => {
    const drive = `id=${name},drive=${quorumNode}${index === 0 ? ",bootindex=1" : ""}`;
    if (device === "virtio-blk") return `virtio-blk-pci,${drive}`;
    if (device === "scsi-hd") return `scsi-hd,bus=scsi0.0,${drive}`;
    const place = `bus=ide.${ide >> 1},unit=${ide & 1}`;
    ide++;
    return `ide-hd,${place},${drive}`;
  });
  return [
    ...blockdevs.flatMap((blockdev) => ["-blockdev", JSON.stringify(blockdev)]),
    ...[...controllers, ...devices].flatMap((device) => ["-device", device]),
  ];
}

function blockNodesOf(role: "primary" | "secondary", disk: Disk, overlayDirectory: string): object[] {
  const file = (filename: string) => ({ driver: "file", filename });
  const nodes = secondaryNodes(disk);
  const paths = overlayPaths(overlayDirectory, disk);
  const blockdevs: object[] = [{ driver: disk.format, "node-name": disk.baseNode, file: file(disk.path) }];
  if (role === "secondary") {
    blockdevs.push({
      driver: "replication",
      "node-name": nodes.replication,
      mode: "secondary",
      "top-id": disk.quorumNode,
      file: {
        driver: "qcow2",
        "node-name": nodes.active,
        file: file(paths.active),
        backing: {
          driver: "qcow2",
          "node-name": nodes.hidden,
          file: file(paths.hidden),
          backing: disk.baseNode,
        },
      },
    });
  }
  blockdevs.push({
    driver: "quorum",
    "node-name": disk.quorumNode,
    children: [role === "primary" ? disk.baseNode : nodes.replication],
    "vote-threshold": 1,
    "read-pattern": "fifo",
  });
  return blockdevs;
}
