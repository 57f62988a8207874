/**
 * Brings the secondary's image of a disk up to date with only what changed, as bitmaps say. Passes of
 * `blockdev-backup`, each copying what was written during the one before, while the VM runs; the last one
 * when it stands still for the switch-over. QEMU 11.1's mirror takes no bitmap.
 *
 * The bitmap that covers the difference is only read: if this fails, or the agent dies, it still covers it.
 */
import type { QmpClient } from "../qmp/client.ts";
import { jobs, query } from "../qmp/query.ts";
import { addBitmap, dirtyBytes, PASS_BITMAP, removeBitmap } from "./dirty_bitmaps.ts";
import { type PrimaryDisk, passJobId } from "./mirror.ts";

/** Little enough for the pause. */
const FEW_BYTES = 4 << 20;
/** A VM that writes as fast as the link carries gets a mirror instead, which makes its writes wait. */
const PASSES_MAX = 10;
const KEEP_UP_MS = 200;

interface PassOptions {
  stallMs: number;
  signal: AbortSignal;
  /** 0: no limit. Asked again and again. */
  bytesPerSecond: () => number;
  onProgress?: (copiedBytes: number, totalBytes: number) => void;
}

/** One disk; `bitmap` on its quorum covers all in which the export differs. */
export class ChangesCopy {
  #copiedBytes = 0;
  #keepingUp: Promise<void> | undefined;
  #stop = false;
  #abandoned = false;

  constructor(
    private readonly client: QmpClient,
    readonly disk: PrimaryDisk,
    private readonly bitmap: string,
    private readonly options: PassOptions,
  ) {}

  get copiedBytes(): number {
    return this.#copiedBytes;
  }

  /** Copies while the VM runs. Returns whether little is left; if not, the VM writes too fast for this. */
  async run(): Promise<boolean> {
    const { client, disk } = this;
    await addBitmap(client, disk.quorumNode, PASS_BITMAP);
    await this.#pass(this.bitmap, "never");
    for (let passes = 1; passes < PASSES_MAX; passes++) {
      if ((await this.#leftBytes()) <= FEW_BYTES) return true;
      await this.#pass(PASS_BITMAP, "always");
    }
    return (await this.#leftBytes()) <= FEW_BYTES;
  }

  /** From now on passes are made as the VM writes, until {@link finish}. */
  keepUp(): void {
    this.#keepingUp = (async () => {
      while (!this.#stop) {
        if ((await this.#leftBytes()) > 0) await this.#pass(PASS_BITMAP, "always");
        await Bun.sleep(KEEP_UP_MS);
      }
    })();
    this.#keepingUp.catch(() => undefined); // finish() tells
  }

  /** The VM is stopped: the last pass. Both disks are then the same. */
  async finish(): Promise<void> {
    this.#stop = true;
    await this.#keepingUp;
    await this.#pass(PASS_BITMAP, "always");
    const leftBytes = await this.#leftBytes();
    if (leftBytes > 0) {
      throw new Error(`${this.disk.quorumNode} changed by ${leftBytes} bytes although the VM is stopped`);
    }
    await removeBitmap(this.client, this.disk.quorumNode, PASS_BITMAP);
  }

  /** Ends passes that are made by themselves; what runs is for removeDiskNodes(). */
  abandon(): void {
    this.#stop = true;
    this.#abandoned = true;
  }

  async #leftBytes(): Promise<number> {
    const bytes = await dirtyBytes(this.client, this.disk.quorumNode, PASS_BITMAP);
    if (bytes === undefined)
      throw new Error(`the bitmap ${PASS_BITMAP} of ${this.disk.quorumNode} is not there`);
    return bytes;
  }

  async #pass(bitmap: string, mode: "never" | "always"): Promise<void> {
    const { client, disk } = this;
    const { stallMs, signal, bytesPerSecond, onProgress } = this.options;
    const id = passJobId(disk);
    if (this.#abandoned) throw new Error("the copy was given up");
    let speed = bytesPerSecond();
    await client.execute("blockdev-backup", {
      "job-id": id,
      device: disk.quorumNode,
      target: disk.nbdNode,
      sync: "bitmap",
      bitmap,
      "bitmap-mode": mode,
      speed,
      // A target that fails must not fail the VM's own writes.
      "on-cbw-error": "break-snapshot",
      "auto-dismiss": false,
    });
    let last = -1;
    let progressMs = performance.now();
    for (;;) {
      signal.throwIfAborted();
      const job = (await query(client, jobs, "query-jobs")).find((one) => one.id === id);
      if (job === undefined) throw new Error(`the copy of ${disk.quorumNode} was ended by another program`);
      onProgress?.(this.#copiedBytes + job["current-progress"], this.#copiedBytes + job["total-progress"]);
      if (job.status === "concluded") {
        await client.execute("job-dismiss", { id });
        if (job.error !== undefined) throw new Error(`the copy of ${disk.quorumNode} failed: ${job.error}`);
        this.#copiedBytes += job["current-progress"];
        return;
      }
      const nowMs = performance.now();
      if (job["current-progress"] !== last) progressMs = nowMs;
      last = job["current-progress"];
      if (nowMs - progressMs > stallMs) {
        throw new Error(
          `the copy of ${disk.quorumNode} made no progress for ${stallMs} ms, at ${last} bytes`,
        );
      }
      const wanted = bytesPerSecond();
      if (wanted !== speed && job.status === "running") {
        speed = wanted;
        // A job that has just ended takes no speed; the next look sees its end.
        await client.execute("block-job-set-speed", { device: id, speed }).catch(() => undefined);
      }
      await Bun.sleep(5);
    }
  }
}
