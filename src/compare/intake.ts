/**
 * In which order a comparer gets the records of two rings. While the next ones of both are the same segment,
 * as they are in two streams that run side by side, they go in as pairs. Otherwise the secondary's go first:
 * a primary frame whose counterpart is there already is released when it comes, and never waits in a list.
 */
import type { Comparer } from "./comparer.ts";
import type { RecordMemory } from "./options.ts";

/** Records one behind the other. A Ring of src/ffi/ring.ts satisfies it. */
export interface RecordSource extends RecordMemory {
  /** Slot of the next unread record, -1 if there is none. */
  next(): number;
  /** Of the record, in the memory, in bytes. */
  offset(slot: number): number;
}

export class Intake {
  /** Records taken so far. */
  primaryFrames = 0;
  secondaryFrames = 0;

  readonly #comparer: Comparer;
  readonly #primary: RecordSource;
  readonly #secondary: RecordSource;

  constructor(comparer: Comparer, primary: RecordSource, secondary: RecordSource) {
    this.#comparer = comparer;
    this.#primary = primary;
    this.#secondary = secondary;
  }

  /**
   * Takes records of both sides, of each up to `limit` and one more. Returns how many of both. Allocation
   * free.
   */
  take(limit: number): number {
    const before = this.primaryFrames + this.secondaryFrames;
    const comparer = this.#comparer;
    const primary = this.#primary;
    const secondary = this.#secondary;
    let pairs = 0;
    let unmatched = -1;
    while (pairs < limit) {
      const theirs = secondary.next();
      if (theirs < 0) break;
      this.secondaryFrames++;
      const own = primary.next();
      if (own >= 0) {
        this.primaryFrames++;
        if (comparer.addPair(own, primary.offset(own), theirs, secondary.offset(theirs))) {
          pairs++;
          continue;
        }
      }
      comparer.addSecondary(theirs, secondary.offset(theirs));
      unmatched = own;
      break;
    }
    if (pairs < limit) {
      this.#takeSecondary(limit - pairs);
      if (unmatched >= 0) comparer.addPrimary(unmatched, primary.offset(unmatched));
      this.takePrimary(limit - pairs);
    }
    return this.primaryFrames + this.secondaryFrames - before;
  }

  /** Takes up to `limit` records of the primary, whatever has come of the secondary; returns how many. */
  takePrimary(limit: number): number {
    const comparer = this.#comparer;
    const primary = this.#primary;
    let count = 0;
    for (; count < limit; count++) {
      const slot = primary.next();
      if (slot < 0) break;
      comparer.addPrimary(slot, primary.offset(slot));
    }
    this.primaryFrames += count;
    return count;
  }

  #takeSecondary(limit: number): void {
    const comparer = this.#comparer;
    const secondary = this.#secondary;
    let count = 0;
    for (; count < limit; count++) {
      const slot = secondary.next();
      if (slot < 0) break;
      comparer.addSecondary(slot, secondary.offset(slot));
    }
    this.secondaryFrames += count;
  }
}
