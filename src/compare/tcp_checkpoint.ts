/**
 * What a checkpoint makes of a TCP flow, and what has to be noted for it as segments leave.
 *
 * After a checkpoint both stacks are equal. What the primary had sent before it is covered, so the common
 * state is the highest end, acknowledgement, window edge and urgent data that was released. These are kept in
 * the `released*` columns all along and become the secondary's at restart().
 */
import {
  FLOW_AWAIT_SYN,
  FLOW_CLOSED,
  FLOW_FLOOR_KNOWN,
  FLOW_FROZEN,
  FLOW_ISLAND_KNOWN,
  FLOW_PRIMARY_ISN_KNOWN,
  FLOW_QUEUED_SYN_KNOWN,
  FLOW_RELEASED_ACK_KNOWN,
  FLOW_RELEASED_END_KNOWN,
  FLOW_RESET_SEQUENCE_KNOWN,
  FLOW_SECONDARY_ACK_KNOWN,
  FLOW_SECONDARY_EDGE_KNOWN,
  FLOW_SECONDARY_ISN_KNOWN,
  FLOW_VERIFIED_KNOWN,
} from "./flow_table.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_OPENS,
  SEGMENT_RST,
  SEGMENT_SORTED,
  SEGMENT_SYN,
  SEGMENT_TRACKED,
  SEGMENT_VERIFIED,
} from "./segment_pool.ts";
import { SentSegment } from "./sent_segment.ts";
import type { CompareState } from "./state.ts";
import type { TcpConnections } from "./tcp_connection.ts";
import type { TcpStream } from "./tcp_stream.ts";
import type { TcpTerms } from "./tcp_terms.ts";
import type { TcpUrgent } from "./tcp_urgent.ts";

export class TcpCheckpoints {
  readonly #state: CompareState;
  readonly #connections: TcpConnections;
  readonly #stream: TcpStream;
  readonly #terms: TcpTerms;
  readonly #urgent: TcpUrgent;
  readonly #sent = new SentSegment();

  constructor(
    state: CompareState,
    connections: TcpConnections,
    stream: TcpStream,
    terms: TcpTerms,
    urgent: TcpUrgent,
  ) {
    this.#state = state;
    this.#connections = connections;
    this.#stream = stream;
    this.#terms = terms;
    this.#urgent = urgent;
  }

  /** Notes what a released segment says about the state that the next checkpoint makes common. */
  noteReleased(flow: number, segment: SentSegment): void {
    const { flags, sequence, end, acknowledgement, timeNs } = segment;
    const { flows } = this.#state;
    // It belongs to a connection before the current one.
    if (timeNs < flows.openedNs[flow]) return;
    if ((flags & SEGMENT_SYN) !== 0) {
      const opened =
        (flows.flags[flow] & FLOW_PRIMARY_ISN_KNOWN) !== 0 && flows.primaryIsn[flow] === sequence;
      if (!opened) this.#connections.begin(flow, sequence, timeNs);
    }
    let state = flows.flags[flow];
    if ((flags & SEGMENT_RST) !== 0) {
      // Its numbers may be those of a segment it answers (sequence 0), not of the stream.
      flows.flags[flow] = state | FLOW_CLOSED;
      return;
    }
    if (end !== sequence) {
      if ((state & FLOW_RELEASED_END_KNOWN) === 0 || ((end - flows.releasedEnd[flow]) | 0) > 0) {
        flows.releasedEnd[flow] = end;
        state |= FLOW_RELEASED_END_KNOWN;
      }
      if ((flags & SEGMENT_FIN) !== 0) state |= FLOW_CLOSED;
    }
    if ((flags & SEGMENT_ACK) !== 0) {
      if ((state & FLOW_RELEASED_ACK_KNOWN) === 0 || ((acknowledgement - flows.releasedAck[flow]) | 0) > 0) {
        flows.releasedAck[flow] = acknowledgement;
        state |= FLOW_RELEASED_ACK_KNOWN;
      }
    }
    flows.flags[flow] = state;
    this.#terms.noteReleased(flow, segment);
    this.#urgent.noteReleased(flow, segment);
  }

  /** A held segment has been released as it is. */
  noteReleasedItem(flow: number, item: number): void {
    this.#sent.setHeld(this.#state.primary, item);
    this.noteReleased(flow, this.#sent);
  }

  /**
   * A frame older than the last checkpoint turned up after it. It has been released; what it covers is raised
   * at once. True if held frames of the flow may have become releasable.
   */
  noteLate(flow: number, frame: ParsedFrame): boolean {
    const { flows } = this.#state;
    if (frame.timeNs < flows.openedNs[flow]) return false;
    const syn = (frame.flags & SEGMENT_SYN) !== 0;
    const known =
      (flows.flags[flow] & FLOW_PRIMARY_ISN_KNOWN) !== 0 && flows.primaryIsn[flow] === frame.sequence;
    const { flags, sequence, acknowledgement, window, urgent } = frame;
    this.#sent.setFrame(frame);
    this.noteReleased(flow, this.#sent);
    if (syn && !known) {
      if (flows.openings[flow] === 0) {
        flows.queuedSyn[flow] = frame.sequence;
        flows.flags[flow] |= FLOW_QUEUED_SYN_KNOWN;
      }
      this.restart(flow);
      return true;
    }
    if ((frame.flags & SEGMENT_RST) !== 0) return false;
    this.#urgent.noteSecondary(flow, flags, sequence, urgent);
    let state = flows.flags[flow];
    if (frame.end !== frame.sequence) {
      if ((state & FLOW_VERIFIED_KNOWN) === 0) {
        state |= FLOW_VERIFIED_KNOWN;
        flows.verified[flow] = frame.end;
      } else if ((state & FLOW_FLOOR_KNOWN) === 0 || ((frame.end - flows.floor[flow]) | 0) >= 0) {
        // The checkpoint covers everything below this end, so it reaches the floor from below: no floor any
        // more.
        state &= ~FLOW_FLOOR_KNOWN;
        if (((frame.end - flows.verified[flow]) | 0) > 0) flows.verified[flow] = frame.end;
      }
    }
    if ((frame.flags & SEGMENT_ACK) !== 0) {
      this.#terms.noteOffer(flow, flags, acknowledgement, window);
      state |= flows.flags[flow] & FLOW_SECONDARY_EDGE_KNOWN;
      if (
        (state & FLOW_SECONDARY_ACK_KNOWN) === 0 ||
        ((frame.acknowledgement - flows.secondaryAck[flow]) | 0) > 0
      ) {
        flows.secondaryAck[flow] = frame.acknowledgement;
        state |= FLOW_SECONDARY_ACK_KNOWN;
      }
    }
    flows.flags[flow] = state;
    return true;
  }

  /**
   * After a checkpoint: the common state is what was released. All secondary segments are gone already. Does
   * not run().
   */
  restart(flow: number): void {
    const { flows, queue, primary, primarySorted } = this.#state;
    let state = flows.flags[flow];
    state &= ~(
      FLOW_FROZEN |
      FLOW_VERIFIED_KNOWN |
      FLOW_FLOOR_KNOWN |
      FLOW_ISLAND_KNOWN |
      FLOW_SECONDARY_ACK_KNOWN
    );
    state &= ~(FLOW_AWAIT_SYN | FLOW_SECONDARY_ISN_KNOWN | FLOW_RESET_SEQUENCE_KNOWN);
    if ((state & FLOW_RELEASED_END_KNOWN) !== 0) {
      state |= FLOW_VERIFIED_KNOWN;
      flows.verified[flow] = flows.releasedEnd[flow];
      if ((state & FLOW_PRIMARY_ISN_KNOWN) !== 0) {
        state |= FLOW_SECONDARY_ISN_KNOWN;
        flows.secondaryIsn[flow] = flows.primaryIsn[flow];
      }
    }
    if ((state & FLOW_RELEASED_ACK_KNOWN) !== 0) {
      state |= FLOW_SECONDARY_ACK_KNOWN;
      flows.secondaryAck[flow] = flows.releasedAck[flow];
    }
    flows.flags[flow] = state;
    this.#terms.restart(flow);
    this.#urgent.restart(flow);
    primarySorted.clear(flow);
    let openings = 0;
    for (let segment = queue.head[flow]; segment >= 0; segment = queue.next[segment]) {
      primary.flags[segment] &= ~(SEGMENT_TRACKED | SEGMENT_VERIFIED | SEGMENT_SORTED);
      if ((primary.flags[segment] & SEGMENT_OPENS) !== 0) openings++;
    }
    flows.openings[flow] = openings;
    this.trackQueue(flow);
  }

  /** Lets segments take part that have become older than the horizon. */
  trackQueue(flow: number): void {
    const { queue, primary } = this.#state;
    for (let segment = queue.head[flow]; segment >= 0; segment = queue.next[segment]) {
      const flags = primary.flags[segment];
      if ((flags & SEGMENT_TRACKED) !== 0) continue;
      if ((flags & SEGMENT_OPENS) !== 0) return;
      this.#stream.track(flow, segment);
    }
  }
}
