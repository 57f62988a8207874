/** What the parts of the comparer share: pools, lists, counters, and the few ways a frame can leave. */
import { RECORD_HEADER_BYTES } from "../ffi/layout.ts";
import type { Divergence, DivergenceClass } from "./divergence.ts";
import { ALL_FLOWS, flowFacts } from "./divergence.ts";
import { FLOW_FROZEN, FlowTable } from "./flow_table.ts";
import { FrameChange } from "./frame_change.ts";
import { LinkedLists } from "./linked_lists.ts";
import type { ComparerLimits, ComparerSink, RecordMemory } from "./options.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import { Rows } from "./rows.ts";
import type { Rules } from "./rules.ts";
import { SEGMENT_PARTED, SegmentPool } from "./segment_pool.ts";
import { ComparerStats } from "./stats.ts";

/** The frames that a divergence is about. */
export interface DivergencePlace {
  /** Items of the pools, -1 for none. */
  primary: number;
  secondary: number;
  /** Byte offsets in the record memories where the two differ. */
  primaryAt?: number;
  secondaryAt?: number;
}

interface CompareStateOptions {
  primary: RecordMemory;
  secondary: RecordMemory;
  sink: ComparerSink;
  memcmp: (a: number, b: number, n: number) => number;
  limits: ComparerLimits;
  seed: number;
  rules?: Rules;
}

export class CompareState {
  readonly flows: FlowTable;
  readonly primary: SegmentPool;
  readonly secondary: SegmentPool;
  /** Primary frames of a flow in order of arrival. */
  readonly queue: LinkedLists;
  /** Primary TCP segments of a flow with unverified bytes, by sequence number. */
  readonly primarySorted: LinkedLists;
  /** Secondary TCP segments of a flow's current connection, by sequence number. */
  readonly secondarySorted: LinkedLists;
  /** Secondary RSTs of a flow that have no counterpart yet. */
  readonly secondaryResets: LinkedLists;
  /**
   * Secondary datagrams of a flow; for TCP those of a connection that the primary has not opened yet. Arrival
   * order.
   */
  readonly secondaryQueue: LinkedLists;
  /** All held primary frames and all waiting secondary frames, in order of arrival: list 0. */
  readonly primaryAge: LinkedLists;
  readonly secondaryAge: LinkedLists;
  /** First frame of the age list whose time has not run out yet, -1 if there is none. */
  primaryUnexpired = -1;
  secondaryUnexpired = -1;
  /**
   * First primary frame of the age list that has not waited long enough to be sent in parts, -1 if there is
   * none.
   */
  primaryPatient = -1;

  readonly stats = new ComparerStats();
  readonly limits: ComparerLimits;
  readonly rules: Rules | undefined;
  readonly primaryBytes: Uint8Array;
  readonly secondaryBytes: Uint8Array;
  /** The latest time heard of. */
  nowNs = 0;
  /** 16 bits: that of the secondary's records that are compared. */
  epoch = 0;
  /** Primary frames up to it are covered by a checkpoint. */
  boundaryNs = Number.NEGATIVE_INFINITY;
  /** Primary frames newer than this are held without being compared. */
  horizonNs = Number.POSITIVE_INFINITY;
  /** The pool of primary frames was exhausted: nothing is tracked until the next checkpoint. */
  poolExhausted = false;
  /** Time of the newest frame released by comparison. */
  newestComparedNs = Number.NEGATIVE_INFINITY;
  arrivals = 0;
  /** The one that is handed out. */
  readonly change = new FrameChange();
  /** Whether the sink takes parts. */
  readonly takesParts: boolean;

  readonly #sink: ComparerSink;
  readonly #memcmp: (a: number, b: number, n: number) => number;
  readonly #primaryAddress: number;
  readonly #secondaryAddress: number;

  constructor(options: CompareStateOptions) {
    const { limits } = options;
    this.limits = limits;
    this.rules = options.rules;
    this.#sink = options.sink;
    this.takesParts = options.sink.permitPart !== undefined;
    this.#memcmp = options.memcmp;
    this.primaryBytes = options.primary.bytes;
    this.secondaryBytes = options.secondary.bytes;
    this.#primaryAddress = options.primary.address;
    this.#secondaryAddress = options.secondary.address;
    this.flows = new FlowTable(limits.flowsMax, options.seed);
    this.primary = new SegmentPool(limits.heldFramesMax);
    this.secondary = new SegmentPool(limits.pendingFramesMax);
    const lists = new Rows(limits.flowsMax);
    const { rows: held } = this.primary;
    const { rows: pending } = this.secondary;
    this.queue = new LinkedLists(lists, held);
    this.primarySorted = new LinkedLists(lists, held);
    this.secondarySorted = new LinkedLists(lists, pending);
    this.secondaryResets = new LinkedLists(lists, pending);
    this.secondaryQueue = new LinkedLists(lists, pending);
    this.primaryAge = new LinkedLists(new Rows(1), held);
    this.secondaryAge = new LinkedLists(new Rows(1), pending);
  }

  /** A pool entry for a primary frame, at the end of its flow's queue; -1 if the pool is exhausted. */
  hold(flow: number, slot: number, frame: ParsedFrame): number {
    const item = this.primary.take();
    if (item < 0) return -1;
    fill(this.primary, item, flow, slot, frame, this.arrivals++);
    this.queue.push(flow, item);
    this.primaryAge.push(0, item);
    if (this.primaryUnexpired < 0) this.primaryUnexpired = item;
    if (this.primaryPatient < 0) this.primaryPatient = item;
    this.flows.held[flow]++;
    return item;
  }

  /** A pool entry for a secondary frame, in no list of its flow yet; -1 if the pool is exhausted. */
  wait(flow: number, slot: number, frame: ParsedFrame): number {
    const item = this.secondary.take();
    if (item < 0) return -1;
    fill(this.secondary, item, flow, slot, frame, 0);
    this.enlist(item, flow);
    return item;
  }

  /** Counts an entry of the secondary's pool that has just been filled. */
  enlist(item: number, flow: number): void {
    this.secondaryAge.push(0, item);
    if (this.secondaryUnexpired < 0) this.secondaryUnexpired = item;
    this.flows.pending[flow]++;
  }

  /**
   * Takes a primary frame out of its flow's queue and hands it, or what is left of it, to the sink; the
   * caller counts why.
   */
  release(item: number, change: FrameChange | null = this.#restOf(item)): void {
    const slot = this.primary.slot[item];
    this.unhold(item);
    this.releaseSlot(slot, change);
  }

  /** What is to be sent of a frame, parts of which have been; null if that is all of it. */
  #restOf(item: number): FrameChange | null {
    const { primary, change } = this;
    if ((primary.flags[item] & SEGMENT_PARTED) === 0) return null;
    change.setRest(primary, item);
    return change;
  }

  /** Sends a part of a primary frame. */
  part(item: number, change: FrameChange): void {
    this.stats.parts++;
    const timeNs = this.primary.timeNs[item];
    if (timeNs > this.newestComparedNs) this.newestComparedNs = timeNs;
    this.#sink.permitPart?.(this.primary.slot[item], change);
  }

  /** Undoes hold(). */
  unhold(item: number): void {
    const flow = this.primary.flow[item];
    this.queue.remove(flow, item);
    if (this.primaryUnexpired === item) this.primaryUnexpired = this.primaryAge.next[item];
    if (this.primaryPatient === item) this.primaryPatient = this.primaryAge.next[item];
    this.primaryAge.remove(0, item);
    this.flows.held[flow]--;
    this.primary.give(item);
  }

  /** For a primary frame that is in no list (any more). */
  releaseSlot(slot: number, change: FrameChange | null = null): void {
    this.stats.heldFrames--;
    this.stats.releasedFrames++;
    this.#sink.permit(slot, change);
  }

  releaseCompared(item: number, change?: FrameChange | null): void {
    const timeNs = this.primary.timeNs[item];
    if (timeNs > this.newestComparedNs) this.newestComparedNs = timeNs;
    this.stats.releasedByComparison++;
    this.release(item, change);
  }

  /** The record of a secondary frame that has been taken out of its flow's lists is done with. */
  finish(item: number): void {
    const slot = this.secondary.slot[item];
    this.unwait(item);
    this.finishSlot(slot);
  }

  /** Undoes wait(). */
  unwait(item: number): void {
    if (this.secondaryUnexpired === item) this.secondaryUnexpired = this.secondaryAge.next[item];
    this.secondaryAge.remove(0, item);
    this.flows.pending[this.secondary.flow[item]]--;
    this.secondary.give(item);
  }

  /** For a secondary record that has no pool entry. */
  finishSlot(slot: number): void {
    this.stats.pendingFrames--;
    this.stats.finishedFrames++;
    this.#sink.finish(slot);
  }

  /** For two records that have just come and were compared at once; counts them, too. */
  releasePair(primarySlot: number, secondarySlot: number): void {
    const { stats } = this;
    const sink = this.#sink;
    stats.primaryAdded++;
    stats.secondaryAdded++;
    stats.releasedByComparison++;
    stats.releasedFrames++;
    stats.finishedFrames++;
    sink.finish(secondarySlot);
    sink.permit(primarySlot, null);
  }

  /** Compares `n` bytes; 0 when equal. Positions are byte offsets in the two record memories. */
  compareBytes(primaryAt: number, secondaryAt: number, n: number): number {
    if (n <= 0) return 0;
    this.stats.comparedBytes += n;
    return this.#memcmp(this.#primaryAddress + primaryAt, this.#secondaryAddress + secondaryAt, n);
  }

  /** Index of the first byte that differs, `n` if none does. For reports only. */
  firstDifference(primaryAt: number, secondaryAt: number, n: number): number {
    for (let i = 0; i < n; i++) {
      if (this.primaryBytes[primaryAt + i] !== this.secondaryBytes[secondaryAt + i]) return i;
    }
    return n;
  }

  /** The two bytes at these places, in hexadecimal. For reports only. */
  bytePair(primaryAt: number, secondaryAt: number): string {
    const hex = (byte: number) => `0x${byte.toString(16).padStart(2, "0")}`;
    const [own, theirs] = [this.primaryBytes[primaryAt], this.secondaryBytes[secondaryAt]].map(hex);
    return `${own} on the primary, ${theirs} on the secondary`;
  }

  /**
   * Reports a divergence and freezes its flow: what the primary has sent and will send of it stays held until
   * the next checkpoint, and what the secondary sends of it is worth nothing until then.
   */
  diverge(
    flow: number,
    why: DivergenceClass,
    detail: string,
    streamOffset?: number,
    place?: DivergencePlace,
  ): void {
    if ((this.flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    this.flows.flags[flow] |= FLOW_FROZEN;
    // Before the secondary's records are given back: the report points into them.
    this.report(why, flow, this.oldestWaitNs(flow), detail, streamOffset, place);
    this.#discardSecondary(flow);
  }

  /** Reports without freezing anything; a flow of -1 stands for all of them. */
  report(
    why: DivergenceClass,
    flow: number,
    waitedNs: number,
    detail: string,
    streamOffset?: number,
    place?: DivergencePlace,
  ): void {
    this.stats.divergences++;
    const facts = flow < 0 ? ALL_FLOWS : flowFacts(this.flows, flow);
    const divergence: Divergence = { class: why, ...facts, waitedNs, detail };
    if (streamOffset !== undefined) divergence.streamOffset = streamOffset;
    if (place !== undefined) this.#point(divergence, place);
    this.#sink.diverged(divergence);
  }

  #point(divergence: Divergence, place: DivergencePlace): void {
    const { primary, secondary, primaryAt, secondaryAt } = place;
    if (primary >= 0) {
      const record = this.primary.record[primary];
      divergence.primaryOffset = record;
      if (primaryAt !== undefined) divergence.primaryFrameOffset = primaryAt - record - RECORD_HEADER_BYTES;
    }
    if (secondary >= 0) {
      const record = this.secondary.record[secondary];
      divergence.secondaryOffset = record;
      if (secondaryAt !== undefined) {
        divergence.secondaryFrameOffset = secondaryAt - record - RECORD_HEADER_BYTES;
      }
    }
  }

  oldestWaitNs(flow: number): number {
    const head = this.queue.head[flow];
    return head < 0 ? 0 : Math.max(0, this.nowNs - this.primary.timeNs[head]);
  }

  #discardSecondary(flow: number): void {
    this.#discardList(flow, this.secondarySorted);
    this.#discardList(flow, this.secondaryResets);
    this.#discardList(flow, this.secondaryQueue);
  }

  #discardList(flow: number, list: LinkedLists): void {
    for (let item = list.head[flow]; item >= 0; item = list.head[flow]) {
      list.remove(flow, item);
      this.stats.discardedFrames++;
      this.finish(item);
    }
  }
}

function fill(
  pool: SegmentPool,
  item: number,
  flow: number,
  slot: number,
  frame: ParsedFrame,
  arrival: number,
): void {
  pool.slot[item] = slot;
  pool.flow[item] = flow;
  pool.record[item] = frame.record;
  pool.timeNs[item] = frame.timeNs;
  pool.arrival[item] = arrival;
  pool.flags[item] = frame.flags;
  pool.sequence[item] = frame.sequence;
  pool.end[item] = frame.end;
  pool.acknowledgement[item] = frame.acknowledgement;
  pool.window[item] = frame.window;
  pool.data[item] = frame.data;
  pool.dataBytes[item] = frame.dataBytes;
  pool.skipAt[item] = frame.skipAt;
  pool.skipBytes[item] = frame.skipBytes;
  pool.meta[item] = frame.meta;
  pool.urgent[item] = frame.urgent;
  pool.identification[item] = frame.identification;
}
