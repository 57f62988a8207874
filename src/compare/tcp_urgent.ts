/**
 * TCP urgent data: where it ends, as a place in the stream (sequence number + urgent pointer; RFC 9293
 * section 3.8.5, RFC 6093), is part of what the client sees.
 *
 * A sender announces that place from the moment the application sends urgent data, so also on segments before
 * the urgent byte, and a later place takes the place of an earlier one. So a primary segment that announces
 * one waits until the secondary has announced as much; TcpStream checks that the byte in front of it is
 * urgent on both sides or on none.
 */
import { FLOW_RELEASED_URGENT_KNOWN, FLOW_SECONDARY_URGENT_KNOWN } from "./flow_table.ts";
import { SEGMENT_RST, SEGMENT_URG } from "./segment_pool.ts";
import type { SentSegment } from "./sent_segment.ts";
import type { CompareState } from "./state.ts";

/** What the secondary announced so far behind the stream is forgotten before the numbers come round again. */
const FORGET_BYTES = 2 ** 30;

export class TcpUrgent {
  readonly #state: CompareState;

  constructor(state: CompareState) {
    this.#state = state;
  }

  /** A secondary segment of the current connection, with or without urgent data that ends at `urgent`. */
  noteSecondary(flow: number, flags: number, sequence: number, urgent: number): void {
    const { flows } = this.#state;
    const known = (flows.flags[flow] & FLOW_SECONDARY_URGENT_KNOWN) !== 0;
    if ((flags & (SEGMENT_URG | SEGMENT_RST)) === SEGMENT_URG) {
      if (known && ((urgent - flows.secondaryUrgent[flow]) | 0) <= 0) return;
      flows.secondaryUrgent[flow] = urgent;
      flows.flags[flow] |= FLOW_SECONDARY_URGENT_KNOWN;
    } else if (known && ((sequence - flows.secondaryUrgent[flow]) | 0) > FORGET_BYTES) {
      flows.flags[flow] &= ~FLOW_SECONDARY_URGENT_KNOWN;
    }
  }

  /** Whether the secondary has announced what a primary segment announces. */
  isAnnounced(flow: number, flags: number, urgent: number): boolean {
    if ((flags & SEGMENT_URG) === 0) return true;
    const { flows } = this.#state;
    return (
      (flows.flags[flow] & FLOW_SECONDARY_URGENT_KNOWN) !== 0 &&
      ((urgent - flows.secondaryUrgent[flow]) | 0) <= 0
    );
  }

  /** A primary segment has been released. */
  noteReleased(flow: number, { flags, sequence, urgent }: SentSegment): void {
    const { flows } = this.#state;
    const known = (flows.flags[flow] & FLOW_RELEASED_URGENT_KNOWN) !== 0;
    if ((flags & (SEGMENT_URG | SEGMENT_RST)) === SEGMENT_URG) {
      if (known && ((urgent - flows.releasedUrgent[flow]) | 0) <= 0) return;
      flows.releasedUrgent[flow] = urgent;
      flows.flags[flow] |= FLOW_RELEASED_URGENT_KNOWN;
    } else if (known && ((sequence - flows.releasedUrgent[flow]) | 0) > FORGET_BYTES) {
      flows.flags[flow] &= ~FLOW_RELEASED_URGENT_KNOWN;
    }
  }

  /** A checkpoint has made the secondary a copy of the primary: it stands behind what was released. */
  restart(flow: number): void {
    const { flows } = this.#state;
    flows.flags[flow] &= ~FLOW_SECONDARY_URGENT_KNOWN;
    if ((flows.flags[flow] & FLOW_RELEASED_URGENT_KNOWN) === 0) return;
    flows.secondaryUrgent[flow] = flows.releasedUrgent[flow];
    flows.flags[flow] |= FLOW_SECONDARY_URGENT_KNOWN;
  }
}
