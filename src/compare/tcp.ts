import {
  FLOW_ACK_KNOWN,
  FLOW_AWAIT_SYN,
  FLOW_CLOSED,
  FLOW_CLOSED_BEFORE,
  FLOW_FLOOR,
  FLOW_FROZEN,
  FLOW_ISLAND,
  FLOW_OPENING_ACK,
  FLOW_PREVIOUS_ISN,
  FLOW_PRIMARY_ISN,
  FLOW_QUEUED_SYN,
  FLOW_RELEASED_ACK,
  FLOW_RELEASED_END,
  FLOW_RESET,
  FLOW_RESET_ACK,
  FLOW_SECONDARY_ISN,
  FLOW_VERIFIED_KNOWN,
} from "./flow_table.ts";
import type { ParsedFrame } from "./parse.ts";
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
import type { CompareState } from "./state.ts";

/** How far the acknowledgements of two SYNs of the same connection may be apart. */
const SAME_OPENING_BYTES = 65_536;

/**
 * TCP: what must agree is the byte stream and what has been acknowledged, not the segments.
 *
 * The problem: the two guests cut the same stream differently, retransmit at other moments, acknowledge at other moments. The
 * insight: a client can only notice (a) bytes, at their place in the sequence space, (b) how far its own bytes are acknowledged,
 * (c) that the connection is opened, closed or reset. So for each flow there is one number, `verified`: both sides have
 * produced every byte below it. A primary segment is released, in order of arrival, when
 *
 *     its end <= verified   and   its acknowledgement <= the highest one of the secondary      (RFC 9293 3.4, modulo 2^32)
 *
 * SYN and FIN are places in the stream like bytes. The secondary's SYN has a number of its own and is given the primary's; all its
 * later segments arrive already in the primary's numbers (the rewriting programs do that).
 *
 * Connections. A SYN with another number than the one before opens another connection on the same ports. It becomes the
 * current one when everything queued before it has been released and nothing of the secondary's old one is unmatched; until
 * then its segments wait behind it. The secondary's segments of a connection that the primary has not opened yet wait as well.
 *
 * First seen in mid-stream. Without a SYN or a checkpoint that saw the flow, `verified` starts at the first primary segment with
 * bytes. That says nothing about the bytes below: usually they are older than the last checkpoint (which covers them), but the
 * segment before may also have been dropped by a full ring and be sent again. So that start is a *floor*: a segment that begins below it
 * counts as unverified, moves floor and `verified` down to its own start, and what had been verified above becomes an island that
 * `verified` skips when it gets there. The secondary's acknowledgement starts as unknown, which releases nothing. So
 * no byte and no acknowledgement leaves that the secondary has not produced since the checkpoint; the price is a wait, at worst a
 * checkpoint.
 *
 * After a checkpoint both stacks are equal. What the primary had sent before it is covered, so `verified` is the highest end and
 * `secondaryAck` the highest acknowledgement that was released, without a floor.
 *
 * Limits, on purpose: window, options after the SYN, urgent pointer, ECN and PSH may differ. A retransmission below `verified` is
 * not compared again: both stacks send it from the buffer whose bytes were compared the first time.
 */
export class TcpFlows {
  constructor(private readonly state: CompareState) {}

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
    if (flows.openings[flow] === 0) this.track(flow, segment);
    this.run(flow);
  }

  /** A secondary segment of a flow that is not frozen. Returns false when the pool is exhausted (nothing has happened then). */
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
      if (this.isRepeatedReset(flow, frame.flags, frame.sequence, frame.acknowledgement, frame.dataBytes)) {
        state.finishSlot(slot);
      } else {
        const segment = state.wait(flow, slot, frame);
        if (segment < 0) return false;
        state.secondaryResets.push(flow, segment);
      }
      this.acknowledge(flow, frame.flags, frame.sequence, frame.acknowledgement);
      return true;
    }
    const needed = frame.end !== frame.sequence && !this.isBelowVerified(flow, frame.end);
    if (needed) {
      const segment = state.wait(flow, slot, frame);
      if (segment < 0) return false;
      this.insertSecondary(flow, segment);
    } else {
      state.finishSlot(slot);
    }
    this.acknowledge(flow, frame.flags, frame.sequence, frame.acknowledgement);
    return true;
  }

  /** Notes how far the secondary has acknowledged its current connection. */
  private acknowledge(flow: number, flags: number, sequence: number, acknowledgement: number): void {
    if ((flags & SEGMENT_ACK) === 0) return;
    // What an RST without a connection acknowledges is what it refuses.
    if ((flags & SEGMENT_RST) !== 0 && sequence === 0) return;
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
      if (!this.advance(flow)) return;
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
  }

  /**
   * A frame older than the last checkpoint turned up after it. It has been released; what it covers is raised at once. Held
   * frames of the flow may become releasable.
   */
  noteLate(flow: number, frame: ParsedFrame): void {
    const { flows } = this.state;
    if (frame.timeNs < flows.openedNs[flow]) return;
    const syn = (frame.flags & SEGMENT_SYN) !== 0;
    const known = (flows.flags[flow] & FLOW_PRIMARY_ISN) !== 0 && flows.primaryIsn[flow] === frame.sequence;
    this.noteReleased(flow, frame.flags, frame.sequence, frame.end, frame.acknowledgement, frame.timeNs);
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
    let state = flows.flags[flow];
    if (frame.end !== frame.sequence) {
      if ((state & FLOW_VERIFIED_KNOWN) === 0) {
        state |= FLOW_VERIFIED_KNOWN;
        flows.verified[flow] = frame.end;
      } else if ((state & FLOW_FLOOR) === 0 || ((frame.end - flows.floor[flow]) | 0) >= 0) {
        // The checkpoint covers everything below this end, so it reaches the floor from below: no floor any more.
        state &= ~FLOW_FLOOR;
        if (((frame.end - flows.verified[flow]) | 0) > 0) flows.verified[flow] = frame.end;
      }
    }
    if ((frame.flags & SEGMENT_ACK) !== 0) {
      if ((state & FLOW_ACK_KNOWN) === 0 || ((frame.acknowledgement - flows.secondaryAck[flow]) | 0) > 0) {
        flows.secondaryAck[flow] = frame.acknowledgement;
        state |= FLOW_ACK_KNOWN;
      }
    }
    flows.flags[flow] = state;
    this.run(flow);
  }

  /** After a checkpoint: the common state is what was released. All secondary segments are gone already. Does not run(). */
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
      this.track(flow, segment);
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

  /** The start of a connection whose first sequence number on the primary is `isn`: nothing of the one before counts. */
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
      FLOW_RESET |
      FLOW_CLOSED |
      FLOW_CLOSED_BEFORE
    );
    flows.flags[flow] |= FLOW_PRIMARY_ISN;
    flows.primaryIsn[flow] = isn;
    flows.openedNs[flow] = timeNs;
  }

  /** Makes the connection opened by `syn`, the head of the queue, the current one. */
  private open(flow: number, syn: number): void {
    const { state } = this;
    const { flows, primary, secondary, secondaryQueue } = state;
    const isn = primary.sequence[syn];
    this.begin(flow, isn, primary.timeNs[syn]);
    flows.verified[flow] = isn;
    flows.flags[flow] |= FLOW_VERIFIED_KNOWN | FLOW_AWAIT_SYN;
    if ((primary.flags[syn] & SEGMENT_ACK) !== 0) {
      flows.openingAck[flow] = primary.acknowledgement[syn];
      flows.flags[flow] |= FLOW_OPENING_ACK;
    }
    flows.openings[flow]--;
    this.track(flow, syn);
    for (let segment = state.queue.next[syn]; segment >= 0; segment = state.queue.next[segment]) {
      if ((primary.flags[segment] & SEGMENT_OPENS) !== 0) break;
      this.track(flow, segment);
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
   * Whether a SYN of the secondary is its part of the connection just opened, rather than a repetition of one before: not
   * that number again, and about the same acknowledgement. (Only about: with TCP fast open one side may acknowledge data too.)
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
    this.acknowledge(flow, flags, secondary.sequence[segment], secondary.acknowledgement[segment]);
    if ((flags & SEGMENT_RST) !== 0) {
      state.secondaryResets.push(flow, segment);
      return;
    }
    if (secondary.end[segment] === secondary.sequence[segment]) state.finish(segment);
    else this.insertSecondary(flow, segment);
  }

  /** Lets a primary segment of the current connection take part in the comparison, unless it is newer than the horizon. */
  private track(flow: number, segment: number): void {
    const { state } = this;
    const { flows, primary } = state;
    if (primary.timeNs[segment] > state.horizonNs) return;
    const sequence = primary.sequence[segment];
    const end = primary.end[segment];
    if (end === sequence || this.isVerified(flow, sequence, end)) {
      primary.flags[segment] |= SEGMENT_TRACKED | SEGMENT_VERIFIED;
      return;
    }
    primary.flags[segment] |= SEGMENT_TRACKED | SEGMENT_SORTED;
    const flags = flows.flags[flow];
    if ((flags & FLOW_VERIFIED_KNOWN) === 0) {
      flows.verified[flow] = sequence;
      flows.floor[flow] = sequence;
      flows.flags[flow] = flags | FLOW_VERIFIED_KNOWN | FLOW_FLOOR;
    } else if ((flags & FLOW_FLOOR) !== 0 && ((sequence - flows.floor[flow]) | 0) < 0) {
      this.lowerFloor(flow, sequence);
    }
    const { tail, prev } = state.primarySorted;
    let after = tail[flow];
    while (after >= 0 && ((sequence - primary.sequence[after]) | 0) < 0) after = prev[after];
    state.primarySorted.insertAfter(flow, segment, after);
  }

  private lowerFloor(flow: number, sequence: number): void {
    const { flows } = this.state;
    const verified = flows.verified[flow];
    // With an island above already, what was verified between floor and island is given up and verified again.
    if ((flows.flags[flow] & FLOW_ISLAND) === 0 && ((verified - flows.floor[flow]) | 0) > 0) {
      flows.islandStart[flow] = flows.floor[flow];
      flows.islandEnd[flow] = verified;
      flows.flags[flow] |= FLOW_ISLAND;
    }
    flows.floor[flow] = sequence;
    flows.verified[flow] = sequence;
  }

  private isBelowVerified(flow: number, end: number): boolean {
    const { flows } = this.state;
    return (flows.flags[flow] & FLOW_VERIFIED_KNOWN) !== 0 && ((end - flows.verified[flow]) | 0) <= 0;
  }

  private isVerified(flow: number, sequence: number, end: number): boolean {
    const { flows } = this.state;
    const flags = flows.flags[flow];
    if ((flags & FLOW_VERIFIED_KNOWN) === 0) return false;
    if ((flags & FLOW_FLOOR) === 0) return ((end - flows.verified[flow]) | 0) <= 0;
    if (((end - flows.verified[flow]) | 0) <= 0 && ((sequence - flows.floor[flow]) | 0) >= 0) return true;
    return (
      (flags & FLOW_ISLAND) !== 0 &&
      ((sequence - flows.islandStart[flow]) | 0) >= 0 &&
      ((end - flows.islandEnd[flow]) | 0) <= 0
    );
  }

  private insertSecondary(flow: number, segment: number): void {
    const { secondary, secondarySorted } = this.state;
    const sequence = secondary.sequence[segment];
    const { tail, prev } = secondarySorted;
    let after = tail[flow];
    while (after >= 0 && ((sequence - secondary.sequence[after]) | 0) < 0) after = prev[after];
    secondarySorted.insertAfter(flow, segment, after);
  }

  /** Moves `verified` over what both sides have. Returns false when the flow has diverged. */
  private advance(flow: number): boolean {
    const { state } = this;
    const { flows, primary, secondary, primarySorted, secondarySorted } = state;
    if ((flows.flags[flow] & FLOW_VERIFIED_KNOWN) === 0) return true;
    for (;;) {
      if ((flows.flags[flow] & FLOW_ISLAND) !== 0) this.crossIsland(flow);
      const verified = flows.verified[flow];
      let s = secondarySorted.head[flow];
      while (s >= 0 && ((secondary.end[s] - verified) | 0) <= 0) {
        secondarySorted.remove(flow, s);
        state.finish(s);
        s = secondarySorted.head[flow];
      }
      let p = primarySorted.head[flow];
      while (p >= 0 && ((primary.end[p] - verified) | 0) <= 0) {
        primarySorted.remove(flow, p);
        primary.flags[p] = (primary.flags[p] & ~SEGMENT_SORTED) | SEGMENT_VERIFIED;
        p = primarySorted.head[flow];
      }
      if (p < 0 || s < 0) return true;
      if (((primary.sequence[p] - verified) | 0) > 0) return true;
      if (((secondary.sequence[s] - verified) | 0) > 0) return true;
      if (!this.step(flow, p, s, verified)) return false;
    }
  }

  private crossIsland(flow: number): void {
    const { flows } = this.state;
    const verified = flows.verified[flow];
    if (((verified - flows.islandStart[flow]) | 0) < 0) return;
    if (((flows.islandEnd[flow] - verified) | 0) > 0) flows.verified[flow] = flows.islandEnd[flow];
    flows.flags[flow] &= ~FLOW_ISLAND;
  }

  /** Compares two segments that both cover `verified`, and moves it. Returns false when they differ. */
  private step(flow: number, p: number, s: number, verified: number): boolean {
    const { state } = this;
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
        return this.differentFlags(flow, verified, "SYN", primaryAt < 0);
      if (primary.meta[p] !== secondary.meta[s]) {
        state.diverge(
          flow,
          "flags",
          `the SYNs offer different options: ${describeOptions(primary.meta[p])} on the primary, ${describeOptions(secondary.meta[s])} on the secondary`,
        );
        return false;
      }
      flows.verified[flow] = (verified + 1) | 0;
      return true;
    }
    if (primaryLeft === 0 || secondaryLeft === 0) {
      if (primaryLeft !== 0 || secondaryLeft !== 0) {
        return this.differentFlags(flow, verified, "FIN", primaryLeft === 0);
      }
      flows.verified[flow] = (verified + 1) | 0;
      return true;
    }
    const n = Math.min(primaryLeft, secondaryLeft);
    const primaryData = primary.data[p] + primaryAt;
    const secondaryData = secondary.data[s] + secondaryAt;
    if (state.compareBytes(primaryData, secondaryData, n) !== 0) {
      this.differentPayload(flow, verified, primaryData, secondaryData, n);
      return false;
    }
    flows.verified[flow] = (verified + n) | 0;
    return true;
  }

  private differentFlags(flow: number, at: number, flag: string, onPrimary: boolean): boolean {
    const [side, other] = onPrimary ? ["primary", "secondary"] : ["secondary", "primary"];
    const detail = `${flag} on the ${side} at sequence ${at >>> 0}, where the ${other} has data`;
    this.state.diverge(flow, "flags", detail, this.streamOffset(flow, at));
    return false;
  }

  private differentPayload(
    flow: number,
    at: number,
    primaryData: number,
    secondaryData: number,
    n: number,
  ): void {
    const { state } = this;
    const index = state.firstDifference(primaryData, secondaryData, n);
    const sequence = (at + index) >>> 0;
    const pair = state.bytePair(primaryData + index, secondaryData + index);
    const detail = `sequence ${sequence} differs: ${pair}`;
    state.diverge(flow, "payload", detail, this.streamOffset(flow, sequence));
  }

  private streamOffset(flow: number, sequence: number): number | undefined {
    const { flows } = this.state;
    if ((flows.flags[flow] & FLOW_PRIMARY_ISN) === 0) return undefined;
    return (sequence - flows.primaryIsn[flow] - 1) >>> 0;
  }

  private releaseVerified(flow: number): void {
    const { state } = this;
    const { flows, queue, primary } = state;
    for (let head = queue.head[flow]; head >= 0; head = queue.head[flow]) {
      const flags = primary.flags[head];
      if ((flags & (SEGMENT_TRACKED | SEGMENT_VERIFIED)) !== (SEGMENT_TRACKED | SEGMENT_VERIFIED)) return;
      const acknowledgement = primary.acknowledgement[head];
      if ((flags & SEGMENT_RST) !== 0) {
        if (!this.matchReset(flow, head)) return;
      } else if ((flags & SEGMENT_ACK) !== 0) {
        if ((flows.flags[flow] & FLOW_ACK_KNOWN) === 0) return;
        if (((acknowledgement - flows.secondaryAck[flow]) | 0) > 0) return;
      }
      const { sequence, end, timeNs } = primary;
      this.noteReleased(flow, flags, sequence[head], end[head], acknowledgement, timeNs[head]);
      state.releaseCompared(head);
    }
  }

  /**
   * A RST is released when the secondary has sent one at the same sequence number that acknowledges at least as much; one with
   * sequence number 0 answers a segment without a connection (RFC 9293 3.10.7.1), so its acknowledgement must be the same. Each RST of the
   * secondary serves once, but one that says no more than the last pair needs no other: it tells the client nothing new.
   */
  private matchReset(flow: number, segment: number): boolean {
    const { state } = this;
    const { flows, primary, secondary, secondaryResets } = state;
    const sequence = primary.sequence[segment];
    const acknowledgement = primary.acknowledgement[segment];
    const acknowledges = primary.flags[segment] & SEGMENT_ACK;
    const bytes = primary.dataBytes[segment];
    for (let s = secondaryResets.head[flow]; s >= 0; s = secondaryResets.next[s]) {
      if (secondary.sequence[s] !== sequence) continue;
      if ((secondary.flags[s] & SEGMENT_ACK) !== acknowledges) continue;
      const ahead = (secondary.acknowledgement[s] - acknowledgement) | 0;
      if (acknowledges !== 0 && (sequence === 0 ? ahead !== 0 : ahead < 0)) continue;
      if (secondary.dataBytes[s] !== bytes) continue;
      if (state.compareBytes(primary.data[segment], secondary.data[s], bytes) !== 0) continue;
      flows.resetSequence[flow] = sequence;
      flows.resetAck[flow] = secondary.acknowledgement[s];
      const marks = acknowledges !== 0 ? FLOW_RESET | FLOW_RESET_ACK : FLOW_RESET;
      flows.flags[flow] = (flows.flags[flow] & ~FLOW_RESET_ACK) | marks;
      secondaryResets.remove(flow, s);
      state.finish(s);
      this.finishRepeatedResets(flow);
      return true;
    }
    return this.isRepeatedReset(flow, acknowledges, sequence, acknowledgement, bytes);
  }

  private finishRepeatedResets(flow: number): void {
    const { state } = this;
    const { flags, sequence, acknowledgement, dataBytes } = state.secondary;
    let s = state.secondaryResets.head[flow];
    while (s >= 0) {
      const following = state.secondaryResets.next[s];
      if (this.isRepeatedReset(flow, flags[s], sequence[s], acknowledgement[s], dataBytes[s])) {
        state.secondaryResets.remove(flow, s);
        state.finish(s);
      }
      s = following;
    }
  }

  /** Whether an RST says no more than the secondary's RST of the last matched pair. */
  private isRepeatedReset(
    flow: number,
    flags: number,
    sequence: number,
    acknowledgement: number,
    bytes: number,
  ): boolean {
    const { flows } = this.state;
    const state = flows.flags[flow];
    if ((state & FLOW_RESET) === 0 || bytes !== 0 || flows.resetSequence[flow] !== sequence) return false;
    if ((flags & SEGMENT_ACK) === 0) return true;
    if ((state & FLOW_RESET_ACK) === 0) return false;
    const ahead = (flows.resetAck[flow] - acknowledgement) | 0;
    return sequence === 0 ? ahead === 0 : ahead >= 0;
  }
}

/** Gives the secondary's SYN the primary's number. */
function translateSyn(frame: ParsedFrame, isn: number): void {
  frame.end = (frame.end - frame.sequence + isn) | 0;
  frame.sequence = isn;
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
