/** The difference, or the missing counterpart, that stops a flow. */
import { FLOW_SECONDARY_ACK_KNOWN, FLOW_TCP, FLOW_VERIFIED_KNOWN } from "../compare/flow_table.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_RST,
  SEGMENT_SYN,
  type SegmentPool,
} from "../compare/segment_pool.ts";
import type { CompareState, DivergencePlace } from "../compare/state.ts";

export interface Finding {
  detail: string;
  /** Where, in items and byte offsets of the record memories; an item of -1: this side has nothing there. */
  place: DivergencePlace;
  /** TCP: sequence number of the place, in the primary's numbers. */
  sequence?: number;
}

/** For a divergence that the comparer reports; the flow's lists are still whole. */
export function differenceOf(
  state: CompareState,
  flow: number,
  detail: string,
  place: DivergencePlace = { primary: -1, secondary: -1 },
): Finding {
  if ((state.flows.flags[flow] & FLOW_TCP) === 0) return { detail, place };
  const { primary } = state;
  const { primary: item, primaryAt } = place;
  if (item < 0 || primaryAt === undefined) return { detail, place, sequence: state.flows.verified[flow] };
  return { detail, place, sequence: (firstByte(primary, item) + primaryAt - primary.data[item]) | 0 };
}

/** For a flow that waits, as the lack of one side: that one's item is -1. */
export function lackOf(state: CompareState, flow: number): Finding {
  return (state.flows.flags[flow] & FLOW_TCP) === 0 ? missingFrame(state, flow) : missingSegment(state, flow);
}

function missingFrame(state: CompareState, flow: number): Finding {
  const primary = state.queue.head[flow];
  if (primary >= 0) return { detail: without(state, flow, "primary"), place: { primary, secondary: -1 } };
  const secondary = state.secondaryQueue.head[flow];
  return { detail: without(state, flow, "secondary"), place: { primary: -1, secondary } };
}

function missingSegment(state: CompareState, flow: number): Finding {
  const { flows, primary, secondary, queue } = state;
  const known = (flows.flags[flow] & FLOW_VERIFIED_KNOWN) !== 0;
  const verified = flows.verified[flow];
  const covers = (pool: SegmentPool, item: number) => known && ((pool.sequence[item] - verified) | 0) <= 0;
  const p = state.primarySorted.head[flow];
  const s = state.secondarySorted.head[flow];
  if (p >= 0 && (covers(primary, p) || s < 0)) {
    const sequence = covers(primary, p) ? verified : primary.sequence[p];
    const what = describeRest(primary, p, sequence, primary.end[state.primarySorted.tail[flow]]);
    const detail = `the secondary lacks ${what}; ${without(state, flow, "primary")}`;
    return {
      detail,
      sequence,
      place: { primary: p, secondary: -1, ...placeAt("primaryAt", primary, p, sequence) },
    };
  }
  if (s >= 0) {
    const sequence = covers(secondary, s) ? verified : secondary.sequence[s];
    const what = describeRest(secondary, s, sequence, secondary.end[state.secondarySorted.tail[flow]]);
    const detail = `the primary lacks ${what}; ${without(state, flow, "secondary")}`;
    return {
      detail,
      sequence,
      place: { primary: -1, secondary: s, ...placeAt("secondaryAt", secondary, s, sequence) },
    };
  }
  const head = queue.head[flow];
  if (head >= 0) {
    const detail = `${describeHead(state, flow, head)}; ${without(state, flow, "primary")}`;
    return { detail, sequence: primary.sequence[head], place: { primary: head, secondary: -1 } };
  }
  const reset = state.secondaryResets.head[flow];
  const rest = reset >= 0 ? reset : state.secondaryQueue.head[flow];
  const what = reset >= 0 ? "a RST" : "the connection";
  const detail = `the primary lacks ${what}; ${without(state, flow, "secondary")}`;
  return { detail, sequence: secondary.sequence[rest], place: { primary: -1, secondary: rest } };
}

/** A primary segment that waits although all its bytes have been found. */
function describeHead(state: CompareState, flow: number, head: number): string {
  const { flows, primary } = state;
  const flags = primary.flags[head];
  if ((flags & SEGMENT_RST) !== 0) return "the secondary lacks a RST";
  if ((flags & SEGMENT_ACK) === 0) return "the secondary lacks a segment";
  if ((flows.flags[flow] & FLOW_SECONDARY_ACK_KNOWN) === 0)
    return "the primary acknowledges, the secondary never does";
  const ahead = (primary.acknowledgement[head] - flows.secondaryAck[flow]) | 0;
  return `the primary acknowledges ${count(ahead, "byte")} more than the secondary ever does`;
}

function without(state: CompareState, flow: number, side: "primary" | "secondary"): string {
  const waiting = side === "primary" ? state.flows.held[flow] : state.flows.pending[flow];
  return `${count(waiting, "frame")} of the ${side} without a counterpart`;
}

/** Sequence number of a segment's first payload byte. */
function firstByte(pool: SegmentPool, item: number): number {
  return (pool.sequence[item] + ((pool.flags[item] & SEGMENT_SYN) !== 0 ? 1 : 0)) | 0;
}

/** Where a sequence number is in the record memory; nothing for a SYN or FIN. */
function placeAt(
  name: "primaryAt" | "secondaryAt",
  pool: SegmentPool,
  item: number,
  sequence: number,
): Partial<DivergencePlace> {
  const index = (sequence - firstByte(pool, item)) | 0;
  return index >= 0 && index < pool.dataBytes[item] ? { [name]: pool.data[item] + index } : {};
}

function describeRest(pool: SegmentPool, item: number, sequence: number, end: number): string {
  const index = (sequence - firstByte(pool, item)) | 0;
  if (index < 0) return "the SYN";
  if (index >= pool.dataBytes[item] && (pool.flags[item] & SEGMENT_FIN) !== 0) return "the FIN";
  return `the next ${count((end - sequence) | 0, "byte")}`;
}

function count(n: number, what: string): string {
  return `${n} ${what}${n === 1 ? "" : "s"}`;
}
