/**
 * A TCP connection on its flow: opened by a SYN, followed by another on the same ports.
 *
 * The primary's segments of a later connection wait in the flow's queue behind those of the current one, the
 * secondary's in secondaryQueue. Each SYN of the primary that opens another connection is counted in
 * `openings` until its connection becomes the current one.
 */
import {
  FLOW_AWAIT_SYN,
  FLOW_CLOSED,
  FLOW_CLOSED_BEFORE,
  FLOW_FLOOR_KNOWN,
  FLOW_ISLAND_KNOWN,
  FLOW_OPENING_ACK_KNOWN,
  FLOW_PREVIOUS_ISN_KNOWN,
  FLOW_PRIMARY_ISN_KNOWN,
  FLOW_QUEUED_SYN_KNOWN,
  FLOW_RELEASED_ACK_KNOWN,
  FLOW_RELEASED_EDGE_KNOWN,
  FLOW_RELEASED_END_KNOWN,
  FLOW_RELEASED_URGENT_KNOWN,
  FLOW_RESET_SEQUENCE_KNOWN,
  FLOW_SECONDARY_ACK_KNOWN,
  FLOW_SECONDARY_EDGE_KNOWN,
  FLOW_SECONDARY_ISN_KNOWN,
  FLOW_SECONDARY_URGENT_KNOWN,
  FLOW_VERIFIED_KNOWN,
  UNKNOWN_SCALE,
} from "./flow_table.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import { SEGMENT_ACK, SEGMENT_OPENS, SEGMENT_RST, SEGMENT_SYN } from "./segment_pool.ts";
import type { CompareState } from "./state.ts";
import type { TcpResets } from "./tcp_resets.ts";
import type { TcpStream } from "./tcp_stream.ts";
import type { TcpTerms } from "./tcp_terms.ts";
import type { TcpUrgent } from "./tcp_urgent.ts";

/** How far the acknowledgements of two SYNs of the same connection may be apart. */
const SAME_OPENING_BYTES = 65_536;

/** RFC 7323, 2.3: a larger shift count is taken for this one. */
const WINDOW_SCALE_MAX = 14;

/**
 * The result for a secondary's segment: kept or used, given back unused, or refused because the pool is full.
 */
export const ARRIVAL_TAKEN = 0;
const ARRIVAL_DISCARDED = 1;
export const ARRIVAL_REFUSED = 2;
type Arrival = typeof ARRIVAL_TAKEN | typeof ARRIVAL_DISCARDED | typeof ARRIVAL_REFUSED;

export class TcpConnections {
  readonly #state: CompareState;
  readonly #stream: TcpStream;
  readonly #resets: TcpResets;
  readonly #terms: TcpTerms;
  readonly #urgent: TcpUrgent;

  constructor(state: CompareState, stream: TcpStream, resets: TcpResets, terms: TcpTerms, urgent: TcpUrgent) {
    this.#state = state;
    this.#stream = stream;
    this.#resets = resets;
    this.#terms = terms;
    this.#urgent = urgent;
  }

  /** A primary segment was put at the end of its flow's queue. */
  primaryQueued(flow: number, segment: number): void {
    const { flows, primary } = this.#state;
    if ((primary.flags[segment] & SEGMENT_SYN) !== 0) {
      const sequence = primary.sequence[segment];
      if ((flows.flags[flow] & FLOW_QUEUED_SYN_KNOWN) === 0 || flows.queuedSyn[flow] !== sequence) {
        primary.flags[segment] |= SEGMENT_OPENS;
        flows.queuedSyn[flow] = sequence;
        flows.flags[flow] |= FLOW_QUEUED_SYN_KNOWN;
        flows.openings[flow]++;
      }
    }
    if (flows.openings[flow] === 0) this.#stream.track(flow, segment);
  }

  /** A secondary segment of a flow that is not frozen. */
  secondaryArrived(flow: number, slot: number, frame: ParsedFrame): Arrival {
    const state = this.#state;
    const { flows } = state;
    const flags = flows.flags[flow];
    if (state.secondaryQueue.head[flow] >= 0) return this.#postpone(flow, slot, frame);
    if ((frame.flags & SEGMENT_SYN) !== 0) {
      const again = (flags & FLOW_SECONDARY_ISN_KNOWN) !== 0 && flows.secondaryIsn[flow] === frame.sequence;
      if (!again) {
        if ((flags & FLOW_AWAIT_SYN) === 0) return this.#postpone(flow, slot, frame);
        if (!this.#opensSame(flow, frame.flags, frame.sequence, frame.acknowledgement)) {
          state.stats.discardedFrames++;
          state.finishSlot(slot);
          return ARRIVAL_DISCARDED;
        }
        flows.secondaryIsn[flow] = frame.sequence;
        flows.flags[flow] = (flags & ~FLOW_AWAIT_SYN) | FLOW_SECONDARY_ISN_KNOWN;
      }
      translateSyn(frame, flows.primaryIsn[flow]);
    } else if ((flags & FLOW_AWAIT_SYN) !== 0) {
      // A straggler of the connection before, whose acknowledgement means nothing for this one.
      state.stats.discardedFrames++;
      state.finishSlot(slot);
      return ARRIVAL_DISCARDED;
    }
    return this.#accept(flow, slot, frame) ? ARRIVAL_TAKEN : ARRIVAL_REFUSED;
  }

  /** Makes the connection opened by `syn`, the head of the queue, the current one. */
  open(flow: number, syn: number): void {
    const state = this.#state;
    const { flows, primary, secondary, secondaryQueue } = state;
    const isn = primary.sequence[syn];
    this.begin(flow, isn, primary.timeNs[syn]);
    flows.windowScale[flow] = windowScaleOf(primary.meta[syn]);
    flows.verified[flow] = isn;
    flows.flags[flow] |= FLOW_VERIFIED_KNOWN | FLOW_AWAIT_SYN;
    if ((primary.flags[syn] & SEGMENT_ACK) !== 0) {
      flows.openingAck[flow] = primary.acknowledgement[syn];
      flows.flags[flow] |= FLOW_OPENING_ACK_KNOWN;
    }
    flows.openings[flow]--;
    this.#stream.track(flow, syn);
    for (let segment = state.queue.next[syn]; segment >= 0; segment = state.queue.next[segment]) {
      if ((primary.flags[segment] & SEGMENT_OPENS) !== 0) break;
      this.#stream.track(flow, segment);
    }
    // The secondary's connection that waited for this one: up to the SYN of yet another.
    for (let segment = secondaryQueue.head[flow]; segment >= 0; segment = secondaryQueue.head[flow]) {
      const sequence = secondary.sequence[segment];
      const flags = secondary.flags[segment];
      if ((flags & SEGMENT_SYN) !== 0) {
        const awaited = (flows.flags[flow] & FLOW_AWAIT_SYN) !== 0;
        if (awaited && this.#opensSame(flow, flags, sequence, secondary.acknowledgement[segment])) {
          flows.secondaryIsn[flow] = sequence;
          flows.flags[flow] = (flows.flags[flow] & ~FLOW_AWAIT_SYN) | FLOW_SECONDARY_ISN_KNOWN;
        } else if (!awaited && flows.secondaryIsn[flow] !== sequence) {
          return;
        }
        secondary.end[segment] = (secondary.end[segment] - sequence + isn) | 0;
        secondary.sequence[segment] = isn;
      }
      secondaryQueue.remove(flow, segment);
      if ((flows.flags[flow] & FLOW_AWAIT_SYN) === 0) {
        this.#acceptWaiting(flow, segment);
      } else {
        state.stats.discardedFrames++;
        state.finish(segment);
      }
    }
  }

  /**
   * The start of a connection whose first sequence number on the primary is `isn`: nothing of the one before
   * counts.
   */
  begin(flow: number, isn: number, timeNs: number): void {
    const { flows } = this.#state;
    if ((flows.flags[flow] & FLOW_SECONDARY_ISN_KNOWN) !== 0) {
      flows.previousIsn[flow] = flows.secondaryIsn[flow];
      flows.flags[flow] |= FLOW_PREVIOUS_ISN_KNOWN;
    }
    flows.flags[flow] &= ~(
      FLOW_OPENING_ACK_KNOWN |
      FLOW_VERIFIED_KNOWN |
      FLOW_FLOOR_KNOWN |
      FLOW_ISLAND_KNOWN |
      FLOW_SECONDARY_ACK_KNOWN |
      FLOW_SECONDARY_ISN_KNOWN |
      FLOW_AWAIT_SYN |
      FLOW_RELEASED_END_KNOWN |
      FLOW_RELEASED_ACK_KNOWN |
      FLOW_SECONDARY_EDGE_KNOWN |
      FLOW_RELEASED_EDGE_KNOWN |
      FLOW_SECONDARY_URGENT_KNOWN |
      FLOW_RELEASED_URGENT_KNOWN |
      FLOW_RESET_SEQUENCE_KNOWN |
      FLOW_CLOSED |
      FLOW_CLOSED_BEFORE
    );
    flows.flags[flow] |= FLOW_PRIMARY_ISN_KNOWN;
    flows.primaryIsn[flow] = isn;
    flows.windowScale[flow] = UNKNOWN_SCALE;
    flows.openedNs[flow] = timeNs;
  }

  /** Keeps a secondary segment for a connection that the primary has not opened yet. */
  #postpone(flow: number, slot: number, frame: ParsedFrame): Arrival {
    const segment = this.#state.wait(flow, slot, frame);
    if (segment < 0) return ARRIVAL_REFUSED;
    this.#state.secondaryQueue.push(flow, segment);
    return ARRIVAL_TAKEN;
  }

  /** Takes a segment of the secondary's current connection that has no pool entry yet. */
  #accept(flow: number, slot: number, frame: ParsedFrame): boolean {
    const state = this.#state;
    if ((frame.flags & SEGMENT_RST) !== 0) {
      if (
        this.#resets.isRepeated(flow, frame.flags, frame.sequence, frame.acknowledgement, frame.dataBytes)
      ) {
        state.finishSlot(slot);
      } else {
        const segment = state.wait(flow, slot, frame);
        if (segment < 0) return false;
        state.secondaryResets.push(flow, segment);
      }
      this.#acknowledge(flow, frame.flags, frame.sequence, frame.acknowledgement, -1);
      return true;
    }
    this.#urgent.noteSecondary(flow, frame.flags, frame.sequence, frame.urgent);
    const needed = frame.end !== frame.sequence && !this.#stream.isBelowVerified(flow, frame.end);
    if (needed) {
      const segment = state.wait(flow, slot, frame);
      if (segment < 0) return false;
      this.#stream.insertSecondary(flow, segment);
    } else {
      state.finishSlot(slot);
    }
    this.#acknowledge(flow, frame.flags, frame.sequence, frame.acknowledgement, frame.window);
    return true;
  }

  /** accept() for a segment that has a pool entry. */
  #acceptWaiting(flow: number, segment: number): void {
    const state = this.#state;
    const { secondary } = state;
    const flags = secondary.flags[segment];
    const { sequence, acknowledgement, window } = secondary;
    this.#acknowledge(flow, flags, sequence[segment], acknowledgement[segment], window[segment]);
    this.#urgent.noteSecondary(flow, flags, sequence[segment], secondary.urgent[segment]);
    if ((flags & SEGMENT_RST) !== 0) {
      state.secondaryResets.push(flow, segment);
      return;
    }
    if (secondary.end[segment] === secondary.sequence[segment]) state.finish(segment);
    else this.#stream.insertSecondary(flow, segment);
  }

  /** Notes how far the secondary has acknowledged its current connection, and what window it offers. */
  #acknowledge(flow: number, flags: number, sequence: number, acknowledgement: number, window: number): void {
    if ((flags & SEGMENT_ACK) === 0) return;
    // What an RST without a connection acknowledges is what it refuses.
    if ((flags & SEGMENT_RST) !== 0 && sequence === 0) return;
    this.#terms.noteOffer(flow, flags, acknowledgement, window);
    const { flows } = this.#state;
    const known = (flows.flags[flow] & FLOW_SECONDARY_ACK_KNOWN) !== 0;
    if (known && ((acknowledgement - flows.secondaryAck[flow]) | 0) <= 0) return;
    flows.secondaryAck[flow] = acknowledgement;
    flows.flags[flow] |= FLOW_SECONDARY_ACK_KNOWN;
  }

  /**
   * Whether a SYN of the secondary is its part of the connection just opened, rather than a repetition of one
   * before: not that number again, and about the same acknowledgement. (Only about: with TCP fast open one
   * side may acknowledge data too.)
   */
  #opensSame(flow: number, flags: number, sequence: number, acknowledgement: number): boolean {
    const { flows } = this.#state;
    const state = flows.flags[flow];
    if ((state & FLOW_PREVIOUS_ISN_KNOWN) !== 0 && flows.previousIsn[flow] === sequence) return false;
    if ((state & FLOW_OPENING_ACK_KNOWN) === 0 || (flags & SEGMENT_ACK) === 0) return true;
    const apart = (acknowledgement - flows.openingAck[flow]) | 0;
    return apart > -SAME_OPENING_BYTES && apart < SAME_OPENING_BYTES;
  }
}

/** From the options of a SYN (see ParsedFrame.meta). */
function windowScaleOf(meta: number): number {
  const scale = (meta >>> 8) & 0xff;
  // Without the option windows are not scaled.
  return scale === 0xff ? 0 : Math.min(scale, WINDOW_SCALE_MAX);
}

/** Gives the secondary's SYN the primary's number. */
function translateSyn(frame: ParsedFrame, isn: number): void {
  frame.end = (frame.end - frame.sequence + isn) | 0;
  frame.sequence = isn;
}
