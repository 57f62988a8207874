/**
 * Flows whose frames are compared one by one: UDP, ICMP, other IP protocols, frames that are not IP, and
 * frames that could not be understood. The n-th of the primary must equal the n-th of the secondary;
 * whichever comes first waits.
 *
 * A datagram is one item of the pool, or several (SEGMENT_PIECE) when it came in fragments; FragmentFlows
 * puts those in the lists once the datagram is complete. The two sides need not have cut it at the same
 * places.
 */
import { KIND_UNPARSED } from "./flow_key.ts";
import { FLOW_FROZEN, FLOW_IGNORED_SET_KNOWN } from "./flow_table.ts";
import { SEGMENT_BROKEN, SEGMENT_FIRST_PIECE, SEGMENT_PIECE, type SegmentPool } from "./segment_pool.ts";
import type { CompareState } from "./state.ts";

const UDP_HEADER_BYTES = 8;

export class DatagramFlows {
  // Where the comparison of two datagrams has come to: the piece on each side and the place of its first
  // byte.
  #primaryPiece = -1;
  #primaryPieceAt = 0;
  #secondaryPiece = -1;
  #secondaryPieceAt = 0;
  // Where it found a difference: the place in the datagram, in the record memories, and the bytes compared
  // there.
  #differsAt = 0;
  #primaryAt = 0;
  #secondaryAt = 0;
  #runBytes = 0;

  readonly #state: CompareState;

  constructor(state: CompareState) {
    this.#state = state;
  }

  /** Compares and releases what it can. Call after a frame was added on either side. */
  run(flow: number): void {
    const state = this.#state;
    const { flows, queue, secondaryQueue } = state;
    if ((flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    for (;;) {
      const primary = queue.head[flow];
      const secondary = secondaryQueue.head[flow];
      if (primary < 0 || secondary < 0) return;
      if (!this.#isCovered(primary)) return;
      if (!this.#equal(flow, primary, secondary)) {
        this.#diverge(flow, primary, secondary);
        return;
      }
      this.#finish(flow, secondary);
      this.#release(flow, primary);
    }
  }

  /**
   * After a checkpoint: marks the fragments that are left of datagrams that it cut through. True if there are
   * any.
   */
  restart(flow: number): boolean {
    const { queue, primary } = this.#state;
    let broken = false;
    let item = queue.head[flow];
    while (item >= 0) {
      if ((primary.flags[item] & SEGMENT_PIECE) === 0) {
        item = queue.next[item];
        continue;
      }
      const begin = item;
      const whole = (primary.flags[begin] & SEGMENT_FIRST_PIECE) !== 0 ? primary.pieces[begin] : 0;
      let count = 0;
      do {
        count++;
        item = queue.next[item];
      } while (item >= 0 && (primary.flags[item] & (SEGMENT_PIECE | SEGMENT_FIRST_PIECE)) === SEGMENT_PIECE);
      if (count === whole) continue;
      broken = true;
      for (let piece = begin; piece !== item; piece = queue.next[piece])
        primary.flags[piece] |= SEGMENT_BROKEN;
    }
    return broken;
  }

  /** Whether a datagram of the primary may be compared: all of it is older than the horizon. */
  #isCovered(head: number): boolean {
    const { primary, queue, horizonNs } = this.#state;
    if (primary.timeNs[head] > horizonNs) return false;
    const flags = primary.flags[head];
    if ((flags & SEGMENT_PIECE) === 0) return true;
    if ((flags & SEGMENT_BROKEN) !== 0) return false;
    let item = head;
    for (let left = primary.pieces[head]; left > 0; left--) {
      if (primary.timeNs[item] > horizonNs) return false;
      item = queue.next[item];
    }
    return true;
  }

  #finish(flow: number, head: number): void {
    const state = this.#state;
    for (let left = countOf(state.secondary, head); left > 0; left--) {
      const item = state.secondaryQueue.head[flow];
      state.secondaryQueue.remove(flow, item);
      state.finish(item);
    }
  }

  #release(flow: number, head: number): void {
    const state = this.#state;
    for (let left = countOf(state.primary, head); left > 0; left--) {
      state.releaseCompared(state.queue.head[flow]);
    }
  }

  #equal(flow: number, primary: number, secondary: number): boolean {
    const state = this.#state;
    const p = state.primary;
    const s = state.secondary;
    const inPieces = ((p.flags[primary] | s.flags[secondary]) & SEGMENT_PIECE) !== 0;
    if (!inPieces && (state.flows.flags[flow] & FLOW_IGNORED_SET_KNOWN) === 0 && p.skipBytes[primary] === 0) {
      const bytes = p.dataBytes[primary];
      if (bytes !== s.dataBytes[secondary] || p.meta[primary] !== s.meta[secondary]) return false;
      if (s.skipBytes[secondary] !== 0) return false;
      return state.compareBytes(p.data[primary], s.data[secondary], bytes) === 0;
    }
    const bytes = bytesOf(p, primary);
    if (bytes !== bytesOf(s, secondary) || !this.#sameShape(primary, secondary)) return false;
    return this.#sameBytes(flow, primary, secondary, bytes);
  }

  #sameShape(primary: number, secondary: number): boolean {
    const p = this.#state.primary;
    const s = this.#state.secondary;
    const primaryFirst = firstOf(p, primary);
    const secondaryFirst = firstOf(s, secondary);
    return (
      p.meta[primaryFirst] === s.meta[secondaryFirst] &&
      p.skipAt[primaryFirst] === s.skipAt[secondaryFirst] &&
      p.skipBytes[primaryFirst] === s.skipBytes[secondaryFirst]
    );
  }

  /** Compares the first `bytes` bytes that count; where they differ is then in this object's fields. */
  #sameBytes(flow: number, primary: number, secondary: number, bytes: number): boolean {
    const state = this.#state;
    const p = state.primary;
    this.#begin(primary, secondary);
    const first = this.#primaryPiece;
    const skipBytes = p.skipBytes[first];
    let from = 0;
    if (skipBytes !== 0) {
      if (!this.#sameSpan(0, Math.min(p.skipAt[first], bytes))) return false;
      from = p.skipAt[first] + skipBytes;
    }
    if ((state.flows.flags[flow] & FLOW_IGNORED_SET_KNOWN) !== 0 && state.rules !== undefined) {
      const ranges = state.rules.ignoredBytes(state.flows.ignoredSet[flow]);
      // A datagram whose header could not be left out begins with it. Offloaded ones stand one behind the
      // other.
      const payload = skipBytes !== 0 ? UDP_HEADER_BYTES : 0;
      const size = p.meta[first] > 0 ? p.meta[first] : bytes;
      for (let datagram = payload; datagram < bytes; datagram += size) {
        const end = Math.min(datagram + size, bytes);
        for (let i = 0; i < ranges.length; i += 2) {
          const ignoredFrom = Math.min(datagram + ranges[i], end);
          if (!this.#sameSpan(from, ignoredFrom)) return false;
          from = Math.min(datagram + ranges[i + 1], end);
        }
      }
    }
    return this.#sameSpan(from, bytes);
  }

  #begin(primary: number, secondary: number): void {
    this.#primaryPiece = firstOf(this.#state.primary, primary);
    this.#primaryPieceAt = 0;
    this.#secondaryPiece = firstOf(this.#state.secondary, secondary);
    this.#secondaryPieceAt = 0;
  }

  /** Compares the bytes [from, to) of the two datagrams; spans must be given in ascending order. */
  #sameSpan(from: number, to: number): boolean {
    const state = this.#state;
    const p = state.primary;
    const s = state.secondary;
    for (let at = from; at < to; at += this.#runBytes) {
      this.#move(at);
      const primaryLeft = this.#primaryPieceAt + p.dataBytes[this.#primaryPiece] - at;
      const secondaryLeft = this.#secondaryPieceAt + s.dataBytes[this.#secondaryPiece] - at;
      this.#runBytes = Math.min(to - at, primaryLeft, secondaryLeft);
      if (state.compareBytes(this.#primaryAt, this.#secondaryAt, this.#runBytes) === 0) continue;
      this.#differsAt = at;
      return false;
    }
    return true;
  }

  /** Goes to place `at`, which may be just behind the last byte. */
  #move(at: number): void {
    const { primary, secondary } = this.#state;
    let piece = this.#primaryPiece;
    while (isPassed(primary, piece, at - this.#primaryPieceAt)) {
      this.#primaryPieceAt += primary.dataBytes[piece];
      piece = primary.nextPiece[piece];
    }
    this.#primaryPiece = piece;
    this.#primaryAt = primary.data[piece] + at - this.#primaryPieceAt;
    piece = this.#secondaryPiece;
    while (isPassed(secondary, piece, at - this.#secondaryPieceAt)) {
      this.#secondaryPieceAt += secondary.dataBytes[piece];
      piece = secondary.nextPiece[piece];
    }
    this.#secondaryPiece = piece;
    this.#secondaryAt = secondary.data[piece] + at - this.#secondaryPieceAt;
  }

  #diverge(flow: number, primary: number, secondary: number): void {
    const state = this.#state;
    const p = state.primary;
    const s = state.secondary;
    const bytes = bytesOf(p, primary);
    const secondaryBytes = bytesOf(s, secondary);
    const unparsed = state.flows.kind(flow) === KIND_UNPARSED;
    const common = Math.min(bytes, secondaryBytes);
    const prefixSame = this.#sameBytes(flow, primary, secondary, common);
    if (prefixSame) this.#move(common);
    const index = prefixSame ? 0 : state.firstDifference(this.#primaryAt, this.#secondaryAt, this.#runBytes);
    const place = {
      primary: this.#primaryPiece,
      secondary: this.#secondaryPiece,
      primaryAt: this.#primaryAt + index,
      secondaryAt: this.#secondaryAt + index,
    };
    if (bytes !== secondaryBytes) {
      const detail = `the primary sent ${bytes} bytes, the secondary ${secondaryBytes}`;
      state.diverge(flow, unparsed ? "unparsed" : "length", detail, undefined, place);
    } else if (prefixSame) {
      const primaryMeta = p.meta[firstOf(p, primary)];
      const secondaryMeta = s.meta[firstOf(s, secondary)];
      const sent = `the primary sent another fragment or segmentation (${primaryMeta})`;
      const detail = `${sent} than the secondary (${secondaryMeta})`;
      state.diverge(flow, unparsed ? "unparsed" : "length", detail, undefined, {
        primary: place.primary,
        secondary: place.secondary,
      });
    } else {
      const pair = state.bytePair(place.primaryAt, place.secondaryAt);
      const detail = `byte ${this.#differsAt + index} of ${bytes} differs: ${pair}`;
      state.diverge(flow, unparsed ? "unparsed" : "payload", detail, undefined, place);
    }
  }
}

/** Items that make up the datagram at the head of a list. */
function countOf(pool: SegmentPool, head: number): number {
  return (pool.flags[head] & SEGMENT_PIECE) === 0 ? 1 : pool.pieces[head];
}

/** The item that its first bytes are in. */
function firstOf(pool: SegmentPool, head: number): number {
  return (pool.flags[head] & SEGMENT_PIECE) === 0 ? head : pool.firstPiece[head];
}

function bytesOf(pool: SegmentPool, head: number): number {
  if ((pool.flags[head] & SEGMENT_PIECE) === 0) return pool.dataBytes[head];
  let bytes = 0;
  for (let piece = pool.firstPiece[head]; piece >= 0; piece = pool.nextPiece[piece]) {
    bytes += pool.dataBytes[piece];
  }
  return bytes;
}

/** Whether the byte at `index` from the beginning of this piece is in a later one. */
function isPassed(pool: SegmentPool, piece: number, index: number): boolean {
  if (index < pool.dataBytes[piece]) return false;
  return (pool.flags[piece] & SEGMENT_PIECE) !== 0 && pool.nextPiece[piece] >= 0;
}
