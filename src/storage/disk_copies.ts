/**
 * The copies of all disks of a VM that is being protected: whole ones by mirrors, others by what changed,
 * both at the same time.
 */
import type { QmpClient } from "../qmp/client.ts";
import { ChangesCopy } from "./changes_copy.ts";
import { PASS_BITMAP, removeBitmap } from "./dirty_bitmaps.ts";
import { copyDisks, type DiskProgress, finishCopies, type PrimaryDisk } from "./mirror.ts";

export class DiskCopies {
  readonly #progress = new Map<string, DiskProgress>();
  #changes: ChangesCopy[] = [];
  /** Disks that mirrors follow. */
  #mirrored: PrimaryDisk[];

  constructor(
    private readonly client: QmpClient,
    disks: readonly PrimaryDisk[],
    private readonly options: { stallMs: number; signal: AbortSignal; bytesPerSecond: () => number },
  ) {
    this.#mirrored = disks.filter((disk) => disk.bitmap === undefined);
    for (const disk of disks) {
      const { bitmap, quorumNode } = disk;
      if (bitmap === undefined) continue;
      const onProgress = (copiedBytes: number, totalBytes: number) => {
        this.#progress.set(quorumNode, { quorumNode, copiedBytes, totalBytes, follows: false });
      };
      this.#changes.push(new ChangesCopy(client, disk, bitmap, { ...options, onProgress }));
    }
  }

  /** Bytes sent so far. */
  get copiedBytes(): number {
    return [...this.#progress.values()].reduce((sum, one) => sum + one.copiedBytes, 0);
  }

  /**
   * Copies while the VM runs; resolves when only what the VM writes is left to do. That is for {@link
   * keepUp}.
   */
  async run(onProgress?: (progress: readonly DiskProgress[]) => void): Promise<void> {
    const tell = () => onProgress?.([...this.#progress.values()]);
    const timer = setInterval(tell, 100);
    try {
      // One after the other, so that the limit is kept: changes first, since they are few.
      const slow: ChangesCopy[] = [];
      for (const copy of this.#changes) if (!(await copy.run())) slow.push(copy);
      for (const { disk } of slow) {
        await removeBitmap(this.client, disk.quorumNode, PASS_BITMAP);
        this.#mirrored.push(disk);
      }
      this.#changes = this.#changes.filter((copy) => !slow.includes(copy));
      if (this.#mirrored.length > 0) {
        await copyDisks(this.client, this.#mirrored, {
          ...this.options,
          onProgress: (progress) => {
            for (const one of progress) this.#progress.set(one.quorumNode, one);
          },
        });
      }
      for (const { disk, copiedBytes } of this.#changes) {
        const { quorumNode } = disk;
        this.#progress.set(quorumNode, { quorumNode, copiedBytes, totalBytes: copiedBytes, follows: true });
      }
      tell();
    } finally {
      clearInterval(timer);
    }
  }

  /**
   * From now on what the VM writes is copied by itself. Not while a migration begins: each pass ends with
   * QEMU's main loop waiting for all writes to the export (block jobs are drained when they go), with the big
   * lock held, so the migration sends nothing; and until its first bytes come, the other QEMU's main loop,
   * which would do those writes, waits for them (a peek that blocks: migration/channel.c). Seen with 11.1.2:
   * both stand still until the connection is cut.
   */
  keepUp(): void {
    for (const copy of this.#changes) copy.keepUp();
  }

  /** The VM is stopped: makes the disks the same on both hosts. */
  async finish(timeoutMs: number): Promise<void> {
    await Promise.all([
      finishCopies(this.client, this.#mirrored, timeoutMs),
      ...this.#changes.map((copy) => copy.finish()),
    ]);
  }

  /** It is given up; jobs, nodes and bitmaps are for removeDiskNodes(). */
  abandon(): void {
    for (const copy of this.#changes) copy.abandon();
  }
}
