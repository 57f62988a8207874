import {
  FLOW_ACK_KNOWN,
  FLOW_AWAIT_SYN,
  FLOW_CLOSED,
  FLOW_CLOSED_BEFORE,
  FLOW_EDGE_KNOWN,
  FLOW_FLOOR,
  FLOW_FROZEN,
  FLOW_ISLAND,
  FLOW_OPENING_ACK,
  FLOW_PREVIOUS_ISN,
  FLOW_PRIMARY_ISN,
  FLOW_QUEUED_SYN,
  FLOW_RELEASED_ACK,
  FLOW_RELEASED_EDGE,
  FLOW_RELEASED_END,
  FLOW_RELEASED_URGENT,
  FLOW_RESET,
  FLOW_SECONDARY_ISN,
  FLOW_URGENT_KNOWN,
  FLOW_VERIFIED_KNOWN,
  UNKNOWN_SCALE,
} from "./flow_table.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_OPENS,
  SEGMENT_PARTED,
  SEGMENT_RST,
  SEGMENT_SORTED,
  SEGMENT_SYN,
  SEGMENT_TRACKED,
  SEGMENT_VERIFIED,
} from "./segment_pool.ts";
import type { CompareState } from "./state.ts";
import { TcpResets } from "./tcp_resets.ts";
import { TcpStream } from "./tcp_stream.ts";
import { TcpTerms } from "./tcp_terms.ts";
import { TcpUrgent } from "./tcp_urgent.ts";

/** How far the acknowledgements of two SYNs of the same connection may be apart. */
const SAME_OPENING_BYTES = 65_536;

/**
 * TCP: what must agree is the byte stream and what has been acknowledged, not the segments.
 *
 * The problem: the two guests cut the same stream differently, retransmit at other moments, acknowledge at
 * other moments. The insight: a client can only notice (a) bytes, at their place in the sequence space, (b)
 * how far its own bytes are acknowledged, (c) that the connection is opened, closed or reset. So for each
 * flow there is one number, `verified`: both sides have produced every byte below it. A primary segment is
 * released, in order of arrival, when
 *
 *     its end <= verified   and   its acknowledgement <= the highest one of the secondary      (RFC 9293 3.4, modulo 2^32)
 *
 * SYN and FIN are places in the stream like bytes. The secondary's SYN has a number of its own and is given
 * the primary's; all its later segments arrive already in the primary's numbers (the rewriting programs do
 * that).
 *
 * Connections. A SYN with another number than the one before opens another connection on the same ports. It
 * becomes the current one when everything queued before it has been released and nothing of the secondary's
 * old one is unmatched; until then its segments wait behind it. The secondary's segments of a connection that
 * the primary has not opened yet wait as well.
 *
 * First seen in mid-stream: see TcpStream for the bytes. The secondary's acknowledgement starts as unknown,
 * which releases nothing.
 *
 * After a checkpoint both stacks are equal. What the primary had sent before it is covered, so `verified` is
 * the highest end and `secondaryAck` the highest acknowledgement that was released, without a floor.
 *
 * What a segment says beyond that, or before it is complete: see TcpTerms. Urgent data: see TcpUrgent.
 *
 * Limits, on purpose: options after the SYN, ECN and PSH may differ. A retransmission
 * below `verified` is not compared again: both stacks send it from the buffer whose bytes were compared the
 * first time.
 */
export class TcpFlows {
  private readonly stream: TcpStream;
  private readonly resets: TcpResets;
  private readonly terms: TcpTerms;
  private readonly urgent: TcpUrgent;

  /** @param partAfterNs after this time a held segment is sent as far as it can be; Infinity: never */
  constructor(
    private readonly state: CompareState,
    partAfterNs: number = Number.POSITIVE_INFINITY,
  ) {
    this.stream = new TcpStream(state);
    this.resets = new TcpResets(state);
    this.terms = new TcpTerms(state, this.stream, partAfterNs);
    this.urgent = new TcpUrgent(state);
  }

  /** A primary segment was put at the end of its flow's queue. */
  primaryAdded(flow: number, segment: number): void {
    const { flows, primary } = this.state;
    if ((primary.flags[segment] & SEGMENT_SYN) !== 0) {
      const sequence = primary.sequence[segment];
      if ((flows.flags[flow] & FLOW_QUEUED_SYN) === 0 || flows.queuedSyn[flow] !== sequence) {
        primary.flags[segment] |= SEGMENT_OPENS;
        flows.queuedSyn[flow] = sequence;
        flows.flags[flow] |= FLOW_QUEUED_SYN;
        flows.openings[flow]++;
      }
    }
    if (flows.openings[flow] === 0) this.stream.track(flow, segment);
    this.run(flow);
  }

  /**
   * A secondary segment of a flow that is not frozen. Returns false when the pool is exhausted (nothing has
   * happened then).
   */
  secondaryAdded(flow: number, slot: number, frame: ParsedFrame): boolean {
    const { state } = this;
    const { flows } = state;
    const flags = flows.flags[flow];
    if (state.secondaryQueue.head[flow] >= 0) return this.postpone(flow, slot, frame);
    if ((frame.flags & SEGMENT_SYN) !== 0) {
      const again = (flags & FLOW_SECONDARY_ISN) !== 0 && flows.secondaryIsn[flow] === frame.sequence;
      if (!again) {
        if ((flags & FLOW_AWAIT_SYN) === 0) return this.postpone(flow, slot, frame);
        if (!this.opensSame(flow, frame.flags, frame.sequence, frame.acknowledgement)) {
          state.stats.discardedFrames++;
          state.finishSlot(slot);
          return true;
        }
        flows.secondaryIsn[flow] = frame.sequence;
        flows.flags[flow] = (flags & ~FLOW_AWAIT_SYN) | FLOW_SECONDARY_ISN;
      }
      translateSyn(frame, flows.primaryIsn[flow]);
    } else if ((flags & FLOW_AWAIT_SYN) !== 0) {
      // A straggler of the connection before, whose acknowledgement means nothing for this one.
      state.stats.discardedFrames++;
      state.finishSlot(slot);
      return true;
    }
    if (!this.accept(flow, slot, frame)) return false;
    this.run(flow);
    return true;
  }

  /** Keeps a secondary segment for a connection that the primary has not opened yet. */
  private postpone(flow: number, slot: number, frame: ParsedFrame): boolean {
    const segment = this.state.wait(flow, slot, frame);
    if (segment < 0) return false;
    this.state.secondaryQueue.push(flow, segment);
    this.run(flow);
    return true;
  }

  /** Takes a segment of the secondary's current connection that has no pool entry yet. */
  private accept(flow: number, slot: number, frame: ParsedFrame): boolean {
    const { state } = this;
    if ((frame.flags & SEGMENT_RST) !== 0) {
      if (this.resets.isRepeated(flow, frame.flags, frame.sequence, frame.acknowledgement, frame.dataBytes)) {
        state.finishSlot(slot);
      } else {
        const segment = state.wait(flow, slot, frame);
        if (segment < 0) return false;
        state.secondaryResets.push(flow, segment);
      }
      this.acknowledge(flow, frame.flags, frame.sequence, frame.acknowledgement, -1);
      return true;
    }
    this.urgent.noteSecondary(flow, frame.flags, frame.sequence, frame.urgent);
    const needed = frame.end !== frame.sequence && !this.stream.isBelowVerified(flow, frame.end);
    if (needed) {
      const segment = state.wait(flow, slot, frame);
      if (segment < 0) return false;
      this.stream.insertSecondary(flow, segment);
    } else {
      state.finishSlot(slot);
    }
    this.acknowledge(flow, frame.flags, frame.sequence, frame.acknowledgement, frame.window);
    return true;
  }

  /** Notes how far the secondary has acknowledged its current connection, and what window it offers. */
  private acknowledge(
    flow: number,
    flags: number,
    sequence: number,
    acknowledgement: number,
    window: number,
  ): void {
    if ((flags & SEGMENT_ACK) === 0) return;
    // What an RST without a connection acknowledges is what it refuses.
    if ((flags & SEGMENT_RST) !== 0 && sequence === 0) return;
    this.terms.noteOffer(flow, flags, acknowledgement, window);
    const { flows } = this.state;
    const known = (flows.flags[flow] & FLOW_ACK_KNOWN) !== 0;
    if (known && ((acknowledgement - flows.secondaryAck[flow]) | 0) <= 0) return;
    flows.secondaryAck[flow] = acknowledgement;
    flows.flags[flow] |= FLOW_ACK_KNOWN;
  }

  /** Compares, releases and opens connections as far as it goes. */
  run(flow: number): void {
    const { state } = this;
    const { flows, queue, primary } = state;
    for (;;) {
      if ((flows.flags[flow] & FLOW_FROZEN) !== 0) return;
      if (!this.stream.advance(flow)) return;
      this.releaseVerified(flow);
      const head = queue.head[flow];
      if (head < 0) return;
      const flags = primary.flags[head];
      if ((flags & SEGMENT_OPENS) === 0 || (flags & SEGMENT_TRACKED) !== 0) return;
      if (primary.timeNs[head] > state.horizonNs) return;
      if (state.secondarySorted.head[flow] >= 0 || state.secondaryResets.head[flow] >= 0) return;
      this.open(flow, head);
    }
  }

  /** Notes what a released segment says about the state that the next checkpoint makes common. */
  noteReleased(
    flow: number,
    flags: number,
    sequence: number,
    end: number,
    acknowledgement: number,
    timeNs: number,
    window: number,
    urgent: number,
  ): void {
    const { flows } = this.state;
    // It belongs to a connection before the current one.
    if (timeNs < flows.openedNs[flow]) return;
    if ((flags & SEGMENT_SYN) !== 0) {
      const opened = (flows.flags[flow] & FLOW_PRIMARY_ISN) !== 0 && flows.primaryIsn[flow] === sequence;
      if (!opened) this.begin(flow, sequence, timeNs);
    }
    let state = flows.flags[flow];
    if ((flags & SEGMENT_RST) !== 0) {
      // Its numbers may be those of a segment it answers (sequence 0), not of the stream.
      flows.flags[flow] = state | FLOW_CLOSED;
      return;
    }
    if (end !== sequence) {
      if ((state & FLOW_RELEASED_END) === 0 || ((end - flows.releasedEnd[flow]) | 0) > 0) {
        flows.releasedEnd[flow] = end;
        state |= FLOW_RELEASED_END;
      }
      if ((flags & SEGMENT_FIN) !== 0) state |= FLOW_CLOSED;
    }
    if ((flags & SEGMENT_ACK) !== 0) {
      if ((state & FLOW_RELEASED_ACK) === 0 || ((acknowledgement - flows.releasedAck[flow]) | 0) > 0) {
        flows.releasedAck[flow] = acknowledgement;
        state |= FLOW_RELEASED_ACK;
      }
    }
    flows.flags[flow] = state;
    this.terms.noteReleased(flow, flags, acknowledgement, window);
    this.urgent.noteReleased(flow, flags, sequence, urgent);
  }

  /**
   * A frame older than the last checkpoint turned up after it. It has been released; what it covers is raised
   * at once. Held frames of the flow may become releasable.
   */
  noteLate(flow: number, frame: ParsedFrame): void {
    const { flows } = this.state;
    if (frame.timeNs < flows.openedNs[flow]) return;
    const syn = (frame.flags & SEGMENT_SYN) !== 0;
    const known = (flows.flags[flow] & FLOW_PRIMARY_ISN) !== 0 && flows.primaryIsn[flow] === frame.sequence;
    const { flags, sequence, end, acknowledgement, timeNs, window, urgent } = frame;
    this.noteReleased(flow, flags, sequence, end, acknowledgement, timeNs, window, urgent);
    if (syn && !known) {
      if (flows.openings[flow] === 0) {
        flows.queuedSyn[flow] = frame.sequence;
        flows.flags[flow] |= FLOW_QUEUED_SYN;
      }
      this.restart(flow);
      this.run(flow);
      return;
    }
    if ((frame.flags & SEGMENT_RST) !== 0) return;
    this.urgent.noteSecondary(flow, flags, sequence, urgent);
    let state = flows.flags[flow];
    if (frame.end !== frame.sequence) {
      if ((state & FLOW_VERIFIED_KNOWN) === 0) {
        state |= FLOW_VERIFIED_KNOWN;
        flows.verified[flow] = frame.end;
      } else if ((state & FLOW_FLOOR) === 0 || ((frame.end - flows.floor[flow]) | 0) >= 0) {
        // The checkpoint covers everything below this end, so it reaches the floor from below: no floor any
        // more.
        state &= ~FLOW_FLOOR;
        if (((frame.end - flows.verified[flow]) | 0) > 0) flows.verified[flow] = frame.end;
      }
    }
    if ((frame.flags & SEGMENT_ACK) !== 0) {
      this.terms.noteOffer(flow, flags, acknowledgement, window);
      state |= flows.flags[flow] & FLOW_EDGE_KNOWN;
      if ((state & FLOW_ACK_KNOWN) === 0 || ((frame.acknowledgement - flows.secondaryAck[flow]) | 0) > 0) {
        flows.secondaryAck[flow] = frame.acknowledgement;
        state |= FLOW_ACK_KNOWN;
      }
    }
    flows.flags[flow] = state;
    this.run(flow);
  }

  /**
   * After a checkpoint: the common state is what was released. All secondary segments are gone already. Does
   * not run().
   */
  restart(flow: number): void {
    const { flows, queue, primary, primarySorted } = this.state;
    let state = flows.flags[flow];
    state &= ~(FLOW_FROZEN | FLOW_VERIFIED_KNOWN | FLOW_FLOOR | FLOW_ISLAND | FLOW_ACK_KNOWN);
    state &= ~(FLOW_AWAIT_SYN | FLOW_SECONDARY_ISN | FLOW_RESET);
    if ((state & FLOW_RELEASED_END) !== 0) {
      state |= FLOW_VERIFIED_KNOWN;
      flows.verified[flow] = flows.releasedEnd[flow];
      if ((state & FLOW_PRIMARY_ISN) !== 0) {
        state |= FLOW_SECONDARY_ISN;
        flows.secondaryIsn[flow] = flows.primaryIsn[flow];
      }
    }
    if ((state & FLOW_RELEASED_ACK) !== 0) {
      state |= FLOW_ACK_KNOWN;
      flows.secondaryAck[flow] = flows.releasedAck[flow];
    }
    flows.flags[flow] = state;
    this.terms.restart(flow);
    this.urgent.restart(flow);
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
    const { queue, primary } = this.state;
    for (let segment = queue.head[flow]; segment >= 0; segment = queue.next[segment]) {
      const flags = primary.flags[segment];
      if ((flags & SEGMENT_TRACKED) !== 0) continue;
      if ((flags & SEGMENT_OPENS) !== 0) return;
      this.stream.track(flow, segment);
    }
  }

  /** What a held frame is waiting for. For reports only. */
  describeWait(flow: number): string {
    const { flows, queue, primary } = this.state;
    const state = flows.flags[flow];
    const head = queue.head[flow];
    const verified = (state & FLOW_VERIFIED_KNOWN) !== 0 ? `${flows.verified[flow] >>> 0}` : "unknown";
    const ack = (state & FLOW_ACK_KNOWN) !== 0 ? `${flows.secondaryAck[flow] >>> 0}` : "unknown";
    let text = `verified up to ${verified}, secondary acknowledged ${ack}`;
    if (head >= 0) {
      const flags = primary.flags[head];
      const names = [
        (flags & SEGMENT_SYN) !== 0 ? "SYN " : "",
        (flags & SEGMENT_FIN) !== 0 ? "FIN " : "",
        (flags & SEGMENT_RST) !== 0 ? "RST " : "",
      ].join("");
      text += `; first held: ${names}sequence ${primary.sequence[head] >>> 0} to ${primary.end[head] >>> 0}`;
      if ((flags & SEGMENT_ACK) !== 0) text += `, acknowledgement ${primary.acknowledgement[head] >>> 0}`;
    }
    return text;
  }

  /**
   * The start of a connection whose first sequence number on the primary is `isn`: nothing of the one before
   * counts.
   */
  private begin(flow: number, isn: number, timeNs: number): void {
    const { flows } = this.state;
    if ((flows.flags[flow] & FLOW_SECONDARY_ISN) !== 0) {
      flows.previousIsn[flow] = flows.secondaryIsn[flow];
      flows.flags[flow] |= FLOW_PREVIOUS_ISN;
    }
    flows.flags[flow] &= ~(
      FLOW_OPENING_ACK |
      FLOW_VERIFIED_KNOWN |
      FLOW_FLOOR |
      FLOW_ISLAND |
      FLOW_ACK_KNOWN |
      FLOW_SECONDARY_ISN |
      FLOW_AWAIT_SYN |
      FLOW_RELEASED_END |
      FLOW_RELEASED_ACK |
      FLOW_EDGE_KNOWN |
      FLOW_RELEASED_EDGE |
      FLOW_URGENT_KNOWN |
      FLOW_RELEASED_URGENT |
      FLOW_RESET |
      FLOW_CLOSED |
      FLOW_CLOSED_BEFORE
    );
    flows.flags[flow] |= FLOW_PRIMARY_ISN;
    flows.primaryIsn[flow] = isn;
    flows.windowScale[flow] = UNKNOWN_SCALE;
    flows.openedNs[flow] = timeNs;
  }

  /** Makes the connection opened by `syn`, the head of the queue, the current one. */
  private open(flow: number, syn: number): void {
    const { state } = this;
    const { flows, primary, secondary, secondaryQueue } = state;
    const isn = primary.sequence[syn];
    this.begin(flow, isn, primary.timeNs[syn]);
    flows.windowScale[flow] = windowScaleOf(primary.meta[syn]);
    flows.verified[flow] = isn;
    flows.flags[flow] |= FLOW_VERIFIED_KNOWN | FLOW_AWAIT_SYN;
    if ((primary.flags[syn] & SEGMENT_ACK) !== 0) {
      flows.openingAck[flow] = primary.acknowledgement[syn];
      flows.flags[flow] |= FLOW_OPENING_ACK;
    }
    flows.openings[flow]--;
    this.stream.track(flow, syn);
    for (let segment = state.queue.next[syn]; segment >= 0; segment = state.queue.next[segment]) {
      if ((primary.flags[segment] & SEGMENT_OPENS) !== 0) break;
      this.stream.track(flow, segment);
    }
    // The secondary's connection that waited for this one: up to the SYN of yet another.
    for (let segment = secondaryQueue.head[flow]; segment >= 0; segment = secondaryQueue.head[flow]) {
      const sequence = secondary.sequence[segment];
      const flags = secondary.flags[segment];
      if ((flags & SEGMENT_SYN) !== 0) {
        const awaited = (flows.flags[flow] & FLOW_AWAIT_SYN) !== 0;
        if (awaited && this.opensSame(flow, flags, sequence, secondary.acknowledgement[segment])) {
          flows.secondaryIsn[flow] = sequence;
          flows.flags[flow] = (flows.flags[flow] & ~FLOW_AWAIT_SYN) | FLOW_SECONDARY_ISN;
        } else if (!awaited && flows.secondaryIsn[flow] !== sequence) {
          return;
        }
        secondary.end[segment] = (secondary.end[segment] - sequence + isn) | 0;
        secondary.sequence[segment] = isn;
      }
      secondaryQueue.remove(flow, segment);
      if ((flows.flags[flow] & FLOW_AWAIT_SYN) === 0) {
        this.acceptWaiting(flow, segment);
      } else {
        state.stats.discardedFrames++;
        state.finish(segment);
      }
    }
  }

  /**
   * Whether a SYN of the secondary is its part of the connection just opened, rather than a repetition of one
   * before: not that number again, and about the same acknowledgement. (Only about: with TCP fast open one
   * side may acknowledge data too.)
   */
  private opensSame(flow: number, flags: number, sequence: number, acknowledgement: number): boolean {
    const { flows } = this.state;
    const state = flows.flags[flow];
    if ((state & FLOW_PREVIOUS_ISN) !== 0 && flows.previousIsn[flow] === sequence) return false;
    if ((state & FLOW_OPENING_ACK) === 0 || (flags & SEGMENT_ACK) === 0) return true;
    const apart = (acknowledgement - flows.openingAck[flow]) | 0;
    return apart > -SAME_OPENING_BYTES && apart < SAME_OPENING_BYTES;
  }

  /** accept() for a segment that has a pool entry. */
  private acceptWaiting(flow: number, segment: number): void {
    const { state } = this;
    const { secondary } = state;
    const flags = secondary.flags[segment];
    const { sequence, acknowledgement, window } = secondary;
    this.acknowledge(flow, flags, sequence[segment], acknowledgement[segment], window[segment]);
    this.urgent.noteSecondary(flow, flags, sequence[segment], secondary.urgent[segment]);
    if ((flags & SEGMENT_RST) !== 0) {
      state.secondaryResets.push(flow, segment);
      return;
    }
    if (secondary.end[segment] === secondary.sequence[segment]) state.finish(segment);
    else this.stream.insertSecondary(flow, segment);
  }

  private releaseVerified(flow: number): void {
    const { state } = this;
    const { queue, primary } = state;
    for (let head = queue.head[flow]; head >= 0; head = queue.head[flow]) {
      const flags = primary.flags[head];
      const acknowledgement = primary.acknowledgement[head];
      const isVerified =
        (flags & (SEGMENT_TRACKED | SEGMENT_VERIFIED)) === (SEGMENT_TRACKED | SEGMENT_VERIFIED);
      if ((flags & SEGMENT_RST) !== 0) {
        if (!isVerified || !this.resets.match(flow, head)) return;
        this.releaseItem(flow, head, false);
      } else if (
        isVerified &&
        this.isAcknowledged(flow, flags, acknowledgement) &&
        this.urgent.isAnnounced(flow, flags, primary.urgent[head])
      ) {
        if (!this.terms.isChanged(flow, head)) {
          this.releaseItem(flow, head, false);
        } else if (this.terms.prepare(flow, head)) {
          this.releaseItem(flow, head, true);
        } else {
          if (this.terms.isNews(flow, head)) this.sendPart(flow, head);
          return;
        }
      } else {
        if (!this.terms.preparePart(flow, head)) return;
        if (isVerified && queue.next[head] >= 0) {
          // The segments behind it say again, and further, what it acknowledges.
          this.releaseItem(flow, head, true);
        } else {
          if (this.terms.isNews(flow, head)) this.sendPart(flow, head);
          return;
        }
      }
    }
  }

  /** A held segment has waited long enough for parts to be sent. */
  waitedLong(flow: number, segment: number): void {
    const { state } = this;
    if ((state.flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    if (state.queue.head[flow] !== segment && this.terms.preparePart(flow, segment)) {
      // What is sent again must not wait for what comes later in the stream: that may be waiting for it.
      if ((state.primary.flags[segment] & SEGMENT_VERIFIED) !== 0) this.releaseItem(flow, segment, true);
      else if (state.change.payloadBytes > 0) this.sendPart(flow, segment);
    }
    this.run(flow);
  }

  private isAcknowledged(flow: number, flags: number, acknowledgement: number): boolean {
    const { flows } = this.state;
    if ((flags & SEGMENT_ACK) === 0) return true;
    if ((flows.flags[flow] & FLOW_ACK_KNOWN) === 0) return false;
    return ((acknowledgement - flows.secondaryAck[flow]) | 0) <= 0;
  }

  /** Releases a held segment, as state.change says if `isChanged`. */
  private releaseItem(flow: number, item: number, isChanged: boolean): void {
    const { state } = this;
    const { primary, change } = state;
    const { sequence, end, timeNs } = primary;
    const flags = primary.flags[item];
    const acknowledgement = isChanged ? change.acknowledgement : primary.acknowledgement[item];
    const window = isChanged ? change.window : primary.window[item];
    if (isChanged) change.silent = (flags & SEGMENT_PARTED) !== 0 && !this.terms.isNews(flow, item);
    if (window < primary.window[item]) state.stats.clampedWindows++;
    const urgent = primary.urgent[item];
    this.noteReleased(flow, flags, sequence[item], end[item], acknowledgement, timeNs[item], window, urgent);
    state.releaseCompared(item, isChanged ? change : null);
  }

  /** Sends what state.change says of the first held segment. */
  private sendPart(flow: number, head: number): void {
    const { primary, change } = this.state;
    const { sequence, payloadBytes, fin, acknowledgement, window } = change;
    const end = (sequence + payloadBytes + (fin ? 1 : 0)) | 0;
    const flags = fin ? primary.flags[head] : primary.flags[head] & ~SEGMENT_FIN;
    const urgent = primary.urgent[head];
    this.noteReleased(flow, flags, sequence, end, acknowledgement, primary.timeNs[head], window, urgent);
    this.terms.sendPart(flow, head);
  }
}

/** From the options of a SYN (see ParsedFrame.meta). */
function windowScaleOf(meta: number): number {
  const scale = (meta >>> 8) & 0xff;
  // RFC 7323, 2.3: more than 14 is taken for 14. Without the option windows are not scaled.
  return scale === 0xff ? 0 : Math.min(scale, 14);
}

/** Gives the secondary's SYN the primary's number. */
function translateSyn(frame: ParsedFrame, isn: number): void {
  frame.end = (frame.end - frame.sequence + isn) | 0;
  frame.sequence = isn;
}
