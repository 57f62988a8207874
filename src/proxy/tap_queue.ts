/**
 * The input side of the checkpoint barrier: has the VM read everything that was put into its tap?
 *
 * Both VMs must have consumed the same input at a checkpoint (docs/architecture.md). QEMU does not read the
 * tap of a stopped VM, so a frame that is queued at STOP would reach one VM and not the other. The programs
 * count the frames put in, the tap counts those taken out. While no new frame comes, equality means an empty
 * queue.
 */
import { tapFramesTaken } from "./devices.ts";

const POLL_MS = 1;

export class TapQueue {
  #base: number;

  /** `put` returns the number of frames put into the tap so far. The queue must be empty now. */
  constructor(
    private readonly tap: string,
    private readonly put: () => number,
  ) {
    this.#base = tapFramesTaken(tap) - put();
  }

  /** Frames put in and not yet taken out. */
  queued(): number {
    const taken = tapFramesTaken(this.tap);
    return this.#behind(this.put(), taken);
  }

  /**
   * Waits until at least `putMin` frames have been put in and none is queued, at most `timeoutMs`. False when
   * the time was up. Missing frames then count as lost: one lost frame must not delay every later checkpoint.
   */
  async drained(putMin: number, timeoutMs: number): Promise<boolean> {
    const deadline = performance.now() + timeoutMs;
    for (;;) {
      // The count of frames taken comes first: one that is put in and taken out between the two then counts
      // as queued.
      const taken = tapFramesTaken(this.tap);
      const put = this.put();
      if (put >= putMin && this.#behind(put, taken) === 0) return true;
      if (performance.now() >= deadline) return false;
      await Bun.sleep(POLL_MS);
    }
  }

  /** Takes the queue as empty from now on. */
  rebase(): void {
    this.#base = tapFramesTaken(this.tap) - this.put();
  }

  #behind(put: number, taken: number): number {
    const queued = put - (taken - this.#base);
    if (queued >= 0) return queued;
    // Something else wrote to the tap (a frame from before the programs were attached): start from here.
    this.#base -= queued;
    return 0;
  }
}
