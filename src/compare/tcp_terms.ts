/**
 * On what terms a segment of the primary is released: what of it both VMs stand behind, when that is not all
 * of it.
 *
 * The window. The client follows the primary's. What lies beyond the secondary's own it drops, silently, and
 * the primary's acknowledgement would wait for it for ever. So no right edge (acknowledgement + window) is
 * released that lies beyond the highest one of the secondary, but none either that takes back what was
 * released before (RFC 9293, 3.8.6). When that leaves the client next to nothing, the segment is sent and
 * held all the same: its acknowledgement goes out again when the secondary's window opens. Without the SYN's
 * window scale nothing is clamped.
 *
 * Parts. Two kernels cut the stream differently and lose different frames, so a segment can be half verified,
 * or its acknowledgement be ahead of the secondary's, with the rest not coming by itself: the secondary waits
 * for an acknowledgement of what it has sent (its congestion window is full, or Nagle's algorithm holds the
 * rest back), and the client for one of what it has sent. So what has waited for `partAfterNs` is sent as far
 * as it is common: the verified bytes, with the lower of the two acknowledgements. The rest stays held.
 */
import {
  FLOW_RELEASED_ACK_KNOWN,
  FLOW_RELEASED_EDGE_KNOWN,
  FLOW_SECONDARY_ACK_KNOWN,
  FLOW_SECONDARY_EDGE_KNOWN,
  FLOW_VERIFIED_KNOWN,
  UNKNOWN_SCALE,
} from "./flow_table.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_PARTED,
  SEGMENT_RST,
  SEGMENT_SYN,
  SEGMENT_TRACKED,
  SEGMENT_URG,
  SEGMENT_VERIFIED,
} from "./segment_pool.ts";
import type { SentSegment } from "./sent_segment.ts";
import type { CompareState } from "./state.ts";
import type { TcpStream } from "./tcp_stream.ts";

/**
 * A window that lets the client send less than this (two full segments) may make it wait (RFC 9293,
 * 3.8.6.2.1).
 */
const OPEN_WINDOW_BYTES = 2920;

export class TcpTerms {
  readonly #state: CompareState;
  readonly #stream: TcpStream;
  readonly #partAfterNs: number;

  constructor(state: CompareState, stream: TcpStream, partAfterNs: number) {
    this.#state = state;
    this.#stream = stream;
    this.#partAfterNs = partAfterNs;
  }

  /** The secondary has acknowledged `acknowledgement` and offers a window. */
  noteOffer(flow: number, flags: number, acknowledgement: number, window: number): void {
    const { flows } = this.#state;
    if (window < 0 || (flags & SEGMENT_RST) !== 0 || flows.windowScale[flow] === UNKNOWN_SCALE) return;
    const edge = this.#edge(flow, flags, acknowledgement, window);
    const known = (flows.flags[flow] & FLOW_SECONDARY_EDGE_KNOWN) !== 0;
    if (known && ((edge - flows.secondaryEdge[flow]) | 0) <= 0) return;
    flows.secondaryEdge[flow] = edge;
    flows.flags[flow] |= FLOW_SECONDARY_EDGE_KNOWN;
  }

  /** A window has been released. */
  noteReleased(flow: number, { flags, acknowledgement, window }: SentSegment): void {
    const { flows } = this.#state;
    if ((flags & SEGMENT_ACK) === 0 || window < 0 || flows.windowScale[flow] === UNKNOWN_SCALE) return;
    const edge = this.#edge(flow, flags, acknowledgement, window);
    const known = (flows.flags[flow] & FLOW_RELEASED_EDGE_KNOWN) !== 0;
    if (known && ((edge - flows.releasedEdge[flow]) | 0) <= 0) return;
    flows.releasedEdge[flow] = edge;
    flows.flags[flow] |= FLOW_RELEASED_EDGE_KNOWN;
  }

  /** A checkpoint has made the secondary a copy of the primary: it stands behind what was released. */
  restart(flow: number): void {
    const { flows } = this.#state;
    flows.flags[flow] &= ~FLOW_SECONDARY_EDGE_KNOWN;
    if ((flows.flags[flow] & FLOW_RELEASED_EDGE_KNOWN) === 0) return;
    flows.secondaryEdge[flow] = flows.releasedEdge[flow];
    flows.flags[flow] |= FLOW_SECONDARY_EDGE_KNOWN;
  }

  /** Whether a segment that is complete has to be sent otherwise than the primary sent it. */
  isChanged(flow: number, item: number): boolean {
    const { primary } = this.#state;
    if ((primary.flags[item] & SEGMENT_PARTED) !== 0) return true;
    return this.#windowFor(flow, item, primary.acknowledgement[item]) !== primary.window[item];
  }

  /**
   * Leaves in state.change what is to be sent of a segment that is complete. Returns false if that has to be
   * sent as a part, because the client will need the rest, the window, later.
   */
  prepare(flow: number, item: number): boolean {
    const { primary, queue, change } = this.#state;
    change.setRest(primary, item);
    change.window = this.#windowFor(flow, item, change.acknowledgement);
    const isClamped = change.window < primary.window[item];
    return !isClamped || queue.next[item] >= 0 || !this.#isClosed(flow, item);
  }

  /** Whether the client learns anything from state.change that it has not been told. */
  isNews(flow: number, item: number): boolean {
    const { flows, primary, change } = this.#state;
    if (change.payloadBytes > 0 || change.fin) return true;
    const known = flows.flags[flow];
    if ((known & FLOW_RELEASED_ACK_KNOWN) === 0) return true;
    if (((change.acknowledgement - flows.releasedAck[flow]) | 0) > 0) return true;
    if (flows.windowScale[flow] === UNKNOWN_SCALE || (known & FLOW_RELEASED_EDGE_KNOWN) === 0) return false;
    const edge = this.#edge(flow, primary.flags[item], change.acknowledgement, change.window);
    return ((edge - flows.releasedEdge[flow]) | 0) > 0;
  }

  /** Sends what state.change says of a segment that stays held. */
  sendPart(flow: number, item: number): void {
    const state = this.#state;
    const { primary, change } = state;
    state.part(item, change);
    const bytes = change.payloadBytes;
    let flags = primary.flags[item] | SEGMENT_PARTED;
    let occupied = bytes;
    if (change.fin) {
      flags &= ~SEGMENT_FIN;
      occupied++;
    }
    primary.flags[item] = flags;
    primary.data[item] += bytes;
    primary.dataBytes[item] -= bytes;
    if (occupied > 0) this.#stream.moveStart(flow, item, (primary.sequence[item] + occupied) | 0);
  }

  /**
   * Leaves in state.change what can be said of the first held segment of a flow although the segment has to
   * wait. Returns false if it is too early for that, or nothing can.
   */
  preparePart(flow: number, item: number): boolean {
    const state = this.#state;
    const { flows, primary, change } = state;
    const flags = primary.flags[item];
    if (!state.takesParts || primary.window[item] < 0) return false;
    if (state.nowNs - primary.timeNs[item] < this.#partAfterNs) return false;
    if ((flags & SEGMENT_TRACKED) === 0 || (flags & SEGMENT_ACK) === 0) return false;
    if ((flags & (SEGMENT_SYN | SEGMENT_RST | SEGMENT_URG)) !== 0) return false;
    if ((flows.flags[flow] & FLOW_SECONDARY_ACK_KNOWN) === 0) return false;
    change.setRest(primary, item);
    if ((flags & SEGMENT_VERIFIED) === 0) {
      if ((flows.flags[flow] & FLOW_VERIFIED_KNOWN) === 0) return false;
      const verified = (flows.verified[flow] - primary.sequence[item]) | 0;
      change.payloadBytes = Math.max(0, Math.min(verified, change.payloadBytes));
      change.fin = false;
    }
    const behind = (flows.secondaryAck[flow] - change.acknowledgement) | 0;
    if (behind < 0) change.acknowledgement = flows.secondaryAck[flow];
    change.window = this.#windowFor(flow, item, change.acknowledgement);
    return true;
  }

  #edge(flow: number, flags: number, acknowledgement: number, window: number): number {
    // The window of a SYN is not scaled (RFC 7323, 2.2).
    const scale = (flags & SEGMENT_SYN) !== 0 ? 0 : this.#state.flows.windowScale[flow];
    return (acknowledgement + (window << scale)) | 0;
  }

  /** The window field for a segment that is sent with this acknowledgement. */
  #windowFor(flow: number, item: number, acknowledgement: number): number {
    const { flows, primary } = this.#state;
    const own = primary.window[item];
    const flags = primary.flags[item];
    if (own < 0 || (flags & SEGMENT_ACK) === 0 || (flags & SEGMENT_RST) !== 0) return own;
    if (flows.windowScale[flow] === UNKNOWN_SCALE) return own;
    const same = acknowledgement === primary.acknowledgement[item];
    let edge = this.#edge(flow, flags, primary.acknowledgement[item], own);
    const known = flows.flags[flow];
    if ((known & FLOW_SECONDARY_EDGE_KNOWN) === 0) return own;
    const isReleased = (known & FLOW_RELEASED_EDGE_KNOWN) !== 0;
    const released = flows.releasedEdge[flow];
    let limit = flows.secondaryEdge[flow];
    if (isReleased && ((released - limit) | 0) > 0) limit = released;
    if (((edge - limit) | 0) > 0) edge = limit;
    else if (same) return own;
    const scale = (flags & SEGMENT_SYN) !== 0 ? 0 : flows.windowScale[flow];
    const room = Math.max(0, (edge - acknowledgement) | 0);
    let window = room >> scale;
    // Rounding must not take anything back either.
    if (isReleased && ((released - acknowledgement - (window << scale)) | 0) > 0) window++;
    return Math.min(window, 0xffff);
  }

  /** Whether the window in state.change lets the client send so little that it may wait for a larger one. */
  #isClosed(flow: number, item: number): boolean {
    const { flows, primary, change } = this.#state;
    if (!this.#state.takesParts || (primary.flags[item] & (SEGMENT_SYN | SEGMENT_URG)) !== 0) return false;
    const scale = flows.windowScale[flow];
    return change.window << scale < Math.min(OPEN_WINDOW_BYTES, (primary.window[item] << scale) / 2);
  }
}
