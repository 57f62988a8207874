import { FLOW_FROZEN } from "./flow_table.ts";
import { KIND_UNPARSED } from "./parse.ts";
import type { CompareState } from "./state.ts";

/**
 * Flows whose frames are compared one by one: UDP, ICMP, other IP protocols, fragments, frames that are not
 * IP, and frames that could not be understood. The n-th of the primary must equal the n-th of the secondary;
 * whichever comes first waits.
 */
export class DatagramFlows {
  constructor(private readonly state: CompareState) {}

  /** Compares and releases what it can. Call after a frame was added on either side. */
  run(flow: number): void {
    const { state } = this;
    const { flows, queue, secondaryQueue } = state;
    if ((flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    for (;;) {
      const primary = queue.head[flow];
      const secondary = secondaryQueue.head[flow];
      if (primary < 0 || secondary < 0 || state.primary.timeNs[primary] > state.horizonNs) return;
      if (!this.equal(primary, secondary)) {
        this.diverge(flow, primary, secondary);
        return;
      }
      secondaryQueue.remove(flow, secondary);
      state.finish(secondary);
      state.releaseCompared(primary);
    }
  }

  private equal(primary: number, secondary: number): boolean {
    const { state } = this;
    const p = state.primary;
    const s = state.secondary;
    const bytes = p.dataBytes[primary];
    if (bytes !== s.dataBytes[secondary] || p.meta[primary] !== s.meta[secondary]) return false;
    const from = p.data[primary];
    const secondaryFrom = s.data[secondary];
    const skipBytes = p.skipBytes[primary];
    if (skipBytes !== s.skipBytes[secondary]) return false;
    if (skipBytes === 0) return state.compareBytes(from, secondaryFrom, bytes) === 0;
    const skipAt = p.skipAt[primary];
    const rest = skipAt + skipBytes;
    return (
      state.compareBytes(from, secondaryFrom, skipAt) === 0 &&
      state.compareBytes(from + rest, secondaryFrom + rest, bytes - rest) === 0
    );
  }

  private diverge(flow: number, primary: number, secondary: number): void {
    const { state } = this;
    const p = state.primary;
    const s = state.secondary;
    const bytes = p.dataBytes[primary];
    const secondaryBytes = s.dataBytes[secondary];
    const unparsed = state.flows.kind(flow) === KIND_UNPARSED;
    const at = this.firstDifference(primary, secondary, Math.min(bytes, secondaryBytes));
    const primaryAt = p.data[primary] + at;
    const secondaryAt = s.data[secondary] + at;
    const sameShape = bytes === secondaryBytes && p.skipBytes[primary] === s.skipBytes[secondary];
    if (!sameShape || p.meta[primary] !== s.meta[secondary]) {
      const detail = !sameShape
        ? `the primary sent ${bytes} bytes, the secondary ${secondaryBytes}`
        : `the primary sent another fragment or segmentation (${p.meta[primary]}) than the secondary (${s.meta[secondary]})`;
      const place = !sameShape ? { primaryAt, secondaryAt } : {};
      state.diverge(flow, unparsed ? "unparsed" : "length", detail, undefined, {
        primary,
        secondary,
        ...place,
      });
      return;
    }
    const detail = `byte ${at} of ${bytes} differs: ${state.bytePair(primaryAt, secondaryAt)}`;
    const place = { primary, secondary, primaryAt, secondaryAt };
    state.diverge(flow, unparsed ? "unparsed" : "payload", detail, undefined, place);
  }

  private firstDifference(primary: number, secondary: number, bytes: number): number {
    const { state } = this;
    const p = state.primary;
    const from = p.data[primary];
    const secondaryFrom = state.secondary.data[secondary];
    const skipBytes = p.skipBytes[primary];
    if (skipBytes === 0) return state.firstDifference(from, secondaryFrom, bytes);
    const skipAt = p.skipAt[primary];
    const before = state.firstDifference(from, secondaryFrom, Math.min(skipAt, bytes));
    if (before < skipAt) return before;
    const rest = skipAt + skipBytes;
    return Math.min(bytes, rest + state.firstDifference(from + rest, secondaryFrom + rest, bytes - rest));
  }
}
