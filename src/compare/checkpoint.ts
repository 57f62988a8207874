/**
 * The effect of a checkpoint on the comparison.
 *
 * Three times matter. Frames of the primary up to the *boundary*, its STOP, are part of the state that the
 * secondary has loaded: they leave without a comparison. Frames newer than the *horizon*, the moment before
 * the checkpoint was requested, must not be compared with output that the secondary is about to undo: they
 * wait. After the checkpoint both VMs continue from the same state, and every flow starts from its released
 * frames.
 */
import type { Admission, FlowComparers } from "./admission.ts";
import type { Deadlines } from "./deadlines.ts";
import type { EarlyRecords } from "./early_records.ts";
import { FLOW_CLOSED, FLOW_CLOSED_BEFORE, FLOW_FRAGMENTS, FLOW_FROZEN, FLOW_TCP } from "./flow_table.ts";
import type { OverflowList } from "./overflow_list.ts";
import { ID_STEP } from "./rows.ts";
import type { CompareState } from "./state.ts";

export class Checkpoints {
  readonly #state: CompareState;
  readonly #flows: FlowComparers;
  readonly #admission: Admission;
  readonly #deadlines: Deadlines;
  readonly #overflow: OverflowList;
  readonly #early: EarlyRecords;

  constructor(
    state: CompareState,
    flows: FlowComparers,
    admission: Admission,
    deadlines: Deadlines,
    overflow: OverflowList,
    early: EarlyRecords,
  ) {
    this.#state = state;
    this.#flows = flows;
    this.#admission = admission;
    this.#deadlines = deadlines;
    this.#overflow = overflow;
    this.#early = early;
  }

  /** Sets the horizon. If it moves up, the frames in between are compared. */
  begin(horizonNs: number): void {
    const state = this.#state;
    const { flows } = state;
    const raised = horizonNs > state.horizonNs;
    state.horizonNs = horizonNs;
    if (!raised) return;
    for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
      if (!flows.isLive(flow) || flows.held[flow] === 0) continue;
      if ((flows.flags[flow] & FLOW_TCP) !== 0) this.#flows.tcp.trackQueue(flow);
      this.#run(flow);
    }
  }

  /** See Comparer.checkpoint(). */
  complete(boundaryNs: number, newEpoch: number): { released: number; dropped: number } {
    const state = this.#state;
    const overflow = this.#overflow;
    const { flows, stats } = state;
    const releasedBefore = stats.releasedFrames;
    const finishedBefore = stats.finishedFrames;
    const leaked = state.newestComparedNs > boundaryNs;
    stats.checkpoints++;
    state.epoch = newEpoch & 0xffff;
    if (boundaryNs > state.boundaryNs) state.boundaryNs = boundaryNs;
    this.#forgetTimes();

    this.#releaseUpTo(state.boundaryNs, true);
    this.#finishAllSecondary();
    const dropped = stats.finishedFrames - finishedBefore;
    for (let flow = 0; flow < flows.highest; flow += ID_STEP) if (flows.isLive(flow)) this.#restart(flow);
    this.#deadlines.restart();
    this.#admission.admitEarly();
    for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
      if (flows.isLive(flow) && flows.held[flow] > 0) this.#run(flow);
    }
    stats.flows = flows.size;
    if (overflow.length > 0) overflow.report("frames newer than the checkpoint had passed a limit");
    if (leaked) {
      const detail =
        "frames sent after the checkpoint had been compared with output of the secondary from before it; " +
        "call beginCheckpoint() before the checkpoint is requested";
      state.report("boundary", -1, 0, detail);
    }
    return { released: stats.releasedFrames - releasedBefore, dropped };
  }

  /** See Comparer.releaseAll(). */
  releaseAll(): number {
    const state = this.#state;
    const early = this.#early;
    const { stats } = state;
    const before = stats.releasedFrames;
    this.#releaseUpTo(Number.POSITIVE_INFINITY, false);
    this.#finishAllSecondary();
    for (let i = 0; i < early.length; i++) {
      stats.discardedFrames++;
      state.finishSlot(early.slots[i]);
    }
    early.length = 0;
    state.flows.clear();
    this.#forgetTimes();
    this.#deadlines.restart();
    stats.flows = 0;
    return stats.releasedFrames - before;
  }

  #forgetTimes(): void {
    const state = this.#state;
    state.horizonNs = Number.POSITIVE_INFINITY;
    state.newestComparedNs = Number.NEGATIVE_INFINITY;
    state.poolExhausted = false;
  }

  #run(flow: number): void {
    const flags = this.#state.flows.flags[flow];
    if ((flags & FLOW_TCP) !== 0) this.#flows.tcp.run(flow);
    else if ((flags & FLOW_FRAGMENTS) !== 0) this.#flows.fragments.run(flow);
    else this.#flows.datagrams.run(flow);
  }

  /** The flow starts from the common state, or is forgotten if it is over. */
  #restart(flow: number): void {
    const { flows, stats } = this.#state;
    const { tcp, datagrams, fragments } = this.#flows;
    flows.reportedNs[flow] = 0;
    if (flows.held[flow] === 0 && flows.overflowed[flow] === 0 && this.#isOver(flow)) {
      flows.remove(flow);
      stats.flowsCollected++;
    } else if ((flows.flags[flow] & FLOW_TCP) !== 0) {
      tcp.restart(flow);
    } else {
      flows.flags[flow] &= ~FLOW_FROZEN;
      if ((flows.flags[flow] & FLOW_FRAGMENTS) !== 0) fragments.restart(flow);
      else if (datagrams.restart(flow)) fragments.salvage(flow);
    }
  }

  /**
   * Closed before the last checkpoint already, so that nothing of it can be on its way. Notes it for the next
   * one.
   */
  #isOver(flow: number): boolean {
    const { flows } = this.#state;
    const flags = flows.flags[flow];
    if ((flags & FLOW_CLOSED) === 0) return false;
    flows.flags[flow] = flags | FLOW_CLOSED_BEFORE;
    return (flags & FLOW_CLOSED_BEFORE) !== 0;
  }

  /** Releases held frames up to a time, tracked and overflowed ones, in order of arrival. */
  #releaseUpTo(untilNs: number, byCheckpoint: boolean): void {
    const state = this.#state;
    const { stats } = state;
    const overflow = this.#overflow;
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
        if (covered) this.#releaseSegment(segment);
        segment = following;
      }
    }
    overflow.length = kept;
  }

  #releaseSegment(segment: number): void {
    const state = this.#state;
    const { primary, flows } = state;
    const flow = primary.flow[segment];
    if ((flows.flags[flow] & FLOW_TCP) !== 0) {
      this.#flows.tcp.noteReleased(flow, segment);
      // restart() and clear() build this list again from what stays.
      state.primarySorted.clear(flow);
    }
    state.release(segment);
  }

  #finishAllSecondary(): void {
    const state = this.#state;
    const { secondary, secondaryAge, stats } = state;
    for (let segment = secondaryAge.head[0]; segment >= 0; segment = secondaryAge.head[0]) {
      const flow = secondary.flow[segment];
      state.secondarySorted.clear(flow);
      state.secondaryResets.clear(flow);
      state.secondaryQueue.clear(flow);
      stats.discardedFrames++;
      state.finish(segment);
    }
  }
}
