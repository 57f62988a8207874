/** Disk images and a secondary's overlays over them, by qemu-img. */

import { existsSync, mkdirSync, rmSync, statSync } from "node:fs";
import { z } from "zod";
import { Problem } from "../errors/problem.ts";
import { jsonAs } from "../host/json.ts";
import { runToEnd } from "../host/run_to_end.ts";
import { type Disk, overlayPaths } from "../storage/disk_graph.ts";
import { freeBytes } from "../storage/room.ts";
import type { QemuSettings } from "./settings.ts";

/** Replication copies in pieces of this size (block/backup.c), so a disk has to be made of whole ones. */
const PIECE_BYTES = 64 << 10;
/** An overlay directory with less than that is full, if nobody has said what is needed. */
const OVERLAY_ROOM_BYTES = 64 << 20;

/** Runs qemu-img and returns its output. Throws an Error with its complaint. */
async function qemuImg({ imgCommand, environment }: QemuSettings, ...words: string[]): Promise<string> {
  const command = [...imgCommand, ...words];
  const { output, complaint, status } = await runToEnd(command, environment);
  if (status !== 0) throw new Error(`${command.join(" ")} failed: ${complaint}`);
  return output;
}

const imageInfo = z.object({ "virtual-size": z.number().int().min(0) });

/** The disk's length as the VM sees it. The image must not be in use by a QEMU that writes it. */
async function virtualBytes(settings: QemuSettings, { path, format }: Disk): Promise<number> {
  if (format === "raw" && statSync(path).isFile()) return statSync(path).size;
  const info = await qemuImg(settings, "info", "-f", format, "--output=json", path);
  return jsonAs(imageInfo, info, `qemu-img info ${path}`)["virtual-size"];
}

/** So much room has to be there for a secondary's overlays. */
export function overlayRoomBytes({ overlayBytes }: Pick<QemuSettings, "overlayBytes">): number {
  return overlayBytes || OVERLAY_ROOM_BYTES;
}

/**
 * A disk's length as the guest sees it, in bytes.
 * @throws Error if there is no such image, or QEMU could not replicate it
 */
export async function diskBytes(settings: QemuSettings, disk: Disk): Promise<number> {
  if (!existsSync(disk.path)) {
    throw new Problem(
      `disk ${disk.name}: there is no image ${disk.path}`,
      `make one of the same size as on the other host (qemu-img create -f ${disk.format} ${disk.path} SIZE)`,
    );
  }
  const bytes = await virtualBytes(settings, disk);
  if (bytes === 0 || bytes % PIECE_BYTES !== 0) {
    throw new Problem(
      `disk ${disk.name}: ${disk.path} has ${bytes} bytes, which replication cannot copy whole`,
      `give it a multiple of ${PIECE_BYTES} on both hosts (qemu-img resize)`,
    );
  }
  return bytes;
}

/**
 * Makes a secondary's empty overlays, each as long as its disk. Throws an Error if there is no room for them.
 */
export async function createOverlays(settings: QemuSettings): Promise<void> {
  mkdirSync(settings.overlayDirectory, { recursive: true });
  removeOverlays(settings);
  const room = freeBytes(settings.overlayDirectory);
  const needed = overlayRoomBytes(settings);
  if (settings.disks.length > 0 && room < needed) {
    const mib = (bytes: number) => Math.floor(bytes / 2 ** 20);
    throw new Error(
      `${settings.overlayDirectory} has ${mib(room)} of the ${mib(needed)} MiB left that overlays need; ` +
        "they take twice the data written between two checkpoints",
    );
  }
  // All lengths in a disk's graph have to be equal.
  for (const disk of settings.disks) {
    const bytes = await diskBytes(settings, disk);
    for (const path of Object.values(overlayPaths(settings.overlayDirectory, disk)))
      await qemuImg(settings, "create", "-q", "-f", "qcow2", path, String(bytes));
  }
}

/** Removes overlays whose content is of no use, or is in the disk. */
export function removeOverlays(settings: QemuSettings, disks = settings.disks): void {
  for (const disk of disks) {
    for (const path of Object.values(overlayPaths(settings.overlayDirectory, disk)))
      rmSync(path, { force: true });
  }
}

/**
 * Writes what a VM that took over has left in its overlays into its disks, and removes them. To be called
 * before that VM is booted from its disks, and with its QEMU gone: QEMU itself does the same after a
 * takeover, but needs its time.
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
