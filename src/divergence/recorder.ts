/**
 * Between the primary's duty of one VM and the store: notes each divergence, and what came of it when that is
 * known.
 */

import type { DivergenceClass } from "../compare/divergence.ts";
import { keepFrame } from "./kept_frame.ts";
import type { CheckpointCost, FlowDescription, FrameCut, NewDivergence } from "./record.ts";
import type { DivergenceStore } from "./store.ts";

/** What the comparer reports, with the frames (src/datapath/evidence.ts). */
export interface ReportedDivergence {
  class: DivergenceClass;
  flow: FlowDescription;
  streamOffset?: number;
  waitedNs: number;
  detail: string;
  difference?: { primaryFrameOffset: number; secondaryFrameOffset: number };
  primaryFrame?: Uint8Array;
  primaryCut?: FrameCut;
  secondaryFrame?: Uint8Array;
  secondaryCut?: FrameCut;
}

const ACTION_PENDING = "a checkpoint was requested";

/**
 * Divergences that wait for their outcome; more than a store takes between two checkpoints are not followed
 * up.
 */
const OPEN_MAX = 4096;

export class DivergenceRecorder {
  /** Numbers of records without an outcome, and the epoch in which each was found. */
  readonly #open = new Map<number, number>();
  #newestId = 0;
  readonly #store: Pick<DivergenceStore, "add" | "complete">;
  readonly #vm: string;

  constructor(store: Pick<DivergenceStore, "add" | "complete">, vm: string) {
    this.#store = store;
    this.#vm = vm;
  }

  /**
   * Notes a divergence found in `epoch`. `timeMs`: wall clock. Returns its number, 0 if it is only counted.
   */
  diverged(divergence: ReportedDivergence, epoch: number, timeMs: number = Date.now()): number {
    const { waitedNs, ...rest } = divergence;
    const record: NewDivergence = {
      ...rest,
      vm: this.#vm,
      timeMs,
      epoch,
      waitedMs: waitedNs / 1e6,
      action: ACTION_PENDING,
    };
    const id = this.#store.add(record);
    // A repeat has the number of the first one, whose outcome may be known already.
    if (id > this.#newestId) {
      this.#newestId = id;
      if (this.#open.size < OPEN_MAX) this.#open.set(id, epoch);
    }
    return id;
  }

  /** A checkpoint was made; it answers all that was found before the epoch that begins with it. */
  checkpointed(cost: CheckpointCost): void {
    const { epoch, pauseMs, totalMs } = cost;
    for (const [id, foundIn] of this.#open) {
      if (foundIn === epoch) continue;
      this.#store.complete(id, { action: `checkpoint ${epoch}`, checkpoint: { epoch, pauseMs, totalMs } });
      this.#open.delete(id);
    }
  }

  /**
   * There will be no checkpoint: `action` says what was done instead, for example "released: the VM runs
   * alone".
   */
  ended(action: string): void {
    for (const id of this.#open.keys()) this.#store.complete(id, { action });
    this.#open.clear();
  }
}

/**
 * For the thread that compares: cuts the frames of a divergence before they travel to the main thread, so
 * that no 64 KiB frames are passed along for 2 KiB that are kept. Copies; the given frames may be views of a
 * ring.
 */
export function cutFrames<T extends ReportedDivergence>(divergence: T): T {
  const { primaryFrame, secondaryFrame, difference } = divergence;
  const small: T = { ...divergence };
  if (primaryFrame !== undefined) {
    const { bytes, cut } = keepFrame(primaryFrame, difference?.primaryFrameOffset);
    small.primaryFrame = bytes;
    if (cut !== undefined) small.primaryCut = cut;
  }
  if (secondaryFrame !== undefined) {
    const { bytes, cut } = keepFrame(secondaryFrame, difference?.secondaryFrameOffset);
    small.secondaryFrame = bytes;
    if (cut !== undefined) small.secondaryCut = cut;
  }
  return small;
}
