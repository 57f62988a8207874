import { DatagramFlows } from "./datagram.ts";
import { Deadlines } from "./deadlines.ts";
import { EarlyRecords } from "./early_records.ts";
import { KIND_BYPASS, KIND_TCP } from "./flow_key.ts";
import {
  FLOW_CLOSED,
  FLOW_CLOSED_BEFORE,
  FLOW_FRAGMENTS,
  FLOW_FROZEN,
  FLOW_IGNORES,
  FLOW_PASSTHROUGH,
  FLOW_TCP,
} from "./flow_table.ts";
import { FragmentFlows, isWaitingRoom } from "./fragments.ts";
import { InOrderTcp } from "./in_order.ts";
import { OverflowList } from "./overflow_list.ts";
import { parseRecord } from "./parse.ts";
import { ParsedFrame } from "./parsed_frame.ts";
import { ID_STEP } from "./rows.ts";
import type { Rules } from "./rules.ts";
import type { ComparerLimits, ComparerSink, ComparerStats, RecordMemory } from "./state.ts";
import { CompareState } from "./state.ts";
import { TcpFlows } from "./tcp.ts";

export type { Divergence, DivergenceClass } from "./divergence.ts";
export { parseRules, RuleError, type RuleLines, type Rules } from "./rules.ts";
export type { ComparerLimits, ComparerSink, ComparerStats, RecordMemory } from "./state.ts";

export interface ComparerOptions {
  /** The ring of what the primary VM has sent. */
  primary: RecordMemory;
  /** The ring of what the secondary VM has sent. */
  secondary: RecordMemory;
  sink: ComparerSink;
  /** memcmp(3) on addresses; 0 when equal. */
  memcmp: (a: number, b: number, n: number) => number;
  /** A frame that has waited longer for its counterpart is a divergence. Default 200e6. */
  maxWaitNs?: number;
  /**
   * A TCP segment that has waited longer is sent as far as both sides agree on it, if the sink takes parts. Default
   * Infinity: never.
   */
  partAfterNs?: number;
  /**
   * When the primary has waited longer in one flow and the secondary in another, the VMs wait for each other: a
   * divergence, before maxWaitNs is over. Default Infinity: never.
   */
  crossedAfterNs?: number;
  /** Epoch of the secondary's records that are compared until the first checkpoint. Default 0. */
  epoch?: number;
  limits?: Partial<ComparerLimits>;
  /** What is taken out of the comparison. Default nothing. */
  rules?: Rules;
  /** Flows without traffic are forgotten after this time. Default 300e9. */
  idleNs?: number;
  /** ... and those that were closed after this one. Default 10e9. */
  closedIdleNs?: number;
  /** Seed of the flow table's hash, 32 bits. Default random. */
  seed?: number;
}

export const COMPARER_LIMITS: ComparerLimits = {
  heldFramesMax: 65_536,
  heldFramesPerFlowMax: 16_384,
  pendingFramesMax: 65_536,
  pendingFramesPerFlowMax: 16_384,
  flowsMax: 65_536,
};

/** Flow ids that one expire() looks at for idle flows. */
const COLLECT_PER_CALL = 64;
/**
 * When the table is full: ids looked at for flows to forget. Those that have been silent on both sides for
 * maxWaitNs may go: a flow seen again later starts in mid-stream, which is safe.
 */
const EVICT_LOOKS = 4096;

/**
 * Decides which frames of the primary VM may leave (docs/architecture.md).
 *
 * Every record that is added is given back exactly once: a primary one by sink.release(), a secondary one by
 * sink.finish(). A TCP frame may be sent in parts before, or otherwise than the primary sent it (FrameChange). Frames of one flow are released in order of arrival. sink.release() and sink.finish() may be
 * called for a record before the add*() call that brought it returns.
 *
 *     comparer.addPrimary(slot, ring.offset(slot));        for each record of the primary's ring
 *     comparer.addSecondary(slot, ring.offset(slot));      for each record of the secondary's ring
 *     comparer.expire(now);                                at the latest at nextDeadlineNs()
 *
 *     comparer.beginCheckpoint(now);                       before QEMU is asked for a checkpoint
 *     comparer.checkpoint(stopTimeNs, secondaryEpoch);     when the secondary has loaded it
 *
 * Why beginCheckpoint(): the output that the secondary has produced and the primary has not reached yet is
 * undone by the checkpoint. A frame that the primary sends after it must not be compared with that output,
 * even if the bytes happen to agree and even if it gets here before the news of the checkpoint: the secondary
 * will produce it again, perhaps differently. Whoever leaves the call out gets a "boundary" divergence
 * (another checkpoint) whenever that has happened.
 *
 * The way of a packet allocates nothing; reports, growth past the usual and checkpoint() may. Times are
 * CLOCK_BOOTTIME in ns.
 */
export class Comparer {
  readonly stats: ComparerStats;
  private readonly state: CompareState;
  private readonly inOrder: InOrderTcp;
  private readonly tcp: TcpFlows;
  private readonly datagrams: DatagramFlows;
  private readonly fragments: FragmentFlows;
  private readonly rules: Rules | undefined;
  private readonly deadlines: Deadlines;
  private readonly primaryBytes: Uint8Array;
  private readonly secondaryBytes: Uint8Array;
  private readonly frame = new ParsedFrame();
  private readonly overflow: OverflowList;
  private readonly early = new EarlyRecords();
  private readonly maxWaitNs: number;
  private readonly idleNs: number;
  private readonly closedIdleNs: number;
  private epoch: number;
  /** Primary frames up to it are covered by a checkpoint. */
  private boundaryNs = Number.NEGATIVE_INFINITY;
  /** The pool of primary frames was exhausted: nothing is tracked until the next checkpoint. */
  private poolExhausted = false;
  /** Number of checkpoints when a full flow table was last reported on account of the secondary. */
  private tableReported = -1;
  constructor(options: ComparerOptions) {
    const { primary, secondary, sink, memcmp, seed = (Math.random() * 2 ** 32) | 0 } = options;
    const limits = { ...COMPARER_LIMITS, ...options.limits };
    const { rules } = options;
    for (const [name, value] of Object.entries(limits)) {
      if (!Number.isInteger(value) || value < 1 || value > 2 ** 24) {
        throw new RangeError(`The comparer's limit ${name} is ${value}; give an integer from 1 to 16777216.`);
      }
    }
    const shared = { primary, secondary, sink, memcmp, limits, seed };
    this.state = new CompareState(rules === undefined ? shared : { ...shared, rules });
    this.rules = rules;
    this.stats = this.state.stats;
    const partAfterNs = options.partAfterNs ?? Number.POSITIVE_INFINITY;
    const crossedAfterNs = options.crossedAfterNs ?? Number.POSITIVE_INFINITY;
    this.tcp = new TcpFlows(this.state, partAfterNs);
    this.datagrams = new DatagramFlows(this.state);
    this.fragments = new FragmentFlows(this.state, this.tcp, this.datagrams, (frame) => this.flowOf(frame));
    this.overflow = new OverflowList(this.state);
    this.inOrder = new InOrderTcp(this.state, this.frame, primary, secondary);
    this.primaryBytes = primary.bytes;
    this.secondaryBytes = secondary.bytes;
    this.maxWaitNs = options.maxWaitNs ?? 200e6;
    this.deadlines = new Deadlines(this.state, this.tcp, this.maxWaitNs, partAfterNs, crossedAfterNs);
    this.idleNs = options.idleNs ?? 300e9;
    this.closedIdleNs = options.closedIdleNs ?? 10e9;
    this.epoch = (options.epoch ?? 0) & 0xffff;
  }

  /** A frame of the primary VM; `offset` is that of its record in primary.bytes. */
  addPrimary(slot: number, offset: number): void {
    const { state, frame, stats } = this;
    if (this.overflow.length === 0 && !this.poolExhausted) {
      if (this.inOrder.addPrimary(slot, offset, this.boundaryNs)) return;
    }
    parseRecord(this.primaryBytes, offset, frame);
    stats.primaryAdded++;
    stats.heldFrames++;
    if (frame.timeNs > state.nowNs) state.nowNs = frame.timeNs;
    if (frame.kind === KIND_BYPASS) {
      stats.releasedBypass++;
      state.releaseSlot(slot);
      return;
    }
    const late = frame.timeNs <= this.boundaryNs;
    const hasPassthrough = this.rules?.hasPassthrough === true;
    const flow = late && frame.kind !== KIND_TCP && !hasPassthrough ? -1 : this.flowOf(frame);
    if (hasPassthrough && this.passes(flow)) {
      stats.releasedPassthrough++;
      state.releaseSlot(slot);
      return;
    }
    if (late) {
      this.addLate(slot, flow);
      return;
    }
    if (flow < 0 || this.poolExhausted || state.flows.overflowed[flow] > 0) {
      const first = this.overflow.length === 0;
      this.overflow.push(slot, frame.timeNs, flow);
      if (first) this.reportOverflow("the flow table is full");
      return;
    }
    state.flows.lastSeenNs[flow] = state.nowNs;
    if (state.flows.held[flow] >= state.limits.heldFramesPerFlowMax) {
      this.overflow.push(slot, frame.timeNs, flow);
      state.diverge(flow, "overflow", `more than ${state.limits.heldFramesPerFlowMax} frames of it are held`);
      return;
    }
    const segment = state.hold(flow, slot, frame);
    if (segment < 0) {
      this.poolExhausted = true;
      this.overflow.push(slot, frame.timeNs, flow);
      this.reportOverflow(`more than ${state.limits.heldFramesMax} frames are held`);
      return;
    }
    if (frame.kind === KIND_TCP) this.tcp.primaryAdded(flow, segment);
    else if ((state.flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.fragments.primaryAdded(flow, segment);
    else this.datagrams.run(flow);
  }

  /**
   * A frame of the secondary VM. Records of an older epoch are finished at once, those of a newer one (16
   * bits, modulo 2^16) wait for its checkpoint().
   */
  addSecondary(slot: number, offset: number): void {
    const { state, frame, stats } = this;
    if (this.inOrder.addSecondary(slot, offset, this.epoch)) return;
    parseRecord(this.secondaryBytes, offset, frame);
    stats.secondaryAdded++;
    stats.pendingFrames++;
    if (frame.timeNs > state.nowNs) state.nowNs = frame.timeNs;
    const ahead = (frame.epoch - this.epoch) & 0xffff;
    if (ahead === 0) {
      this.acceptSecondary(slot);
    } else if (ahead < 0x8000) {
      stats.earlyFrames++;
      this.early.push(slot, offset);
    } else {
      stats.staleFrames++;
      state.finishSlot(slot);
    }
  }

  /**
   * The next record of both rings, if they are the same segment of a connection and nothing else of it waits: does what
   * addSecondary() and then addPrimary() would do, in a fraction of the time. False if not; nothing has happened then.
   */
  addPair(
    primarySlot: number,
    primaryOffset: number,
    secondarySlot: number,
    secondaryOffset: number,
  ): boolean {
    if (this.overflow.length !== 0 || this.poolExhausted) return false;
    const { boundaryNs, epoch } = this;
    return this.inOrder.addPair(
      primarySlot,
      primaryOffset,
      secondarySlot,
      secondaryOffset,
      boundaryNs,
      epoch,
    );
  }

  /**
   * A checkpoint is about to be asked for: from now on primary frames newer than `horizonNs` are held without
   * being compared, until checkpoint(). Older ones are compared as before. Timeouts are not reported meanwhile.
   * May be called again with a later time (that of the STOP event) or, if no checkpoint came of it, for the next
   * one: the frames in between are then compared.
   */
  beginCheckpoint(horizonNs: number): void {
    this.moveHorizon(horizonNs);
  }

  /**
   * The secondary has loaded the primary's state as of `boundaryNs` (the primary's STOP). Primary frames up
   * to then are released, also those that are added later; secondary records of older epochs are finished;
   * frames after it are compared with the secondary's records of `newEpoch`.
   */
  checkpoint(boundaryNs: number, newEpoch: number): { released: number; dropped: number } {
    const { state, stats } = this;
    const { flows } = state;
    const releasedBefore = stats.releasedFrames;
    const finishedBefore = stats.finishedFrames;
    const leaked = state.newestComparedNs > boundaryNs;
    stats.checkpoints++;
    this.epoch = newEpoch & 0xffff;
    if (boundaryNs > this.boundaryNs) this.boundaryNs = boundaryNs;
    state.horizonNs = Number.POSITIVE_INFINITY;
    state.newestComparedNs = Number.NEGATIVE_INFINITY;
    this.poolExhausted = false;

    this.releaseUpTo(this.boundaryNs, true);
    this.finishAllSecondary();
    const dropped = stats.finishedFrames - finishedBefore;
    for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
      if (!flows.isLive(flow)) continue;
      flows.reportedNs[flow] = 0;
      if (flows.held[flow] === 0 && flows.overflowed[flow] === 0 && this.isOver(flow)) {
        flows.remove(flow);
        stats.flowsCollected++;
      } else if ((flows.flags[flow] & FLOW_TCP) !== 0) {
        this.tcp.restart(flow);
      } else {
        flows.flags[flow] &= ~FLOW_FROZEN;
        if ((flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.fragments.restart(flow);
        else if (this.datagrams.restart(flow)) this.fragments.salvage(flow);
      }
    }
    this.deadlines.restart();
    this.admitEarly();
    for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
      if (flows.isLive(flow) && flows.held[flow] > 0) this.run(flow);
    }
    stats.flows = flows.size;
    if (this.overflow.length > 0) this.reportOverflow("frames newer than the checkpoint had passed a limit");
    if (leaked) {
      const detail =
        "frames sent after the checkpoint had been compared with output of the secondary from before it; " +
        "call beginCheckpoint() before the checkpoint is requested";
      state.report("boundary", -1, 0, detail);
    }
    return { released: stats.releasedFrames - releasedBefore, dropped };
  }

  /**
   * The VM runs alone from now on: everything held is released in order of arrival, all secondary records are
   * finished, all flows are forgotten. Returns how many frames were released. Frames added afterwards are
   * held again, until the next call.
   */
  releaseAll(): number {
    const { state, stats } = this;
    const before = stats.releasedFrames;
    this.releaseUpTo(Number.POSITIVE_INFINITY, false);
    this.finishAllSecondary();
    for (let i = 0; i < this.early.length; i++) {
      stats.discardedFrames++;
      state.finishSlot(this.early.slots[i]);
    }
    this.early.length = 0;
    state.flows.clear();
    state.horizonNs = Number.POSITIVE_INFINITY;
    state.newestComparedNs = Number.NEGATIVE_INFINITY;
    this.poolExhausted = false;
    this.deadlines.restart();
    stats.flows = 0;
    return stats.releasedFrames - before;
  }

  /**
   * Reports frames that have waited longer than maxWaitNs, once for each flow and again only after another
   * maxWaitNs, and forgets idle flows. Nothing is released by a timeout. Call it at the latest at
   * nextDeadlineNs(), and about once a second when idle.
   */
  expire(nowNs: number): void {
    const { state, stats } = this;
    if (nowNs > state.nowNs) state.nowNs = nowNs;
    if (state.horizonNs === Number.POSITIVE_INFINITY) {
      this.deadlines.expire(nowNs);
    }
    stats.flowsCollected += state.flows.collect(COLLECT_PER_CALL, nowNs, this.idleNs, this.closedIdleNs);
    stats.flows = state.flows.size;
  }

  /** When expire() is needed next for a timeout; Infinity if nothing waits or a checkpoint has begun. */
  nextDeadlineNs(): number {
    if (this.state.horizonNs !== Number.POSITIVE_INFINITY) return Number.POSITIVE_INFINITY;
    return this.deadlines.nextNs();
  }

  /**
   * A frame that a past checkpoint covers: it only has to be sent, but it says how far its connection had
   * come.
   */
  private addLate(slot: number, flow: number): void {
    const { state, frame, stats } = this;
    stats.releasedByCheckpoint++;
    state.releaseSlot(slot);
    if (frame.kind === KIND_TCP && flow >= 0) this.tcp.noteLate(flow, frame);
  }

  private acceptSecondary(slot: number): void {
    const { state, frame, stats } = this;
    const { flows } = state;
    if (frame.kind === KIND_BYPASS) {
      state.finishSlot(slot);
      return;
    }
    const flow = this.flowOf(frame);
    if (this.rules?.hasPassthrough === true && this.passes(flow)) {
      state.finishSlot(slot);
      return;
    }
    if (flow < 0 || (flows.flags[flow] & FLOW_FROZEN) !== 0) {
      // Either way a checkpoint is on its way, and nothing can be matched before it.
      if (flow < 0) this.reportFullTable();
      stats.discardedFrames++;
      state.finishSlot(slot);
      return;
    }
    flows.lastSeenNs[flow] = state.nowNs;
    if (flows.pending[flow] >= state.limits.pendingFramesPerFlowMax) {
      stats.discardedFrames++;
      state.finishSlot(slot);
      const limit = state.limits.pendingFramesPerFlowMax;
      state.diverge(flow, "overflow", `more than ${limit} frames of the secondary wait for the primary's`);
      return;
    }
    if (frame.kind === KIND_TCP) {
      if (this.tcp.secondaryAdded(flow, slot, frame)) return;
    } else {
      const segment = state.wait(flow, slot, frame);
      if (segment >= 0) {
        state.secondaryQueue.push(flow, segment);
        if ((flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.fragments.secondaryAdded(flow, segment);
        else this.datagrams.run(flow);
        return;
      }
    }
    stats.discardedFrames++;
    state.finishSlot(slot);
    const limit = state.limits.pendingFramesMax;
    state.diverge(flow, "overflow", `more than ${limit} frames of the secondary wait for the primary's`);
  }

  private admitEarly(): void {
    const { state, early, frame } = this;
    const count = early.length;
    early.length = 0;
    for (let i = 0; i < count; i++) {
      const slot = early.slots[i];
      const offset = early.offsets[i];
      parseRecord(this.secondaryBytes, offset, frame);
      const ahead = (frame.epoch - this.epoch) & 0xffff;
      if (ahead === 0) {
        this.acceptSecondary(slot);
      } else if (ahead < 0x8000) {
        early.push(slot, offset);
      } else {
        this.stats.staleFrames++;
        state.finishSlot(slot);
      }
    }
  }

  /** Whether the rules take the frame just parsed, of this flow (-1: none), out of the comparison. */
  private passes(flow: number): boolean {
    if (flow >= 0) return (this.state.flows.flags[flow] & FLOW_PASSTHROUGH) !== 0;
    return this.rules?.passes(this.frame.key) === true;
  }

  /** The flow of a frame, made if need be; -1 if there is no room. */
  private flowOf(frame: ParsedFrame): number {
    const { state } = this;
    const { flows } = state;
    const known = flows.find(frame.key);
    if (known >= 0) return known;
    // A frame in the overflow list may be of this very flow, and comes first: no new flows before it has
    // left.
    if (this.overflow.withoutFlow > 0) return -1;
    const flags = frame.kind === KIND_TCP ? FLOW_TCP : 0;
    let flow = flows.add(frame.key, flags, state.nowNs);
    if (flow < 0) {
      this.stats.flowsCollected += flows.collect(EVICT_LOOKS, state.nowNs, this.maxWaitNs, this.maxWaitNs);
      flow = flows.add(frame.key, flags, state.nowNs);
    }
    this.stats.flows = flows.size;
    if (flow < 0) return flow;
    if (isWaitingRoom(frame.key)) flows.flags[flow] |= FLOW_FRAGMENTS;
    if (this.rules !== undefined) this.applyRules(flow, frame.key);
    return flow;
  }

  private applyRules(flow: number, key: Int32Array): void {
    const { rules } = this;
    const { flows } = this.state;
    if (rules?.passes(key)) flows.flags[flow] |= FLOW_PASSTHROUGH;
    if (!rules?.hasIgnore) return;
    flows.ignoredSet[flow] = rules.ignoredSet(key);
    if (flows.ignoredSet[flow] > 0) flows.flags[flow] |= FLOW_IGNORES;
  }

  private run(flow: number): void {
    const flags = this.state.flows.flags[flow];
    if ((flags & FLOW_TCP) !== 0) this.tcp.run(flow);
    else if ((flags & FLOW_FRAGMENTS) !== 0) this.fragments.run(flow);
    else this.datagrams.run(flow);
  }

  private moveHorizon(horizonNs: number): void {
    const { state } = this;
    const { flows } = state;
    const raised = horizonNs > state.horizonNs;
    state.horizonNs = horizonNs;
    if (!raised) return;
    for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
      if (!flows.isLive(flow) || flows.held[flow] === 0) continue;
      if ((flows.flags[flow] & FLOW_TCP) !== 0) this.tcp.trackQueue(flow);
      this.run(flow);
    }
  }

  /**
   * Closed before the last checkpoint already, so that nothing of it can be on its way. Notes it for the next
   * one.
   */
  private isOver(flow: number): boolean {
    const { flows } = this.state;
    const flags = flows.flags[flow];
    if ((flags & FLOW_CLOSED) === 0) return false;
    flows.flags[flow] = flags | FLOW_CLOSED_BEFORE;
    return (flags & FLOW_CLOSED_BEFORE) !== 0;
  }

  /** Releases held frames up to a time, tracked and overflowed ones, in order of arrival. */
  private releaseUpTo(untilNs: number, byCheckpoint: boolean): void {
    const { state, overflow, stats } = this;
    const { primary, primaryAge } = state;
    let segment = primaryAge.head[0];
    let at = 0;
    let kept = 0;
    while (segment >= 0 || at < overflow.length) {
      const takeOverflow =
        at < overflow.length && (segment < 0 || overflow.arrivalOf(at) < primary.arrival[segment]);
      const timeNs = takeOverflow ? overflow.timeOf(at) : primary.timeNs[segment];
      const covered = timeNs <= untilNs;
      if (covered) {
        if (byCheckpoint) stats.releasedByCheckpoint++;
        else stats.releasedAlone++;
      }
      if (takeOverflow) {
        if (covered) overflow.release(at);
        else overflow.keep(at, kept++);
        at++;
      } else {
        const following = primaryAge.next[segment];
        if (covered) this.releaseSegment(segment);
        segment = following;
      }
    }
    overflow.length = kept;
  }

  private releaseSegment(segment: number): void {
    const { state } = this;
    const { primary, flows } = state;
    const flow = primary.flow[segment];
    if ((flows.flags[flow] & FLOW_TCP) !== 0) {
      const { flags, sequence, end, acknowledgement, timeNs } = primary;
      this.tcp.noteReleased(
        flow,
        flags[segment],
        sequence[segment],
        end[segment],
        acknowledgement[segment],
        timeNs[segment],
        primary.window[segment],
        primary.urgent[segment],
      );
      // restart() and clear() build this list anew from what stays.
      state.primarySorted.clear(flow);
    }
    state.release(segment);
  }

  private finishAllSecondary(): void {
    const { state, stats } = this;
    const { secondary, secondaryAge } = state;
    for (let segment = secondaryAge.head[0]; segment >= 0; segment = secondaryAge.head[0]) {
      const flow = secondary.flow[segment];
      state.secondarySorted.clear(flow);
      state.secondaryResets.clear(flow);
      state.secondaryQueue.clear(flow);
      stats.discardedFrames++;
      state.finish(segment);
    }
  }

  private reportOverflow(why: string): void {
    const held = this.stats.heldFrames;
    const detail = `${why}; ${held} frames are held, ${this.overflow.length} of them until the next checkpoint`;
    this.state.report("overflow", -1, 0, detail);
  }

  /** The secondary's frames alone can fill the table; one report for each epoch is enough. */
  private reportFullTable(): void {
    if (this.tableReported === this.stats.checkpoints) return;
    this.tableReported = this.stats.checkpoints;
    const { flowsMax } = this.state.limits;
    this.state.report("overflow", -1, 0, `more than ${flowsMax} flows have frames that wait`);
  }
}
