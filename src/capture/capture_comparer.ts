/**
 * The comparer of the live path without its clock: the same flows, the same comparison of streams and datagrams (TcpFlows and
 * DatagramFlows of src/compare), but no epochs, no checkpoints and no time limit. A frame waits for its counterpart until the
 * caller says that it has waited enough; a flow that has diverged is dropped, and the others go on.
 *
 * What has been compared is given back to the windows, so that they bound what is kept.
 */
import { DatagramFlows } from "../compare/datagram.ts";
import { type DivergenceClass, describeFlow } from "../compare/divergence.ts";
import { FLOW_ACK_KNOWN, FLOW_FROZEN, FLOW_TCP, FLOW_VERIFIED_KNOWN } from "../compare/flow_table.ts";
import { KEY_KIND, KIND_TCP, type ParsedFrame } from "../compare/parse.ts";
import {
  SEGMENT_ACK,
  SEGMENT_FIN,
  SEGMENT_RST,
  SEGMENT_SYN,
  type SegmentPool,
} from "../compare/segment_pool.ts";
import { CompareState } from "../compare/state.ts";
import { TcpFlows } from "../compare/tcp.ts";
import { memcmp } from "../ffi/libc.ts";
import type { FrameWindow } from "./frame_window.ts";
import type { CaptureContext, CaptureDivergence, CapturePlace } from "./report.ts";
import type { StreamPair } from "./sequence_map.ts";

/** Bits 17 to 23 of the key's first word are free: connections that follow each other on the same ports are flows of their own. */
const KEY_PAIR_SHIFT = 17;
const KEY_PAIRS = 127;
/** Resets that answer a segment for which there is no connection. */
const KEY_LONE_RESETS = 127;

const CONTEXT_BYTES = 32;
const CONTEXT_BYTES_BEFORE = 16;

const SEEN_ON_PRIMARY = 1;
const SEEN_ON_SECONDARY = 2;

/** CompareState that tells of a divergence while the flow's lists still hold the frames concerned. */
class CaptureState extends CompareState {
  beforeDivergence: (flow: number, why: DivergenceClass, detail: string) => void = () => {};

  override diverge(flow: number, why: DivergenceClass, detail: string, streamOffset?: number): void {
    if ((this.flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    this.beforeDivergence(flow, why, detail);
    super.diverge(flow, why, detail, streamOffset);
  }

  /** diverge() for what has been told of already. */
  freeze(flow: number, why: DivergenceClass, detail: string): void {
    super.diverge(flow, why, detail);
  }
}

/** Where a difference is. `at` counts in the item's payload; an item of -1 means that this side has nothing there. */
interface Place {
  primaryItem: number;
  secondaryItem: number;
  primaryAt: number;
  secondaryAt: number;
  /** Sequence number in the primary's numbers; undefined for datagrams. */
  sequence: number | undefined;
  detail: string;
}

export interface CaptureComparerOptions {
  primary: FrameWindow;
  secondary: FrameWindow;
  /** Divergences that are kept with their details; all are counted. */
  limit: number;
  /** A slot of a window is free again. */
  done: (isPrimary: boolean, slot: number) => void;
}

export class CaptureComparer {
  readonly divergences: CaptureDivergence[] = [];
  divergencesTotal = 0;
  flowsPrimary = 0;
  flowsSecondary = 0;
  gapBytes = 0;
  private skippedPrimary = 0;
  private skippedSecondary = 0;
  private readonly state: CaptureState;
  private readonly tcp: TcpFlows;
  private readonly datagrams: DatagramFlows;
  private readonly primary: FrameWindow;
  private readonly secondary: FrameWindow;
  private readonly limit: number;
  private readonly done: (isPrimary: boolean, slot: number) => void;
  /** By slot: the flow that its frame waits in, -1 if it does not. */
  private readonly primaryFlow: Int32Array;
  private readonly secondaryFlow: Int32Array;
  /** By flow. */
  private readonly pairs: (StreamPair | null)[] = [];
  private readonly entries: Int32Array;
  private readonly seen: Uint8Array;
  /** By the entry's pair, for those whose flow may be forgotten. */
  private readonly pairEntries = new WeakMap<StreamPair, CaptureDivergence>();

  constructor(options: CaptureComparerOptions) {
    const { primary, secondary } = options;
    this.primary = primary;
    this.secondary = secondary;
    this.limit = options.limit;
    this.done = options.done;
    this.primaryFlow = new Int32Array(primary.framesMax).fill(-1);
    this.secondaryFlow = new Int32Array(secondary.framesMax).fill(-1);
    // Every flow that cannot be forgotten has a frame in a window.
    const flowsMax = primary.framesMax + secondary.framesMax;
    this.entries = new Int32Array(flowsMax);
    this.seen = new Uint8Array(flowsMax);
    this.state = new CaptureState({
      primary,
      secondary,
      memcmp,
      seed: (Math.random() * 2 ** 32) | 0,
      limits: {
        heldFramesMax: primary.framesMax,
        heldFramesPerFlowMax: primary.framesMax,
        pendingFramesMax: secondary.framesMax,
        pendingFramesPerFlowMax: secondary.framesMax,
        flowsMax,
      },
      sink: {
        release: (slot) => {
          this.primaryFlow[slot] = -1;
          this.done(true, slot);
        },
        finish: (slot) => {
          this.secondaryFlow[slot] = -1;
          this.done(false, slot);
        },
        diverged: () => {},
      },
    });
    this.state.beforeDivergence = (flow, why, detail) => {
      this.report(flow, why, this.differenceOf(flow, detail));
    };
    this.tcp = new TcpFlows(this.state);
    this.datagrams = new DatagramFlows(this.state);
  }

  get comparedBytes(): number {
    return this.state.stats.comparedBytes;
  }

  /** Frames that have been matched. */
  get matchedPrimary(): number {
    return this.state.stats.releasedByComparison;
  }

  get matchedSecondary(): number {
    return this.state.stats.finishedFrames - this.state.stats.discardedFrames;
  }

  /** Frames of flows with a divergence that were not compared. */
  get notComparedPrimary(): number {
    return this.skippedPrimary;
  }

  get notComparedSecondary(): number {
    return this.skippedSecondary + this.state.stats.discardedFrames;
  }

  /** A frame of the primary's window. `pair` says which connection, for TCP; null for a lone reset and for everything else. */
  addPrimary(slot: number, frame: ParsedFrame, pair: StreamPair | null): void {
    const { state } = this;
    const flow = this.admit(frame, pair, SEEN_ON_PRIMARY);
    if (flow < 0) {
      this.done(true, slot);
      return;
    }
    state.stats.primaryAdded++;
    state.stats.heldFrames++;
    const segment = state.hold(flow, slot, frame);
    if (segment < 0) throw new Error("the comparer's pool is smaller than the primary's window");
    this.primaryFlow[slot] = flow;
    if (frame.kind === KIND_TCP) this.tcp.primaryAdded(flow, segment);
    else this.datagrams.run(flow);
    this.dropIfDiverged(flow);
  }

  /** A frame of the secondary's window, in the primary's TCP numbers. */
  addSecondary(slot: number, frame: ParsedFrame, pair: StreamPair | null): void {
    const { state } = this;
    const flow = this.admit(frame, pair, SEEN_ON_SECONDARY);
    if (flow < 0) {
      this.done(false, slot);
      return;
    }
    state.stats.secondaryAdded++;
    state.stats.pendingFrames++;
    this.secondaryFlow[slot] = flow;
    if (frame.kind === KIND_TCP) {
      if (!this.tcp.secondaryAdded(flow, slot, frame)) this.poolTooSmall();
    } else {
      const segment = state.wait(flow, slot, frame);
      if (segment < 0) this.poolTooSmall();
      state.secondaryQueue.push(flow, segment);
      this.datagrams.run(flow);
    }
    this.dropIfDiverged(flow);
  }

  /** Whether the frame was handed over and still waits here. Only for slots in use. */
  isWaiting(isPrimary: boolean, slot: number): boolean {
    return (isPrimary ? this.primaryFlow : this.secondaryFlow)[slot] >= 0;
  }

  /**
   * The flow that this frame waits in has waited enough: if both captures lack the same bytes, they are passed over, else it is reported
   * and dropped.
   * @param ended which captures have been read to their end
   * @param window what to say of the window when more could have come
   */
  giveUp(
    isPrimary: boolean,
    slot: number,
    ended: { primary: boolean; secondary: boolean },
    window: string,
  ): void {
    const flow = (isPrimary ? this.primaryFlow : this.secondaryFlow)[slot];
    if (this.crossGap(flow)) {
      this.dropIfDiverged(flow);
      return;
    }
    this.reportMissing(flow, ended, window);
  }

  /** Both captures have been read: what is left has no counterpart. */
  finish(): void {
    const { state } = this;
    const ended = { primary: true, secondary: true };
    for (const [age, pool] of [
      [state.primaryAge, state.primary],
      [state.secondaryAge, state.secondary],
    ] as const) {
      for (let item = age.head[0]; item >= 0; item = age.head[0]) {
        const flow = pool.flow[item];
        if (this.crossGap(flow)) this.dropIfDiverged(flow);
        else this.reportMissing(flow, ended, "");
      }
    }
  }

  /** The frame's flow; -1 if it is not compared any more, which is counted. */
  private admit(frame: ParsedFrame, pair: StreamPair | null, side: number): number {
    const { state, seen } = this;
    const { flows } = state;
    state.nowNs = frame.timeNs;
    if (pair?.diverged) {
      this.skip(side, this.pairEntries.get(pair));
      return -1;
    }
    if (frame.kind === KIND_TCP) {
      const index = pair === null ? KEY_LONE_RESETS : pair.index % KEY_PAIRS;
      frame.key[KEY_KIND] |= index << KEY_PAIR_SHIFT;
    }
    let flow = flows.find(frame.key);
    if (flow >= 0 && this.pairs[flow] !== pair && flows.isQuiet(flow)) {
      // A connection long before on the same ports.
      flows.remove(flow);
      flow = -1;
    }
    if (flow < 0) flow = this.newFlow(frame, pair);
    flows.lastSeenNs[flow] = state.nowNs;
    if ((seen[flow] & side) === 0) {
      seen[flow] |= side;
      if (side === SEEN_ON_PRIMARY) this.flowsPrimary++;
      else this.flowsSecondary++;
    }
    if ((flows.flags[flow] & FLOW_FROZEN) === 0) return flow;
    this.skip(side, this.divergences[this.entries[flow]]);
    return -1;
  }

  private skip(side: number, entry: CaptureDivergence | undefined): void {
    if (side === SEEN_ON_PRIMARY) {
      this.skippedPrimary++;
      if (entry !== undefined) entry.frames_not_compared.primary++;
    } else {
      this.skippedSecondary++;
      if (entry !== undefined) entry.frames_not_compared.secondary++;
    }
  }

  private newFlow(frame: ParsedFrame, pair: StreamPair | null): number {
    const { state } = this;
    const { flows } = state;
    const flags = frame.kind === KIND_TCP ? FLOW_TCP : 0;
    let flow = flows.add(frame.key, flags, state.nowNs);
    if (flow < 0) {
      // Quiet flows have no frame in a window, so that at least one goes.
      const idle = flows.collect(flows.capacity, state.nowNs, flows.capacity, flows.capacity);
      if (idle < flows.capacity / 8) flows.collect(flows.capacity, state.nowNs, 0, 0);
      flow = flows.add(frame.key, flags, state.nowNs);
      if (flow < 0) throw new Error("the flow table is smaller than the windows");
    }
    this.pairs[flow] = pair;
    this.entries[flow] = -1;
    this.seen[flow] = 0;
    if (pair !== null && (pair.hasFed || pair.hasStart)) {
      // Without its SYN, or forgotten when all of it had been compared.
      flows.verified[flow] = pair.hasFed ? pair.fedEnd : pair.start;
      flows.flags[flow] |= FLOW_VERIFIED_KNOWN;
    }
    return flow;
  }

  private poolTooSmall(): never {
    throw new Error("the comparer's pool is smaller than the secondary's window");
  }

  /** Gives back what waits in a flow that has been reported. Secondary frames have gone already. */
  private dropIfDiverged(flow: number): void {
    const { state } = this;
    const { flows, queue } = state;
    if ((flows.flags[flow] & FLOW_FROZEN) === 0) return;
    const entry = this.divergences[this.entries[flow]];
    state.primarySorted.clear(flow);
    for (let item = queue.head[flow]; item >= 0; item = queue.head[flow]) {
      this.skip(SEEN_ON_PRIMARY, entry);
      state.release(item);
    }
    flows.openings[flow] = 0;
  }

  private reportMissing(flow: number, ended: { primary: boolean; secondary: boolean }, window: string): void {
    const { state } = this;
    const place = this.missingOf(flow);
    const onSecondary = place.primaryItem >= 0;
    const final = onSecondary ? ended.secondary : ended.primary;
    const detail = final ? place.detail : `${window}: ${place.detail}`;
    const missing = onSecondary ? "missing_on_secondary" : "missing_on_primary";
    const why = final ? missing : "overflow";
    this.report(flow, why, { ...place, detail });
    state.freeze(flow, why, detail);
    this.dropIfDiverged(flow);
  }

  /** Passes over bytes that neither capture has. True if the flow could go on. */
  private crossGap(flow: number): boolean {
    const { state } = this;
    const { flows, primary, secondary } = state;
    const flags = flows.flags[flow];
    if ((flags & FLOW_TCP) === 0 || (flags & FLOW_VERIFIED_KNOWN) === 0) return false;
    const p = state.primarySorted.head[flow];
    const s = state.secondarySorted.head[flow];
    if (p < 0 || s < 0) return false;
    const verified = flows.verified[flow];
    const primaryGap = (primary.sequence[p] - verified) | 0;
    const secondaryGap = (secondary.sequence[s] - verified) | 0;
    if (primaryGap <= 0 || secondaryGap <= 0) return false;
    const gap = Math.min(primaryGap, secondaryGap);
    this.gapBytes += gap;
    flows.verified[flow] = (verified + gap) | 0;
    this.tcp.run(flow);
    return true;
  }

  /** Where the flow that diverges just now differs: at the heads of its lists. */
  private differenceOf(flow: number, detail: string): Place {
    const { state } = this;
    if ((state.flows.flags[flow] & FLOW_TCP) !== 0) return this.streamDifference(flow, detail);
    const p = state.queue.head[flow];
    const s = state.secondaryQueue.head[flow];
    const at = this.datagramDifference(p, s);
    return { primaryItem: p, secondaryItem: s, primaryAt: at, secondaryAt: at, sequence: undefined, detail };
  }

  private streamDifference(flow: number, detail: string): Place {
    const { state } = this;
    const { primary, secondary } = state;
    const p = state.primarySorted.head[flow];
    const s = state.secondarySorted.head[flow];
    const verified = state.flows.verified[flow];
    let primaryAt = payloadIndex(primary, p, verified);
    let secondaryAt = payloadIndex(secondary, s, verified);
    let same = 0;
    const n = Math.min(primary.dataBytes[p] - primaryAt, secondary.dataBytes[s] - secondaryAt);
    if (primaryAt >= 0 && secondaryAt >= 0 && n > 0) {
      same = state.firstDifference(primary.data[p] + primaryAt, secondary.data[s] + secondaryAt, n);
    }
    primaryAt += same;
    secondaryAt += same;
    return {
      primaryItem: p,
      secondaryItem: s,
      primaryAt,
      secondaryAt,
      sequence: (verified + same) >>> 0,
      detail,
    };
  }

  /** The first byte of two datagrams that differs, without their checksums; the shorter one's end if none does. */
  private datagramDifference(p: number, s: number): number {
    const { primary, secondary } = this.state;
    const n = Math.min(primary.dataBytes[p], secondary.dataBytes[s]);
    const from = primary.skipAt[p];
    const to = from + primary.skipBytes[p];
    for (let i = 0; i < n; i++) {
      if (i >= from && i < to) continue;
      if (this.primary.bytes[primary.data[p] + i] !== this.secondary.bytes[secondary.data[s] + i]) return i;
    }
    return n;
  }

  /** What the flow waits for, as one side's lack. */
  private missingOf(flow: number): Place {
    const { state } = this;
    const { flows, primary, secondary, queue } = state;
    const nothing = { primaryItem: -1, secondaryItem: -1, primaryAt: 0, secondaryAt: 0, sequence: undefined };
    const held = count(flows.held[flow], "frame");
    const pending = count(flows.pending[flow], "frame");
    if ((flows.flags[flow] & FLOW_TCP) === 0) {
      const p = queue.head[flow];
      if (p >= 0)
        return { ...nothing, primaryItem: p, detail: `${held} of the primary without a counterpart` };
      const s = state.secondaryQueue.head[flow];
      return { ...nothing, secondaryItem: s, detail: `${pending} of the secondary without a counterpart` };
    }
    const p = state.primarySorted.head[flow];
    const s = state.secondarySorted.head[flow];
    const known = (flows.flags[flow] & FLOW_VERIFIED_KNOWN) !== 0;
    const verified = flows.verified[flow];
    const primaryCovers = p >= 0 && known && ((primary.sequence[p] - verified) | 0) <= 0;
    if (p >= 0 && (primaryCovers || s < 0)) {
      const from = primaryCovers ? verified : primary.sequence[p];
      const at = payloadIndex(primary, p, from);
      const what = describeRest(primary, p, at, (primary.end[state.primarySorted.tail[flow]] - from) | 0);
      const detail = `the secondary lacks ${what}; ${held} of the primary without a counterpart`;
      return { ...nothing, primaryItem: p, primaryAt: at, sequence: from >>> 0, detail };
    }
    if (s >= 0) {
      const covers = known && ((secondary.sequence[s] - verified) | 0) <= 0;
      const from = covers ? verified : secondary.sequence[s];
      const at = payloadIndex(secondary, s, from);
      const what = describeRest(
        secondary,
        s,
        at,
        (secondary.end[state.secondarySorted.tail[flow]] - from) | 0,
      );
      const detail = `the primary lacks ${what}; ${pending} of the secondary without a counterpart`;
      return { ...nothing, secondaryItem: s, secondaryAt: at, sequence: from >>> 0, detail };
    }
    const head = queue.head[flow];
    if (head >= 0) {
      const detail = this.describeHead(flow, head);
      return { ...nothing, primaryItem: head, sequence: primary.sequence[head] >>> 0, detail };
    }
    const reset = state.secondaryResets.head[flow];
    const rest = reset >= 0 ? reset : state.secondaryQueue.head[flow];
    const what = reset >= 0 ? "a RST" : "the connection";
    const detail = `the primary lacks ${what}; ${pending} of the secondary without a counterpart`;
    return { ...nothing, secondaryItem: rest, sequence: secondary.sequence[rest] >>> 0, detail };
  }

  /** A primary segment that waits although all its bytes have been found. */
  private describeHead(flow: number, head: number): string {
    const { flows, primary } = this.state;
    const flags = primary.flags[head];
    const held = count(flows.held[flow], "frame");
    if ((flags & SEGMENT_RST) !== 0) {
      return `the secondary lacks a RST; ${held} of the primary without a counterpart`;
    }
    if ((flags & SEGMENT_ACK) === 0) return `${held} of the primary without a counterpart`;
    if ((flows.flags[flow] & FLOW_ACK_KNOWN) === 0) {
      return `the primary acknowledges, the secondary never does; ${held} of the primary without a counterpart`;
    }
    const behind = (primary.acknowledgement[head] - flows.secondaryAck[flow]) | 0;
    return `the primary acknowledges ${count(behind, "byte")} more than the secondary ever does; ${held} of the primary without a counterpart`;
  }

  /** Counts a divergence, and keeps it with its details if there is room. The flow's lists are still whole. */
  private report(flow: number, why: DivergenceClass, place: Place): void {
    const { state } = this;
    const { flows, primary, secondary } = state;
    const pair = this.pairs[flow] ?? null;
    if (pair !== null) pair.diverged = true;
    this.divergencesTotal++;
    if (this.divergences.length >= this.limit) return;
    const { primaryItem: p, secondaryItem: s, sequence } = place;
    const offset = pair?.offset ?? 0;
    const secondarySequence = sequence === undefined ? undefined : (sequence + offset) >>> 0;
    const entry: CaptureDivergence = {
      class: why,
      flow: describeFlow(flows, flow),
      stream_offset: pair === null || sequence === undefined ? null : pair.streamOffset(sequence | 0),
      detail: place.detail,
      primary: placeOf(this.primary, primary, p, place.primaryAt, sequence),
      secondary: placeOf(this.secondary, secondary, s, place.secondaryAt, secondarySequence),
      context: this.contextOf(place),
      // Those of the primary are counted when they are dropped.
      frames_not_compared: { primary: 0, secondary: flows.pending[flow] },
    };
    this.entries[flow] = this.divergences.length;
    this.divergences.push(entry);
    if (pair !== null) this.pairEntries.set(pair, entry);
  }

  private contextOf(place: Place): CaptureContext | null {
    const { primary, secondary } = this.state;
    const { primaryItem: p, secondaryItem: s, primaryAt, secondaryAt } = place;
    const ats = [...(p >= 0 ? [primaryAt] : []), ...(s >= 0 ? [secondaryAt] : [])];
    const before = Math.max(0, Math.min(CONTEXT_BYTES_BEFORE, ...ats));
    const context = {
      before,
      primary: p < 0 ? null : hexAround(this.primary.bytes, primary, p, primaryAt - before),
      secondary: s < 0 ? null : hexAround(this.secondary.bytes, secondary, s, secondaryAt - before),
    };
    return (context.primary ?? "") === "" && (context.secondary ?? "") === "" ? null : context;
  }
}

function hexAround(bytes: Uint8Array, pool: SegmentPool, item: number, from: number): string {
  const start = Math.max(0, from);
  const end = Math.min(pool.dataBytes[item], start + CONTEXT_BYTES);
  const data = pool.data[item];
  return Buffer.from(bytes.subarray(data + start, data + Math.max(start, end))).toString("hex");
}

function placeOf(
  window: FrameWindow,
  pool: SegmentPool,
  item: number,
  at: number,
  sequence: number | undefined,
): CapturePlace | null {
  if (item < 0) return null;
  const inside = at >= 0 && at < pool.dataBytes[item];
  return {
    frame: window.numberOf(pool.slot[item]),
    sequence: sequence ?? null,
    payload_offset: Math.max(0, at),
    byte: inside ? window.bytes[pool.data[item] + at] : null,
  };
}

/** Where in a segment's payload a sequence number is: -1 at the SYN, the payload's length at the FIN. */
function payloadIndex(pool: SegmentPool, item: number, sequence: number): number {
  return ((sequence - pool.sequence[item]) | 0) - ((pool.flags[item] & SEGMENT_SYN) !== 0 ? 1 : 0);
}

function describeRest(pool: SegmentPool, item: number, at: number, bytes: number): string {
  if (at < 0) return "the SYN";
  if (at >= pool.dataBytes[item] && (pool.flags[item] & SEGMENT_FIN) !== 0) return "the FIN";
  return `what is here: ${count(bytes, "byte")} up to the last one`;
}

function count(n: number, what: string): string {
  return `${n} ${what}${n === 1 ? "" : "s"}`;
}
