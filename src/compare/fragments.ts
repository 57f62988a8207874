/**
 * IP fragments (RFC 791 section 3.2, RFC 8200 section 4.5): compared as the datagrams they make up, released
 * as they were sent.
 *
 * The problem: the two guests number their datagrams differently and may cut them differently, or one cuts
 * and the other does not. The insight: only the first fragment says which flow a datagram belongs to, so the
 * others have to wait with it, but once the datagram is complete it is one of that flow like any other, which
 * happens to lie in several places. So a fragment first goes to a waiting room, a flow by addresses and
 * protocol. When its datagram is complete, its fragments move to the flow that the first one names: to TCP
 * each one as a segment of its own, else as pieces of one datagram. There they take their place as if all of
 * them had just arrived.
 *
 * Fragments that cannot be joined go to a flow of their own, where frames are compared one by one in order.
 * These are fragments without a first one before them (a checkpoint covered it, or the guest sends the last
 * one first). They are also fragments that overlap or repeat others, are empty, or end where no datagram can
 * (teardrop; RFC 5722 forbids them). The third kind are datagrams whose first fragment lacks some of the
 * headers (RFC 7112 forbids it).
 *
 * There is no state but the fragments in the list of the waiting room, and the identification of the last one
 * that was compared as it is. A datagram that never becomes complete runs into the timeout, and a checkpoint
 * releases what there is of it.
 */
import type { DatagramFlows } from "./datagram.ts";
import { KEY_FRAGMENT, KEY_FRAGMENT_AS_IS, KEY_KIND, KIND_DATAGRAM, KIND_TCP } from "./flow_key.ts";
import {
  FLOW_FROZEN,
  FLOW_PASSTHROUGH,
  FLOW_PRIMARY_STRAY_KNOWN,
  FLOW_SECONDARY_STRAY_KNOWN,
  FLOW_TCP,
} from "./flow_table.ts";
import type { LinkedLists } from "./linked_lists.ts";
import { parseRecord } from "./parse.ts";
import { ParsedFrame } from "./parsed_frame.ts";
import {
  SEGMENT_BROKEN,
  SEGMENT_FIN,
  SEGMENT_FIRST_PIECE,
  SEGMENT_PIECE,
  SEGMENT_RST,
  SEGMENT_SYN,
  type SegmentPool,
} from "./segment_pool.ts";
import type { CompareState } from "./state.ts";
import type { TcpFlows } from "./tcp.ts";

/** Fragments of incomplete datagrams in one waiting room; each new one is compared with all of them. */
const WAITING_MAX = 2048;
const DATAGRAM_BYTES_MAX = 65_535;

/** What examine() says besides the length of a complete datagram. */
const INCOMPLETE = 0;
/** Not to be put together. */
const AS_IS = -1;

export class FragmentFlows {
  readonly #datagram = new ParsedFrame();
  readonly #piece = new ParsedFrame();

  readonly #state: CompareState;
  readonly #tcp: TcpFlows;
  readonly #datagrams: DatagramFlows;
  /** The flow of a frame, made if need be; -1 if there is no room. */
  readonly #flowOf: (frame: ParsedFrame) => number;

  constructor(
    state: CompareState,
    tcp: TcpFlows,
    datagrams: DatagramFlows,
    flowOf: (frame: ParsedFrame) => number,
  ) {
    this.#state = state;
    this.#tcp = tcp;
    this.#datagrams = datagrams;
    this.#flowOf = flowOf;
  }

  /** A primary fragment was put at the end of the waiting room's queue. */
  primaryAdded(flow: number, item: number): void {
    const state = this.#state;
    if ((state.flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    const bytes = this.#examinePrimary(flow, item);
    if (bytes !== INCOMPLETE) this.#deliverPrimary(flow, state.primary.identification[item], bytes);
    else if (state.flows.held[flow] > WAITING_MAX) this.#tooMany(flow);
  }

  /** A secondary fragment was put at the end of the waiting room's secondaryQueue. */
  secondaryAdded(flow: number, item: number): void {
    const state = this.#state;
    const { flows, secondary } = state;
    const identification = secondary.identification[item];
    let bytes = AS_IS;
    if (
      (flows.flags[flow] & FLOW_SECONDARY_STRAY_KNOWN) === 0 ||
      flows.secondaryStray[flow] !== identification
    ) {
      bytes = this.#examine(secondary, state.secondaryQueue, flow, item);
    }
    if (bytes === AS_IS) {
      flows.flags[flow] |= FLOW_SECONDARY_STRAY_KNOWN;
      flows.secondaryStray[flow] = identification;
    }
    if (bytes !== INCOMPLETE) this.#deliverSecondary(flow, identification, bytes);
    else if (state.flows.pending[flow] > WAITING_MAX) this.#tooMany(flow);
  }

  /** After a checkpoint. Both sides continue from the same place in the datagrams that it cut through. */
  restart(flow: number): void {
    this.#state.flows.flags[flow] &= ~(FLOW_PRIMARY_STRAY_KNOWN | FLOW_SECONDARY_STRAY_KNOWN);
  }

  /**
   * After a checkpoint: the secondary will send again what a broken datagram of this flow has left, and no
   * more, so that it can be compared as it is.
   */
  salvage(flow: number): void {
    const state = this.#state;
    const datagram = this.#datagram;
    const { primary, queue, flows } = state;
    let item = queue.head[flow];
    while (item >= 0) {
      const following = queue.next[item];
      if ((primary.flags[item] & SEGMENT_BROKEN) !== 0) {
        parseRecord(state.primaryBytes, primary.record[item], datagram);
        datagram.key[KEY_KIND] |= KEY_FRAGMENT_AS_IS;
        const target = this.#flowOf(datagram);
        // Else it can only wait for the next checkpoint.
        if (target >= 0 && flows.overflowed[target] === 0) {
          const slot = primary.slot[item];
          state.unhold(item);
          state.hold(target, slot, datagram);
        }
      }
      item = following;
    }
  }

  /** Looks at everything that waits once more: a checkpoint may have made room where it could not go. */
  run(flow: number): void {
    const state = this.#state;
    const { primary, queue } = state;
    let item = queue.head[flow];
    while (item >= 0 && (state.flows.flags[flow] & FLOW_FROZEN) === 0) {
      const bytes = this.#examinePrimary(flow, item);
      if (bytes === INCOMPLETE) {
        item = queue.next[item];
        continue;
      }
      const identification = primary.identification[item];
      let following = queue.next[item];
      while (following >= 0 && primary.identification[following] === identification) {
        following = queue.next[following];
      }
      this.#deliverPrimary(flow, identification, bytes);
      item = following;
    }
  }

  #examinePrimary(flow: number, item: number): number {
    const { flows, primary, queue } = this.#state;
    const identification = primary.identification[item];
    let bytes = AS_IS;
    if ((flows.flags[flow] & FLOW_PRIMARY_STRAY_KNOWN) === 0 || flows.primaryStray[flow] !== identification) {
      bytes = this.#examine(primary, queue, flow, item);
    }
    if (bytes === AS_IS) {
      flows.flags[flow] |= FLOW_PRIMARY_STRAY_KNOWN;
      flows.primaryStray[flow] = identification;
    }
    return bytes;
  }

  /** Bytes of the fragmented part if this fragment's datagram is complete; else INCOMPLETE or AS_IS. */
  #examine(pool: SegmentPool, list: LinkedLists, flow: number, item: number): number {
    const { identification, dataBytes } = pool;
    if (!isSound(pool, item)) return AS_IS;
    const from = placeOf(pool, item);
    const end = from + dataBytes[item];
    let held = 0;
    let highest = 0;
    let total = -1;
    let begun = false;
    for (let other = list.head[flow]; other >= 0; other = list.next[other]) {
      if (identification[other] !== identification[item]) continue;
      const otherFrom = placeOf(pool, other);
      const otherEnd = otherFrom + dataBytes[other];
      if (other !== item && from < otherEnd && otherFrom < end) return AS_IS;
      if (isLast(pool, other)) {
        if (total >= 0) return AS_IS;
        total = otherEnd;
      }
      if (otherFrom === 0) begun = true;
      if (otherEnd > highest) highest = otherEnd;
      held += dataBytes[other];
    }
    if (!begun) return AS_IS;
    if (total < 0) return INCOMPLETE;
    if (highest > total) return AS_IS;
    return held === total ? total : INCOMPLETE;
  }

  #deliverPrimary(flow: number, identification: number, bytes: number): void {
    const state = this.#state;
    const { primary, queue, flows } = state;
    const count = this.#understand(primary, queue, state.primaryBytes, flow, identification, bytes);
    const target = this.#flowOf(this.#datagram);
    if (target < 0) {
      state.diverge(flow, "overflow", "a datagram in fragments found the flow table full");
      return;
    }
    const flags = flows.flags[target];
    if ((flags & FLOW_PASSTHROUGH) === 0) {
      // What was not tracked comes first, so this waits here for the same checkpoint.
      if (flows.overflowed[target] > 0) return;
      if (flows.held[target] + count > state.limits.heldFramesPerFlowMax) {
        state.diverge(
          target,
          "overflow",
          `more than ${state.limits.heldFramesPerFlowMax} frames of it are held`,
        );
        return;
      }
    }
    flows.lastSeenNs[target] = state.nowNs;
    const datagram = this.#datagram;
    const piece = this.#piece;
    const isWhole = bytes !== AS_IS && datagram.kind !== KIND_TCP;
    const head = this.#headerBytes(primary, queue, flow, identification);
    let first = -1;
    let item = queue.head[flow];
    while (item >= 0) {
      const following = queue.next[item];
      if (primary.identification[item] === identification) {
        if ((flags & FLOW_PASSTHROUGH) !== 0) {
          state.stats.releasedPassthrough++;
          state.release(item);
        } else {
          this.#cut(primary, item, head, bytes);
          const slot = primary.slot[item];
          state.unhold(item);
          // There is room: the entry just given back.
          const moved = state.hold(target, slot, piece);
          if (isWhole) first = link(primary, first, moved);
          else if ((flags & FLOW_TCP) !== 0) this.#tcp.primaryAdded(target, moved);
        }
      }
      item = following;
    }
    if ((flags & (FLOW_TCP | FLOW_PASSTHROUGH)) === 0) this.#datagrams.run(target);
  }

  #deliverSecondary(flow: number, identification: number, bytes: number): void {
    const state = this.#state;
    const { secondary, secondaryQueue, flows } = state;
    const count = this.#understand(
      secondary,
      secondaryQueue,
      state.secondaryBytes,
      flow,
      identification,
      bytes,
    );
    const target = this.#flowOf(this.#datagram);
    if (target < 0) {
      state.diverge(flow, "overflow", "a datagram in fragments found the flow table full");
      return;
    }
    const datagram = this.#datagram;
    const piece = this.#piece;
    const isTcp = datagram.kind === KIND_TCP;
    if ((flows.flags[target] & FLOW_PASSTHROUGH) === 0) {
      const limit = state.limits.pendingFramesPerFlowMax;
      if (flows.pending[target] + count > limit) {
        const detail = `more than ${limit} frames of the secondary wait for the primary's`;
        state.diverge(target, "overflow", detail);
      }
    }
    flows.lastSeenNs[target] = state.nowNs;
    const head = this.#headerBytes(secondary, secondaryQueue, flow, identification);
    let first = -1;
    let item = secondaryQueue.head[flow];
    while (item >= 0) {
      const following = secondaryQueue.next[item];
      if (secondary.identification[item] === identification) {
        secondaryQueue.remove(flow, item);
        if ((flows.flags[target] & (FLOW_FROZEN | FLOW_PASSTHROUGH)) !== 0) {
          if ((flows.flags[target] & FLOW_FROZEN) !== 0) state.stats.discardedFrames++;
          state.finish(item);
        } else {
          this.#cut(secondary, item, head, bytes);
          const slot = secondary.slot[item];
          state.unwait(item);
          // There is room in either case: the entry just given back.
          if (isTcp) {
            this.#tcp.secondaryAdded(target, slot, piece);
          } else {
            const moved = state.wait(target, slot, piece);
            secondaryQueue.push(target, moved);
            if (bytes !== AS_IS) first = link(secondary, first, moved);
          }
        }
      }
      item = following;
    }
    if (!isTcp) this.#datagrams.run(target);
  }

  /**
   * Leaves in `datagram` what the fragments of this identification are: the datagram that they make up, or
   * else frames to be compared as they are. Returns their number.
   */
  #understand(
    pool: SegmentPool,
    list: LinkedLists,
    memory: Uint8Array,
    flow: number,
    identification: number,
    bytes: number,
  ): number {
    const datagram = this.#datagram;
    let count = 0;
    let first = -1;
    for (let item = list.head[flow]; item >= 0; item = list.next[item]) {
      if (pool.identification[item] !== identification) continue;
      count++;
      if (first < 0 || placeOf(pool, item) < placeOf(pool, first)) first = item;
    }
    const record = pool.record[first];
    if (bytes !== AS_IS) {
      parseRecord(memory, record, datagram, bytes);
      if (datagram.kind === KIND_DATAGRAM) return count;
      // A reset has no place in the stream that its pieces could have.
      if (datagram.kind === KIND_TCP && (datagram.flags & SEGMENT_RST) === 0) return count;
    }
    parseRecord(memory, record, datagram);
    datagram.key[KEY_KIND] |= KEY_FRAGMENT_AS_IS;
    return count;
  }

  /** Bytes at the beginning of the fragmented part that are not compared, because they are headers. */
  #headerBytes(pool: SegmentPool, list: LinkedLists, flow: number, identification: number): number {
    for (let item = list.head[flow]; item >= 0; item = list.next[item]) {
      if (pool.identification[item] === identification && placeOf(pool, item) === 0) {
        return this.#datagram.data - pool.data[item];
      }
    }
    return 0;
  }

  /** Leaves in `piece` what this fragment is of the datagram: a segment, a piece, or a frame as it is. */
  #cut(pool: SegmentPool, item: number, headerBytes: number, bytes: number): void {
    const datagram = this.#datagram;
    const piece = this.#piece;
    const place = placeOf(pool, item);
    piece.record = pool.record[item];
    piece.timeNs = pool.timeNs[item];
    piece.data = pool.data[item];
    piece.dataBytes = pool.dataBytes[item];
    piece.skipAt = pool.skipAt[item];
    piece.skipBytes = pool.skipBytes[item];
    piece.meta = pool.meta[item];
    piece.identification = pool.identification[item];
    piece.flags = 0;
    piece.sequence = 0;
    piece.end = 0;
    piece.acknowledgement = 0;
    if (bytes === AS_IS) return;
    piece.meta = 0;
    piece.skipAt = 0;
    piece.skipBytes = 0;
    if (place === 0) {
      piece.data += headerBytes;
      piece.dataBytes -= headerBytes;
      piece.skipAt = datagram.skipAt;
      piece.skipBytes = datagram.skipBytes;
    }
    if (datagram.kind !== KIND_TCP) {
      piece.flags = SEGMENT_PIECE;
      piece.sequence = place;
      return;
    }
    const syn = (datagram.flags & SEGMENT_SYN) !== 0 ? 1 : 0;
    const last = place + pool.dataBytes[item] === bytes;
    piece.kind = KIND_TCP;
    piece.flags = datagram.flags;
    piece.sequence = datagram.sequence;
    if (place === 0) piece.meta = datagram.meta;
    else {
      piece.flags &= ~SEGMENT_SYN;
      piece.sequence = (datagram.sequence + syn + place - headerBytes) | 0;
    }
    if (!last) piece.flags &= ~SEGMENT_FIN;
    const flagBytes = (place === 0 ? syn : 0) + (piece.flags & SEGMENT_FIN);
    piece.end = (piece.sequence + piece.dataBytes + flagBytes) | 0;
    piece.acknowledgement = datagram.acknowledgement;
    piece.urgent = datagram.urgent;
  }

  #tooMany(flow: number): void {
    this.#state.diverge(flow, "overflow", `more than ${WAITING_MAX} fragments of incomplete datagrams wait`);
  }
}

/** Whether the key is that of a waiting room. */
export function isWaitingRoom(key: Int32Array): boolean {
  return (key[KEY_KIND] & (KEY_FRAGMENT | KEY_FRAGMENT_AS_IS)) === KEY_FRAGMENT;
}

/** Byte offset of a fragment in the fragmented part. */
function placeOf(pool: SegmentPool, item: number): number {
  return (pool.meta[item] >> 1) * 8;
}

function isLast(pool: SegmentPool, item: number): boolean {
  return (pool.meta[item] & 1) === 0;
}

function isSound(pool: SegmentPool, item: number): boolean {
  const bytes = pool.dataBytes[item];
  if (bytes === 0 || placeOf(pool, item) + bytes > DATAGRAM_BYTES_MAX) return false;
  return isLast(pool, item) || bytes % 8 === 0;
}

/**
 * Adds an item to the datagram whose first item in the list is `head` (-1: it is the first). Returns that.
 */
function link(pool: SegmentPool, head: number, item: number): number {
  const { nextPiece, firstPiece, pieces, sequence } = pool;
  if (head < 0) {
    pool.flags[item] |= SEGMENT_FIRST_PIECE;
    pieces[item] = 1;
    firstPiece[item] = item;
    nextPiece[item] = -1;
    return item;
  }
  pieces[head]++;
  let before = -1;
  let after = firstPiece[head];
  while (after >= 0 && sequence[after] < sequence[item]) {
    before = after;
    after = nextPiece[after];
  }
  nextPiece[item] = after;
  if (before < 0) firstPiece[head] = item;
  else nextPiece[before] = item;
  return head;
}
