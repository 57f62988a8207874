/**
 * TCP: what must agree is the byte stream and what has been acknowledged, not the segments.
 *
 * The problem: the two guests cut the same stream differently, retransmit at other moments, acknowledge at
 * other moments. The insight: a client can only notice (a) bytes, at their place in the sequence space, (b)
 * how far its own bytes are acknowledged, (c) that the connection is opened, closed or reset. So for each
 * flow there is one number, `verified`: both sides have produced every byte below it. A primary segment is
 * released, in order of arrival, when
 *
 *     its end <= verified   and   its acknowledgement <= the highest one of the secondary
 *
 * in the arithmetic of sequence numbers, modulo 2^32 (RFC 9293, 3.4).
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
import { FLOW_FROZEN, FLOW_SECONDARY_ACK_KNOWN, FLOW_VERIFIED_KNOWN } from "./flow_table.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_OPENS,
  SEGMENT_RST,
  SEGMENT_SYN,
  SEGMENT_TRACKED,
} from "./segment_pool.ts";
import type { CompareState } from "./state.ts";
import { TcpCheckpoints } from "./tcp_checkpoint.ts";
import { ARRIVAL_REFUSED, ARRIVAL_TAKEN, TcpConnections } from "./tcp_connection.ts";
import { TcpReleases } from "./tcp_release.ts";
import { TcpResets } from "./tcp_resets.ts";
import { TcpStream } from "./tcp_stream.ts";
import { TcpTerms } from "./tcp_terms.ts";
import { TcpUrgent } from "./tcp_urgent.ts";

export class TcpFlows {
  readonly #state: CompareState;
  readonly #stream: TcpStream;
  readonly #connections: TcpConnections;
  readonly #checkpoints: TcpCheckpoints;
  readonly #releases: TcpReleases;

  /** @param partAfterNs after this time a held segment is sent as far as it can be; Infinity: never */
  constructor(state: CompareState, partAfterNs: number = Number.POSITIVE_INFINITY) {
    const stream = new TcpStream(state);
    const resets = new TcpResets(state);
    const terms = new TcpTerms(state, stream, partAfterNs);
    const urgent = new TcpUrgent(state);
    this.#state = state;
    this.#stream = stream;
    this.#connections = new TcpConnections(state, stream, resets, terms, urgent);
    this.#checkpoints = new TcpCheckpoints(state, this.#connections, stream, terms, urgent);
    this.#releases = new TcpReleases(state, this.#checkpoints, resets, terms, urgent);
  }

  /** A primary segment was put at the end of its flow's queue. */
  primaryAdded(flow: number, segment: number): void {
    this.#connections.primaryQueued(flow, segment);
    this.run(flow);
  }

  /**
   * A secondary segment of a flow that is not frozen. Returns false when the pool is exhausted (nothing has
   * happened then).
   */
  secondaryAdded(flow: number, slot: number, frame: ParsedFrame): boolean {
    const arrival = this.#connections.secondaryArrived(flow, slot, frame);
    if (arrival === ARRIVAL_TAKEN) this.run(flow);
    return arrival !== ARRIVAL_REFUSED;
  }

  /** Compares, releases and opens connections as far as it goes. */
  run(flow: number): void {
    const state = this.#state;
    const { flows, queue, primary } = state;
    for (;;) {
      if ((flows.flags[flow] & FLOW_FROZEN) !== 0) return;
      if (!this.#stream.advance(flow)) return;
      this.#releases.releaseVerified(flow);
      const head = queue.head[flow];
      if (head < 0) return;
      const flags = primary.flags[head];
      if ((flags & SEGMENT_OPENS) === 0 || (flags & SEGMENT_TRACKED) !== 0) return;
      if (primary.timeNs[head] > state.horizonNs) return;
      if (state.secondarySorted.head[flow] >= 0 || state.secondaryResets.head[flow] >= 0) return;
      this.#connections.open(flow, head);
    }
  }

  /** A held segment leaves as it is, by a checkpoint or since the VM runs alone. */
  noteReleased(flow: number, item: number): void {
    this.#checkpoints.noteReleasedItem(flow, item);
  }

  /** A frame older than the last checkpoint turned up after it, and has been released. */
  noteLate(flow: number, frame: ParsedFrame): void {
    if (this.#checkpoints.noteLate(flow, frame)) this.run(flow);
  }

  /** After a checkpoint, when the secondary's segments are gone. Does not run(). */
  restart(flow: number): void {
    this.#checkpoints.restart(flow);
  }

  /** The horizon has moved up: segments that are older than it now take part. Does not run(). */
  trackQueue(flow: number): void {
    this.#checkpoints.trackQueue(flow);
  }

  /** A held segment has waited long enough for parts to be sent. */
  waitedLong(flow: number, segment: number): void {
    if ((this.#state.flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    this.#releases.waitedLong(flow, segment);
    this.run(flow);
  }

  /** What a held frame is waiting for. For reports only. */
  describeWait(flow: number): string {
    const { flows, queue, primary } = this.#state;
    const state = flows.flags[flow];
    const head = queue.head[flow];
    const verified = (state & FLOW_VERIFIED_KNOWN) !== 0 ? `${flows.verified[flow] >>> 0}` : "unknown";
    const ack = (state & FLOW_SECONDARY_ACK_KNOWN) !== 0 ? `${flows.secondaryAck[flow] >>> 0}` : "unknown";
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
}
