/**
 * Which held TCP segments leave: those at the head of their flow's queue that are verified and acknowledged,
 * whole or in part (tcp_terms.ts), and repetitions that have waited long.
 */
import { FLOW_SECONDARY_ACK_KNOWN } from "./flow_table.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_PARTED,
  SEGMENT_RST,
  SEGMENT_TRACKED,
  SEGMENT_VERIFIED,
} from "./segment_pool.ts";
import { SentSegment } from "./sent_segment.ts";
import type { CompareState } from "./state.ts";
import type { TcpCheckpoints } from "./tcp_checkpoint.ts";
import type { TcpResets } from "./tcp_resets.ts";
import type { TcpTerms } from "./tcp_terms.ts";
import type { TcpUrgent } from "./tcp_urgent.ts";

export class TcpReleases {
  readonly #state: CompareState;
  readonly #checkpoints: TcpCheckpoints;
  readonly #resets: TcpResets;
  readonly #terms: TcpTerms;
  readonly #urgent: TcpUrgent;
  readonly #sent = new SentSegment();

  constructor(
    state: CompareState,
    checkpoints: TcpCheckpoints,
    resets: TcpResets,
    terms: TcpTerms,
    urgent: TcpUrgent,
  ) {
    this.#state = state;
    this.#checkpoints = checkpoints;
    this.#resets = resets;
    this.#terms = terms;
    this.#urgent = urgent;
  }

  /** Releases from the head of the queue on, as far as it goes. */
  releaseVerified(flow: number): void {
    const state = this.#state;
    const { queue, primary } = state;
    for (let head = queue.head[flow]; head >= 0; head = queue.head[flow]) {
      const flags = primary.flags[head];
      const acknowledgement = primary.acknowledgement[head];
      const isVerified =
        (flags & (SEGMENT_TRACKED | SEGMENT_VERIFIED)) === (SEGMENT_TRACKED | SEGMENT_VERIFIED);
      if ((flags & SEGMENT_RST) !== 0) {
        if (!isVerified || !this.#resets.match(flow, head)) return;
        this.#releaseItem(flow, head, false);
      } else if (
        isVerified &&
        this.#isAcknowledged(flow, flags, acknowledgement) &&
        this.#urgent.isAnnounced(flow, flags, primary.urgent[head])
      ) {
        if (!this.#terms.isChanged(flow, head)) {
          this.#releaseItem(flow, head, false);
        } else if (this.#terms.prepare(flow, head)) {
          this.#releaseItem(flow, head, true);
        } else {
          if (this.#terms.isNews(flow, head)) this.#sendPart(flow, head);
          return;
        }
      } else {
        if (!this.#terms.preparePart(flow, head)) return;
        if (isVerified && queue.next[head] >= 0) {
          // The segments behind it say again, and further, what it acknowledges.
          this.#releaseItem(flow, head, true);
        } else {
          if (this.#terms.isNews(flow, head)) this.#sendPart(flow, head);
          return;
        }
      }
    }
  }

  /** A held segment has waited long enough for parts to be sent. Does not run(). */
  waitedLong(flow: number, segment: number): void {
    const state = this.#state;
    if (state.queue.head[flow] !== segment && this.#terms.preparePart(flow, segment)) {
      // What is sent again must not wait for what comes later in the stream: that may be waiting for it.
      if ((state.primary.flags[segment] & SEGMENT_VERIFIED) !== 0) this.#releaseItem(flow, segment, true);
      else if (state.change.payloadBytes > 0) this.#sendPart(flow, segment);
    }
  }

  #isAcknowledged(flow: number, flags: number, acknowledgement: number): boolean {
    const { flows } = this.#state;
    if ((flags & SEGMENT_ACK) === 0) return true;
    if ((flows.flags[flow] & FLOW_SECONDARY_ACK_KNOWN) === 0) return false;
    return ((acknowledgement - flows.secondaryAck[flow]) | 0) <= 0;
  }

  /** Releases a held segment, as state.change says if `isChanged`. */
  #releaseItem(flow: number, item: number, isChanged: boolean): void {
    const state = this.#state;
    const sent = this.#sent;
    const { primary, change } = state;
    sent.setHeld(primary, item);
    if (isChanged) {
      sent.acknowledgement = change.acknowledgement;
      sent.window = change.window;
      change.silent = (sent.flags & SEGMENT_PARTED) !== 0 && !this.#terms.isNews(flow, item);
      if (change.window < primary.window[item]) state.stats.clampedWindows++;
    }
    this.#checkpoints.noteReleased(flow, sent);
    state.releaseCompared(item, isChanged ? change : null);
  }

  /** Sends what state.change says of the first held segment. */
  #sendPart(flow: number, head: number): void {
    const sent = this.#sent;
    const { primary, change } = this.#state;
    sent.setHeld(primary, head);
    sent.sequence = change.sequence;
    sent.end = (change.sequence + change.payloadBytes + (change.fin ? 1 : 0)) | 0;
    if (!change.fin) sent.flags &= ~SEGMENT_FIN;
    sent.acknowledgement = change.acknowledgement;
    sent.window = change.window;
    this.#checkpoints.noteReleased(flow, sent);
    this.#terms.sendPart(flow, head);
  }
}
