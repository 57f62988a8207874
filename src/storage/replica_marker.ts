/**
 * What the images of this host are a replica of: written when the replica is complete, and removed before
 * anything but its primary's own writes reaches the images. The primary sends only what changed if the marker
 * fits its bitmaps.
 *
 * The file lies in the agent's state directory. Whoever replaces or writes an image by other means has to
 * remove it.
 */
import {
  closeSync,
  existsSync,
  fsyncSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";

const marker = z.object({
  vm: z.string(),
  generation: z.number().int().min(0),
  /** By the disk's name. */
  disks: z.record(z.string(), z.object({ image: z.string(), bytes: z.number().int() })),
});

export type ReplicaImages = z.output<typeof marker>["disks"];

export class ReplicaMarker {
  readonly #path: string;

  constructor(
    stateDirectory: string,
    private readonly vm: string,
  ) {
    this.#path = join(stateDirectory, `replica-${vm}.json`);
  }

  /** The generation that `images` are a complete replica of; undefined: of none that is known. */
  generationOf(images: ReplicaImages): number | undefined {
    let found: z.output<typeof marker>;
    try {
      found = marker.parse(JSON.parse(readFileSync(this.#path, "utf8")));
    } catch {
      // No marker, or none of an agent's: the images count as unknown, and are copied whole.
      return undefined;
    }
    const names = Object.keys(found.disks);
    const same =
      found.vm === this.vm &&
      names.length === Object.keys(images).length &&
      names.every((name) => {
        const [one, other] = [found.disks[name], images[name]];
        return one?.image === other?.image && one?.bytes === other?.bytes;
      });
    return same ? found.generation : undefined;
  }

  /** On the disk when it returns. */
  write(generation: number, disks: ReplicaImages): void {
    const unfinished = `${this.#path}.new`;
    const file = openSync(unfinished, "w", 0o600);
    try {
      writeSync(file, JSON.stringify({ vm: this.vm, generation, disks }));
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(unfinished, this.#path);
    this.#syncDirectory();
  }

  /** Gone from the disk when it returns. */
  remove(): void {
    if (!existsSync(this.#path)) return;
    rmSync(this.#path);
    this.#syncDirectory();
  }

  #syncDirectory(): void {
    const directory = openSync(dirname(this.#path), "r");
    try {
      fsyncSync(directory);
    } finally {
      closeSync(directory);
    }
  }
}
