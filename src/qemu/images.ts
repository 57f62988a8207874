/** Disk images and a secondary's overlays over them, by qemu-img. */
import { existsSync, mkdirSync, rmSync, statfsSync } from "node:fs";
import { createOverlays as create, type Disk, overlayPaths, virtualBytes } from "../storage/disk_graph.ts";
import type { QemuSettings } from "./settings.ts";

/** Replication copies in pieces of this size (block/backup.c), so a disk has to be made of whole ones. */
const PIECE_BYTES = 64 << 10;
/** An overlay directory with less than that is full, if nobody has said what is needed. */
export const OVERLAY_ROOM_BYTES = 64 << 20;

const qemuImgOf = ({ imgCommand, environment }: QemuSettings) => ({ argv: imgCommand, environment });

/** Runs qemu-img. Throws an Error with its complaint. */
async function qemuImg({ imgCommand, environment }: QemuSettings, ...words: string[]): Promise<void> {
  const command = [...imgCommand, ...words];
  const child = Bun.spawn(command, {
    stdio: ["ignore", "ignore", "pipe"],
    env: { ...process.env, ...environment },
  });
  const complaint = await new Response(child.stderr).text();
  if ((await child.exited) !== 0) throw new Error(`${command.join(" ")} failed: ${complaint.trim()}`);
}

/**
 * A disk's length as the guest sees it, in bytes.
 * @throws Error if there is no such image, or QEMU could not replicate it
 */
export async function diskBytes(settings: QemuSettings, disk: Disk): Promise<number> {
  if (!existsSync(disk.path)) {
    throw new Error(
      `disk ${disk.name}: there is no image ${disk.path}; make one of the same size as on the other host (qemu-img create -f ${disk.format} ${disk.path} SIZE)`,
    );
  }
  const bytes = await virtualBytes(disk, qemuImgOf(settings));
  if (bytes === 0 || bytes % PIECE_BYTES !== 0) {
    throw new Error(
      `disk ${disk.name}: ${disk.path} has ${bytes} bytes; replication needs a multiple of ${PIECE_BYTES} (qemu-img resize, on both hosts)`,
    );
  }
  return bytes;
}

/** Makes a secondary's overlays anew, each as long as its disk. Throws an Error if there is no room for them. */
export async function createOverlays(settings: QemuSettings): Promise<void> {
  mkdirSync(settings.overlayDirectory, { recursive: true });
  removeOverlays(settings);
  const { bavail, bsize } = statfsSync(settings.overlayDirectory);
  const room = bavail * bsize;
  const needed = settings.overlayBytes || OVERLAY_ROOM_BYTES;
  if (settings.disks.length > 0 && room < needed) {
    const mib = (bytes: number) => Math.floor(bytes / 2 ** 20);
    throw new Error(
      `${settings.overlayDirectory} has ${mib(room)} of the ${mib(needed)} MiB left that overlays need; a secondary's overlays need room for what the VM writes between two checkpoints, twice`,
    );
  }
  for (const disk of settings.disks) await diskBytes(settings, disk);
  await create(settings.disks, settings.overlayDirectory, qemuImgOf(settings));
}

/** Removes overlays whose content is of no use, or is in the disk. */
export function removeOverlays(settings: QemuSettings, disks = settings.disks): void {
  for (const disk of disks) {
    for (const path of Object.values(overlayPaths(settings.overlayDirectory, disk)))
      rmSync(path, { force: true });
  }
}

/**
 * Writes what a VM that took over has left in its overlays into its disks, and removes them. To be called before that VM is booted from
 * its disks, and with its QEMU gone: QEMU itself does the same after a takeover, but needs its time.
 *
 * Ending half-way does no harm: read through the overlays the disk is the same at each moment.
 */
export async function commitOverlays(settings: QemuSettings): Promise<Disk[]> {
  const committed: Disk[] = [];
  for (const disk of settings.disks) {
    const { active, hidden } = overlayPaths(settings.overlayDirectory, disk);
    if (!existsSync(active) || !existsSync(hidden)) continue;
    const qcow2 = (filename: string, backing: object) => ({
      driver: "qcow2",
      file: { driver: "file", filename },
      backing,
    });
    const base = { driver: disk.format, file: { driver: "file", filename: disk.path } };
    const lower = qcow2(hidden, base);
    await qemuImg(settings, "commit", "-q", `json:${JSON.stringify(qcow2(active, lower))}`);
    await qemuImg(settings, "commit", "-q", `json:${JSON.stringify(lower)}`);
    removeOverlays(settings, [disk]);
    committed.push(disk);
  }
  return committed;
}
