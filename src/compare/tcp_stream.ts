/**
 * The byte stream of a TCP connection: up to where both sides have produced the same.
 *
 * Each side's segments with something new are in a list sorted by sequence number. `verified` moves over what
 * the first of both lists cover, byte for byte; segments that end at or below it leave the lists.
 *
 * First seen in mid-stream. Without a SYN or a checkpoint that saw the flow, `verified` starts at the first
 * primary segment with bytes. That says nothing about the bytes below: usually they are older than the last
 * checkpoint (which covers them), but the segment before may also have been dropped by a full ring and be
 * sent again. So that start is a *floor*: a segment that begins below it counts as unverified, moves floor
 * and `verified` down to its own start, and what had been verified above becomes an island that `verified`
 * skips when it gets there. So no byte is ever taken as verified that was not compared since the checkpoint
 * or covered by it; the price is a wait, at worst a checkpoint.
 */
import {
  FLOW_FLOOR_KNOWN,
  FLOW_ISLAND_KNOWN,
  FLOW_PRIMARY_ISN_KNOWN,
  FLOW_VERIFIED_KNOWN,
} from "./flow_table.ts";
import {
  SEGMENT_SORTED,
  SEGMENT_SYN,
  SEGMENT_TRACKED,
  SEGMENT_URG,
  SEGMENT_VERIFIED,
  type SegmentPool,
} from "./segment_pool.ts";
import type { CompareState, DivergencePlace } from "./state.ts";

export class TcpStream {
  readonly #state: CompareState;

  constructor(state: CompareState) {
    this.#state = state;
  }

  /**
   * Lets a primary segment of the current connection take part in the comparison, unless it is newer than the
   * horizon.
   */
  track(flow: number, segment: number): void {
    const state = this.#state;
    const { flows, primary } = state;
    if (primary.timeNs[segment] > state.horizonNs) return;
    const sequence = primary.sequence[segment];
    const end = primary.end[segment];
    if (end === sequence || this.#isVerified(flow, sequence, end)) {
      primary.flags[segment] |= SEGMENT_TRACKED | SEGMENT_VERIFIED;
      return;
    }
    primary.flags[segment] |= SEGMENT_TRACKED | SEGMENT_SORTED;
    const flags = flows.flags[flow];
    if ((flags & FLOW_VERIFIED_KNOWN) === 0) {
      flows.verified[flow] = sequence;
      flows.floor[flow] = sequence;
      flows.flags[flow] = flags | FLOW_VERIFIED_KNOWN | FLOW_FLOOR_KNOWN;
    } else if ((flags & FLOW_FLOOR_KNOWN) !== 0 && ((sequence - flows.floor[flow]) | 0) < 0) {
      this.#lowerFloor(flow, sequence);
    }
    this.#sortPrimary(flow, segment);
  }

  #sortPrimary(flow: number, segment: number): void {
    const { primary, primarySorted } = this.#state;
    const { tail, prev } = primarySorted;
    const sequence = primary.sequence[segment];
    let after = tail[flow];
    while (after >= 0 && ((sequence - primary.sequence[after]) | 0) < 0) after = prev[after];
    primarySorted.insertAfter(flow, segment, after);
  }

  /** What a primary segment begins with has been sent: it begins at `sequence` now. */
  moveStart(flow: number, segment: number, sequence: number): void {
    const { primary, primarySorted } = this.#state;
    primary.sequence[segment] = sequence;
    if ((primary.flags[segment] & SEGMENT_SORTED) === 0) return;
    primarySorted.remove(flow, segment);
    this.#sortPrimary(flow, segment);
  }

  #lowerFloor(flow: number, sequence: number): void {
    const { flows } = this.#state;
    const verified = flows.verified[flow];
    // With an island above already, what was verified between floor and island is given up and verified
    // again.
    if ((flows.flags[flow] & FLOW_ISLAND_KNOWN) === 0 && ((verified - flows.floor[flow]) | 0) > 0) {
      flows.islandStart[flow] = flows.floor[flow];
      flows.islandEnd[flow] = verified;
      flows.flags[flow] |= FLOW_ISLAND_KNOWN;
    }
    flows.floor[flow] = sequence;
    flows.verified[flow] = sequence;
  }

  /** Whether everything up to `end` has been seen from both sides: the secondary need not send it again. */
  isBelowVerified(flow: number, end: number): boolean {
    const { flows } = this.#state;
    return (flows.flags[flow] & FLOW_VERIFIED_KNOWN) !== 0 && ((end - flows.verified[flow]) | 0) <= 0;
  }

  #isVerified(flow: number, sequence: number, end: number): boolean {
    const { flows } = this.#state;
    const flags = flows.flags[flow];
    if ((flags & FLOW_VERIFIED_KNOWN) === 0) return false;
    if ((flags & FLOW_FLOOR_KNOWN) === 0) return ((end - flows.verified[flow]) | 0) <= 0;
    if (((end - flows.verified[flow]) | 0) <= 0 && ((sequence - flows.floor[flow]) | 0) >= 0) return true;
    return (
      (flags & FLOW_ISLAND_KNOWN) !== 0 &&
      ((sequence - flows.islandStart[flow]) | 0) >= 0 &&
      ((end - flows.islandEnd[flow]) | 0) <= 0
    );
  }

  /** Adds a secondary segment to those that wait for the primary's bytes. */
  insertSecondary(flow: number, segment: number): void {
    const { secondary, secondarySorted } = this.#state;
    const sequence = secondary.sequence[segment];
    const { tail, prev } = secondarySorted;
    let after = tail[flow];
    while (after >= 0 && ((sequence - secondary.sequence[after]) | 0) < 0) after = prev[after];
    secondarySorted.insertAfter(flow, segment, after);
  }

  /** Moves `verified` over what both sides have. Returns false when the flow has diverged. */
  advance(flow: number): boolean {
    const state = this.#state;
    const { flows, primary, secondary, primarySorted, secondarySorted } = state;
    if ((flows.flags[flow] & FLOW_VERIFIED_KNOWN) === 0) return true;
    for (;;) {
      if ((flows.flags[flow] & FLOW_ISLAND_KNOWN) !== 0) this.#crossIsland(flow);
      const verified = flows.verified[flow];
      let s = secondarySorted.head[flow];
      while (s >= 0 && ((secondary.end[s] - verified) | 0) <= 0) {
        secondarySorted.remove(flow, s);
        state.finish(s);
        s = secondarySorted.head[flow];
      }
      // Not only the first: one that begins lower (sent again, with more behind it) may end higher and stay.
      for (let item = primarySorted.head[flow]; item >= 0; ) {
        if (((primary.sequence[item] - verified) | 0) >= 0) break;
        const following = primarySorted.next[item];
        if (((primary.end[item] - verified) | 0) <= 0) {
          primarySorted.remove(flow, item);
          primary.flags[item] = (primary.flags[item] & ~SEGMENT_SORTED) | SEGMENT_VERIFIED;
        }
        item = following;
      }
      const p = primarySorted.head[flow];
      if (p < 0 || s < 0) return true;
      if (((primary.sequence[p] - verified) | 0) > 0) return true;
      if (((secondary.sequence[s] - verified) | 0) > 0) return true;
      if (!this.#step(flow, p, s, verified)) return false;
    }
  }

  #crossIsland(flow: number): void {
    const { flows } = this.#state;
    const verified = flows.verified[flow];
    if (((verified - flows.islandStart[flow]) | 0) < 0) return;
    if (((flows.islandEnd[flow] - verified) | 0) > 0) flows.verified[flow] = flows.islandEnd[flow];
    flows.flags[flow] &= ~FLOW_ISLAND_KNOWN;
  }

  /** Compares two segments that both cover `verified`, and moves it. Returns false when they differ. */
  #step(flow: number, p: number, s: number, verified: number): boolean {
    const state = this.#state;
    const { flows, primary, secondary } = state;
    const primarySyn = (primary.flags[p] & SEGMENT_SYN) !== 0 ? 1 : 0;
    const secondarySyn = (secondary.flags[s] & SEGMENT_SYN) !== 0 ? 1 : 0;
    // Where in the payload `verified` is: -1 at the SYN, the payload's length at the FIN.
    const primaryAt = ((verified - primary.sequence[p]) | 0) - primarySyn;
    const secondaryAt = ((verified - secondary.sequence[s]) | 0) - secondarySyn;
    const primaryLeft = primary.dataBytes[p] - primaryAt;
    const secondaryLeft = secondary.dataBytes[s] - secondaryAt;
    if (primaryAt < 0 || secondaryAt < 0) {
      if (primaryAt >= 0 || secondaryAt >= 0)
        return this.#differentFlags(flow, verified, "SYN", primaryAt < 0, { primary: p, secondary: s });
      if (primary.meta[p] !== secondary.meta[s]) {
        const [own, theirs] = [primary.meta[p], secondary.meta[s]].map(describeOptions);
        const detail = `the SYNs offer different options: ${own} on the primary, ${theirs} on the secondary`;
        state.diverge(flow, "flags", detail, undefined, { primary: p, secondary: s });
        return false;
      }
      flows.verified[flow] = (verified + 1) | 0;
      return true;
    }
    if (primaryLeft === 0 || secondaryLeft === 0) {
      if (primaryLeft !== 0 || secondaryLeft !== 0) {
        const primaryEnd = primary.data[p] + primaryAt;
        const secondaryEnd = secondary.data[s] + secondaryAt;
        const place = { primary: p, secondary: s, primaryAt: primaryEnd, secondaryAt: secondaryEnd };
        return this.#differentFlags(flow, verified, "FIN", primaryLeft === 0, place);
      }
      flows.verified[flow] = (verified + 1) | 0;
      return true;
    }
    const n = Math.min(primaryLeft, secondaryLeft);
    const primaryData = primary.data[p] + primaryAt;
    const secondaryData = secondary.data[s] + secondaryAt;
    if (state.compareBytes(primaryData, secondaryData, n) !== 0) {
      const place = { primary: p, secondary: s, primaryAt: primaryData, secondaryAt: secondaryData };
      this.#differentPayload(flow, verified, place, n);
      return false;
    }
    if (!this.#sameUrgentData(flow, p, s, verified, n)) return false;
    flows.verified[flow] = (verified + n) | 0;
    return true;
  }

  /**
   * Whether the `n` bytes from `from` on, which both segments hold, end urgent data on both sides or on none.
   * A segment that holds the end of urgent data announces that, or a later end (see TcpUrgent).
   */
  #sameUrgentData(flow: number, p: number, s: number, from: number, n: number): boolean {
    const { primary, secondary } = this.#state;
    const flags = primary.flags[p] | secondary.flags[s];
    if ((flags & SEGMENT_URG) === 0) return true;
    const primaryHas = (primary.flags[p] & SEGMENT_URG) !== 0;
    const secondaryHas = (secondary.flags[s] & SEGMENT_URG) !== 0;
    const primaryPlace = (primary.urgent[p] - from) | 0;
    const secondaryPlace = (secondary.urgent[s] - from) | 0;
    const onPrimary = primaryHas && primaryPlace > 0 && primaryPlace <= n;
    const onSecondary = secondaryHas && secondaryPlace > 0 && secondaryPlace <= n;
    if (onPrimary && (!secondaryHas || secondaryPlace < primaryPlace)) {
      return this.#differentUrgentData(flow, p, s, from, primaryPlace, true);
    }
    if (onSecondary && (!primaryHas || primaryPlace < secondaryPlace)) {
      return this.#differentUrgentData(flow, p, s, from, secondaryPlace, false);
    }
    return true;
  }

  #differentUrgentData(
    flow: number,
    p: number,
    s: number,
    from: number,
    place: number,
    onPrimary: boolean,
  ): boolean {
    const { primary, secondary } = this.#state;
    const at = (from + place - 1) | 0;
    const [side, other] = onPrimary ? ["primary", "secondary"] : ["secondary", "primary"];
    const detail = `the byte at sequence ${at >>> 0} is urgent on the ${side}, not on the ${other}`;
    const where = {
      primary: p,
      secondary: s,
      primaryAt: primary.data[p] + payloadIndex(primary, p, at),
      secondaryAt: secondary.data[s] + payloadIndex(secondary, s, at),
    };
    this.#state.diverge(flow, "flags", detail, this.#streamOffset(flow, at), where);
    return false;
  }

  #differentFlags(
    flow: number,
    at: number,
    flag: string,
    onPrimary: boolean,
    place: DivergencePlace,
  ): boolean {
    const [side, other] = onPrimary ? ["primary", "secondary"] : ["secondary", "primary"];
    const detail = `${flag} on the ${side} at sequence ${at >>> 0}, where the ${other} has data`;
    this.#state.diverge(flow, "flags", detail, this.#streamOffset(flow, at), place);
    return false;
  }

  /** `place` has where the two pieces of `n` bytes begin that stand at sequence number `at`. */
  #differentPayload(flow: number, at: number, place: Required<DivergencePlace>, n: number): void {
    const state = this.#state;
    const index = state.firstDifference(place.primaryAt, place.secondaryAt, n);
    const sequence = (at + index) >>> 0;
    const primaryAt = place.primaryAt + index;
    const secondaryAt = place.secondaryAt + index;
    const detail = `sequence ${sequence} differs: ${state.bytePair(primaryAt, secondaryAt)}`;
    const streamOffset = this.#streamOffset(flow, sequence);
    state.diverge(flow, "payload", detail, streamOffset, { ...place, primaryAt, secondaryAt });
  }

  #streamOffset(flow: number, sequence: number): number | undefined {
    const { flows } = this.#state;
    if ((flows.flags[flow] & FLOW_PRIMARY_ISN_KNOWN) === 0) return undefined;
    return (sequence - flows.primaryIsn[flow] - 1) >>> 0;
  }
}

/** Where in a segment's payload a sequence number is. */
function payloadIndex(pool: SegmentPool, item: number, sequence: number): number {
  return ((sequence - pool.sequence[item]) | 0) - ((pool.flags[item] & SEGMENT_SYN) !== 0 ? 1 : 0);
}

function describeOptions(meta: number): string {
  const scale = (meta >>> 8) & 0xff;
  return [
    `MSS ${meta >>> 16}`,
    scale === 0xff ? "no window scale" : `window scale ${scale}`,
    (meta & 2) !== 0 ? "SACK" : "no SACK",
    (meta & 1) !== 0 ? "timestamps" : "no timestamps",
  ].join(", ");
}
