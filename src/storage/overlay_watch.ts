/**
 * A replica's overlays grow with what both VMs write between two checkpoints, and a checkpoint empties them.
 * One that runs full costs a checkpoint, and if that does not help, the replica; never the VM.
 */
import { statSync } from "node:fs";
import { dirname } from "node:path";
import type { QmpClient } from "../qmp/client.ts";
import type { NamedBlockNode } from "../qmp/query.ts";
import { blockNodes } from "../qmp/vm.ts";
import { freeBytes as freeBytesAt } from "./room.ts";

interface OverlayLimits {
  /** Limit of the overlays of all disks, in bytes; 0: only the file system limits them. */
  sizeBytes: number;
  /** Parts of the room: a checkpoint is wanted, and the replica is given up. */
  softPart: number;
  hardPart: number;
}

interface OverlayReading {
  /** By the overlays' files. */
  usedBytes: number;
  /** What is left of their file systems; of the fullest. */
  freeBytes: number;
}

export type OverlayVerdict =
  | { want: "nothing" }
  | { want: "checkpoint"; reason: string }
  | { want: "give_up"; reason: string };

/** A requested checkpoint may take this long before it is requested again. */
const ASK_AGAIN_MS = 1_000;

export class OverlayWatch {
  /** The epoch in which a checkpoint was requested, and when. */
  #asked: { epoch: number; atMs: number } | undefined;

  constructor(private readonly limits: OverlayLimits) {}

  /** One look; `epoch` grows with each checkpoint. */
  judge({ usedBytes, freeBytes }: OverlayReading, epoch: number, nowMs: number): OverlayVerdict {
    const { sizeBytes, softPart, hardPart } = this.limits;
    const thereBytes = usedBytes + freeBytes;
    const roomBytes = sizeBytes === 0 ? thereBytes : Math.min(sizeBytes, thereBytes);
    const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(1);
    const words = `the overlays take ${mib(usedBytes)} of ${mib(roomBytes)} MiB`;
    if (usedBytes <= roomBytes * softPart) {
      this.#asked = undefined;
      return { want: "nothing" };
    }
    const asked = this.#asked;
    if (usedBytes > roomBytes * hardPart && asked !== undefined && epoch > asked.epoch) {
      return { want: "give_up", reason: `${words}, and a checkpoint did not free enough` };
    }
    if (asked !== undefined && nowMs - asked.atMs < ASK_AGAIN_MS) return { want: "nothing" };
    // Counted from the first time: what helps has to have begun afterwards.
    this.#asked = { epoch: asked?.epoch ?? epoch, atMs: nowMs };
    return { want: "checkpoint", reason: words };
  }
}

/**
 * The files of the overlays below all replication nodes of a secondary's QEMU (block/replication.c: active,
 * below it hidden).
 */
export async function overlayFiles(client: QmpClient): Promise<string[]> {
  const nodes = await blockNodes(client);
  const child = (node: NamedBlockNode | undefined, name: string) => {
    const found = node?.children?.find((one) => one.child === name)?.["node-name"];
    return nodes.find((one) => one["node-name"] === found);
  };
  const files: string[] = [];
  for (const replication of nodes.filter(({ drv }) => drv === "replication")) {
    const active = child(replication, "file");
    for (const overlay of [active, child(active, "backing")]) {
      const file = child(overlay, "file")?.file;
      if (file !== undefined) files.push(file);
    }
  }
  return files;
}

/** Throws an Error if a file has gone. */
export function readOverlays(files: readonly string[]): OverlayReading {
  let usedBytes = 0;
  let freeBytes = Number.POSITIVE_INFINITY;
  for (const file of files) {
    usedBytes += statSync(file).blocks * 512;
    freeBytes = Math.min(freeBytes, freeBytesAt(dirname(file)));
  }
  return { usedBytes, freeBytes };
}
