/**
 * Primary frames that cannot be tracked one by one (a limit was passed): held in order of arrival until a
 * checkpoint covers them. Grows as needed; the rings bound it.
 */
import type { CompareState } from "./state.ts";

export class OverflowList {
  length = 0;
  /** Those among them whose flow is not known, because the flow table was full. */
  withoutFlow = 0;
  #slots = new Float64Array(1024);
  #times = new Float64Array(1024);
  #arrivals = new Float64Array(1024);
  #flows = new Int32Array(1024);

  readonly #state: CompareState;

  constructor(state: CompareState) {
    this.#state = state;
  }

  /** `flow` is -1 if the frame has none. */
  push(slot: number, timeNs: number, flow: number): void {
    if (this.length === this.#slots.length) this.#grow();
    const at = this.length++;
    this.#slots[at] = slot;
    this.#times[at] = timeNs;
    this.#arrivals[at] = this.#state.arrivals++;
    this.#flows[at] = flow;
    if (flow < 0) this.withoutFlow++;
    else this.#state.flows.overflowed[flow]++;
    this.#state.stats.overflowedFrames++;
  }

  arrivalOf(at: number): number {
    return this.#arrivals[at];
  }

  timeOf(at: number): number {
    return this.#times[at];
  }

  /** Releases the frame at index `at`, which must then be left out by keep(). */
  release(at: number): void {
    const flow = this.#flows[at];
    if (flow < 0) this.withoutFlow--;
    else this.#state.flows.overflowed[flow]--;
    this.#state.releaseSlot(this.#slots[at]);
  }

  /** Moves the frame at index `from` to index `to`. */
  keep(from: number, to: number): void {
    this.#slots[to] = this.#slots[from];
    this.#times[to] = this.#times[from];
    this.#arrivals[to] = this.#arrivals[from];
    this.#flows[to] = this.#flows[from];
  }

  /** Asks for the checkpoint that they wait for. */
  report(why: string): void {
    const { heldFrames } = this.#state.stats;
    const detail = `${why}; ${heldFrames} frames are held, ${this.length} of them until the next checkpoint`;
    this.#state.report("overflow", -1, 0, detail);
  }

  #grow(): void {
    const length = this.#slots.length * 2;
    const larger = (from: Float64Array): Float64Array<ArrayBuffer> => {
      const to = new Float64Array(length);
      to.set(from);
      return to;
    };
    this.#slots = larger(this.#slots);
    this.#times = larger(this.#times);
    this.#arrivals = larger(this.#arrivals);
    const flows = new Int32Array(length);
    flows.set(this.#flows);
    this.#flows = flows;
  }
}
