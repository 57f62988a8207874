/**
 * The short way of the usual case: TCP segments of an established connection, the secondary's there already
 * when the primary's comes, everything in order. It does at once what TcpFlows and TcpStream do step by step,
 * with the same result: a primary segment that can be released on the spot never enters pool and lists.
 * Whatever is not just so is left alone (`false`), and goes the long way as if this file were not there.
 */
import {
  FLOW_AWAIT_SYN,
  FLOW_FROZEN,
  FLOW_ISLAND_KNOWN,
  FLOW_PASSTHROUGH,
  FLOW_RELEASED_ACK_KNOWN,
  FLOW_RELEASED_EDGE_KNOWN,
  FLOW_RELEASED_END_KNOWN,
  FLOW_RELEASED_URGENT_KNOWN,
  FLOW_SECONDARY_ACK_KNOWN,
  FLOW_SECONDARY_EDGE_KNOWN,
  FLOW_SECONDARY_URGENT_KNOWN,
  FLOW_TCP,
  FLOW_VERIFIED_KNOWN,
  UNKNOWN_SCALE,
} from "./flow_table.ts";
import type { RecordMemory } from "./options.ts";
import { parsePlainTcp } from "./parse_plain_tcp.ts";
import { type ParsedFrame, recordTimeNs } from "./parsed_frame.ts";
import { SameSegment } from "./same_segment.ts";
import { SEGMENT_FIN, SEGMENT_RST, SEGMENT_SYN, SEGMENT_URG } from "./segment_pool.ts";
import type { CompareState } from "./state.ts";

/** Flows that are found without hashing a whole key: 2^16. */
const KNOWN_FLOWS_BITS = 16;

/**
 * What a flow must have for the short way, and what it must not. A floor (TcpStream) is no obstacle: what
 * begins at `verified` does not lie below it.
 */
const NEEDED = FLOW_TCP | FLOW_VERIFIED_KNOWN | FLOW_SECONDARY_ACK_KNOWN;
const UNUSUAL =
  FLOW_FROZEN |
  FLOW_ISLAND_KNOWN |
  FLOW_AWAIT_SYN |
  FLOW_PASSTHROUGH |
  FLOW_SECONDARY_URGENT_KNOWN |
  FLOW_RELEASED_URGENT_KNOWN;
/** What a pair changes nothing about, since it has been so for long. */
const RELEASED = FLOW_RELEASED_END_KNOWN | FLOW_RELEASED_ACK_KNOWN;
const EDGES = FLOW_SECONDARY_EDGE_KNOWN | FLOW_RELEASED_EDGE_KNOWN;
const SPECIAL_SEGMENT = SEGMENT_SYN | SEGMENT_FIN | SEGMENT_RST | SEGMENT_URG;

export class InOrderTcp {
  readonly #knownFlows = new Int32Array(2 ** KNOWN_FLOWS_BITS).fill(-1);
  readonly #primaryView: DataView;
  readonly #secondaryView: DataView;
  readonly #same: SameSegment;

  readonly #state: CompareState;
  readonly #frame: ParsedFrame;

  constructor(state: CompareState, frame: ParsedFrame, primary: RecordMemory, secondary: RecordMemory) {
    this.#state = state;
    this.#frame = frame;
    this.#primaryView = primary.view;
    this.#secondaryView = secondary.view;
    this.#same = new SameSegment(primary, secondary);
  }

  /**
   * Takes a segment of the secondary and then the same one of the primary, if nothing else of their flow
   * waits: what addSecondary() and then addPrimary() would do, without an entry in the pool. Nothing has
   * happened if it is not so.
   */
  addPair(
    primarySlot: number,
    primaryOffset: number,
    secondarySlot: number,
    secondaryOffset: number,
  ): boolean {
    const state = this.#state;
    const same = this.#same;
    const primaryView = this.#primaryView;
    const secondaryView = this.#secondaryView;
    if (!same.match(primaryOffset, secondaryOffset, state.epoch)) return false;
    const timeNs = recordTimeNs(primaryView, primaryOffset);
    if (timeNs <= state.boundaryNs || timeNs > state.horizonNs) return false;
    const { transport, payload, payloadBytes } = same;
    const at = primaryOffset + transport;
    const theirs = secondaryOffset + transport;
    const flow = this.#flowOf(primaryView, at, same.version);
    if (flow < 0) return false;
    const { flows } = state;
    const known = flows.flags[flow];
    if ((known & (NEEDED | RELEASED | UNUSUAL)) !== (NEEDED | RELEASED)) return false;
    if ((flows.held[flow] | flows.overflowed[flow] | flows.openings[flow] | flows.pending[flow]) !== 0)
      return false;
    if (timeNs < flows.openedNs[flow]) return false;

    const acknowledgement = primaryView.getInt32(at + 8);
    const offer = secondaryView.getInt32(theirs + 8);
    const secondaryAck = later(flows.secondaryAck[flow], offer);
    if (((acknowledgement - secondaryAck) | 0) > 0) return false;
    const scale = flows.windowScale[flow];
    let edge = 0;
    let secondaryEdge = 0;
    if (scale !== UNKNOWN_SCALE) {
      if ((known & EDGES) !== EDGES) return false;
      edge = (acknowledgement + (primaryView.getUint16(at + 14) << scale)) | 0;
      secondaryEdge = (offer + (secondaryView.getUint16(theirs + 14) << scale)) | 0;
      secondaryEdge = later(flows.secondaryEdge[flow], secondaryEdge);
      if (((edge - secondaryEdge) | 0) > 0 && ((edge - flows.releasedEdge[flow]) | 0) > 0) return false;
    }
    const sequence = primaryView.getInt32(at + 4);
    if (payloadBytes === 0) {
      if (((sequence - flows.verified[flow]) | 0) > 0) return false;
    } else {
      if (sequence !== flows.verified[flow]) return false;
      const secondaryPayload = secondaryOffset + payload;
      if (state.compareBytes(primaryOffset + payload, secondaryPayload, payloadBytes) !== 0) {
        // The long way finds it again, and says where.
        state.stats.comparedBytes -= payloadBytes;
        return false;
      }
      const end = (sequence + payloadBytes) | 0;
      flows.verified[flow] = end;
      flows.releasedEnd[flow] = later(flows.releasedEnd[flow], end);
    }

    flows.secondaryAck[flow] = secondaryAck;
    flows.releasedAck[flow] = later(flows.releasedAck[flow], acknowledgement);
    if (scale !== UNKNOWN_SCALE) {
      flows.secondaryEdge[flow] = secondaryEdge;
      flows.releasedEdge[flow] = later(flows.releasedEdge[flow], edge);
    }
    const secondaryNs = recordTimeNs(secondaryView, secondaryOffset);
    if (secondaryNs > state.nowNs) state.nowNs = secondaryNs;
    this.#noteTime(flow, timeNs);
    state.releasePair(primarySlot, secondarySlot);
    return true;
  }

  /** Takes a frame of the primary that can be released at once. */
  addPrimary(slot: number, offset: number): boolean {
    const state = this.#state;
    const frame = this.#frame;
    const { flows, stats } = state;
    if (!parsePlainTcp(this.#primaryView, offset, frame)) return false;
    const timeNs = frame.timeNs;
    if (timeNs <= state.boundaryNs || timeNs > state.horizonNs) return false;
    const flow = this.#flowOf(this.#primaryView, frame.transport, frame.version);
    if (flow < 0) return false;
    let known = flows.flags[flow];
    if ((known & (NEEDED | UNUSUAL)) !== NEEDED) return false;
    if (flows.held[flow] !== 0 || flows.overflowed[flow] !== 0 || flows.openings[flow] !== 0) return false;
    if (timeNs < flows.openedNs[flow]) return false;
    const { acknowledgement, sequence, end } = frame;
    if (((acknowledgement - flows.secondaryAck[flow]) | 0) > 0) return false;

    // As TcpTerms.windowFor() for a segment whose acknowledgement stays.
    const scale = flows.windowScale[flow];
    let edge = 0;
    if (scale !== UNKNOWN_SCALE) {
      edge = (acknowledgement + (frame.window << scale)) | 0;
      const isPast =
        (known & FLOW_SECONDARY_EDGE_KNOWN) !== 0 && ((edge - flows.secondaryEdge[flow]) | 0) > 0;
      if (isPast && !this.#wasReleased(flow, known, edge)) return false;
    }

    if (end !== sequence) {
      if (sequence !== flows.verified[flow]) return false;
      if (!this.#compare(flow, sequence, end)) return false;
      flows.verified[flow] = end;
      if ((known & FLOW_RELEASED_END_KNOWN) === 0 || ((end - flows.releasedEnd[flow]) | 0) > 0) {
        flows.releasedEnd[flow] = end;
        known |= FLOW_RELEASED_END_KNOWN;
      }
    } else if (((sequence - flows.verified[flow]) | 0) > 0) {
      return false;
    }
    if ((known & FLOW_RELEASED_ACK_KNOWN) === 0 || ((acknowledgement - flows.releasedAck[flow]) | 0) > 0) {
      flows.releasedAck[flow] = acknowledgement;
      known |= FLOW_RELEASED_ACK_KNOWN;
    }
    if (scale !== UNKNOWN_SCALE && !this.#wasReleased(flow, known, edge)) {
      flows.releasedEdge[flow] = edge;
      known |= FLOW_RELEASED_EDGE_KNOWN;
    }
    flows.flags[flow] = known;
    this.#noteTime(flow, timeNs);
    stats.primaryAdded++;
    stats.heldFrames++;
    stats.releasedByComparison++;
    state.releaseSlot(slot);
    return true;
  }

  /** Keeps a frame of the secondary that the primary has not sent yet. */
  addSecondary(slot: number, offset: number): boolean {
    const state = this.#state;
    const frame = this.#frame;
    const { flows, stats } = state;
    if (!parsePlainTcp(this.#secondaryView, offset, frame)) return false;
    if (frame.epoch !== state.epoch) return false;
    const flow = this.#flowOf(this.#secondaryView, frame.transport, frame.version);
    if (flow < 0) return false;
    const known = flows.flags[flow];
    if ((known & (NEEDED | UNUSUAL)) !== NEEDED) return false;
    // With something held the long way looks what can be done about it.
    if (flows.held[flow] !== 0 || flows.pending[flow] >= state.limits.pendingFramesPerFlowMax) return false;
    if (state.secondaryQueue.head[flow] >= 0) return false;
    const { acknowledgement, sequence, end, timeNs } = frame;
    if (end === sequence || ((end - flows.verified[flow]) | 0) <= 0) return false;
    const { secondary, secondarySorted } = state;
    const tail = secondarySorted.tail[flow];
    if (tail >= 0 && ((sequence - secondary.sequence[tail]) | 0) < 0) return false;

    const item = secondary.take();
    if (item < 0) return false;
    // What is left out counts for other kinds of frames and segments only.
    secondary.slot[item] = slot;
    secondary.flow[item] = flow;
    secondary.record[item] = offset;
    secondary.timeNs[item] = timeNs;
    secondary.flags[item] = frame.flags;
    secondary.sequence[item] = sequence;
    secondary.end[item] = end;
    secondary.acknowledgement[item] = acknowledgement;
    secondary.window[item] = frame.window;
    secondary.data[item] = frame.data;
    secondary.dataBytes[item] = frame.dataBytes;
    state.enlist(item, flow);
    secondarySorted.push(flow, item);

    if (((acknowledgement - flows.secondaryAck[flow]) | 0) > 0) flows.secondaryAck[flow] = acknowledgement;
    const scale = flows.windowScale[flow];
    if (scale !== UNKNOWN_SCALE) {
      const edge = (acknowledgement + (frame.window << scale)) | 0;
      if ((known & FLOW_SECONDARY_EDGE_KNOWN) === 0 || ((edge - flows.secondaryEdge[flow]) | 0) > 0) {
        flows.secondaryEdge[flow] = edge;
        flows.flags[flow] = known | FLOW_SECONDARY_EDGE_KNOWN;
      }
    }
    if (timeNs > state.nowNs) state.nowNs = timeNs;
    flows.lastSeenNs[flow] = state.nowNs;
    stats.secondaryAdded++;
    stats.pendingFrames++;
    return true;
  }

  /**
   * Compares the frame's payload, [sequence, end) of the stream, with the secondary's segments at the head of
   * its list, which are finished as far as they are below `end` then. Changes nothing unless they cover all
   * of it and agree.
   */
  #compare(flow: number, sequence: number, end: number): boolean {
    const state = this.#state;
    const frame = this.#frame;
    const { secondary, secondarySorted } = state;
    const { next } = secondarySorted;
    const head = secondarySorted.head[flow];
    let covered = sequence;
    for (let s = head; ((end - covered) | 0) > 0; s = next[s]) {
      if (s < 0 || (secondary.flags[s] & SPECIAL_SEGMENT) !== 0) return false;
      if (((secondary.sequence[s] - covered) | 0) > 0) return false;
      if (((secondary.end[s] - covered) | 0) > 0) covered = secondary.end[s];
    }
    let at = sequence;
    for (let s = head; ((end - at) | 0) > 0; s = next[s]) {
      const stop = ((secondary.end[s] - end) | 0) < 0 ? secondary.end[s] : end;
      const n = (stop - at) | 0;
      if (n <= 0) continue;
      const secondaryAt = secondary.data[s] + ((at - secondary.sequence[s]) | 0);
      if (state.compareBytes(frame.data + ((at - sequence) | 0), secondaryAt, n) !== 0) return false;
      at = stop;
    }
    for (let s = head; s >= 0 && ((secondary.end[s] - end) | 0) <= 0; ) {
      const following = next[s];
      secondarySorted.remove(flow, s);
      state.finish(s);
      s = following;
    }
    return true;
  }

  /** Whether a segment that was released has announced this edge of the window, or a later one. */
  #wasReleased(flow: number, known: number, edge: number): boolean {
    return (
      (known & FLOW_RELEASED_EDGE_KNOWN) !== 0 && ((edge - this.#state.flows.releasedEdge[flow]) | 0) <= 0
    );
  }

  /** A primary segment of this time has been compared. */
  #noteTime(flow: number, timeNs: number): void {
    const state = this.#state;
    if (timeNs > state.nowNs) state.nowNs = timeNs;
    if (timeNs > state.newestComparedNs) state.newestComparedNs = timeNs;
    state.flows.lastSeenNs[flow] = state.nowNs;
  }

  /** The flow of an untagged segment whose TCP header is at `transport`, -1 if it is none that is known. */
  #flowOf(view: DataView, transport: number, version: number): number {
    const { flows } = this.#state;
    const addressEnd = view.getInt32(transport - 4);
    const mixed = Math.imul(view.getInt32(transport) ^ Math.imul(addressEnd, 0x9e3779b1), 0x85ebca6b);
    const place = mixed >>> (32 - KNOWN_FLOWS_BITS);
    const known = this.#knownFlows[place];
    if (known >= 0 && flows.isPlainTcp(known, view, transport, version)) return known;
    const flow = flows.findPlainTcp(view, transport, version, this.#frame.key);
    if (flow >= 0) this.#knownFlows[place] = flow;
    return flow;
  }
}

/** The later of two sequence numbers. */
function later(a: number, b: number): number {
  return ((b - a) | 0) > 0 ? b : a;
}
