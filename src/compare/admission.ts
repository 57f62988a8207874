/**
 * A frame's way into the comparison: parsed, given to its flow, and refused where a limit, an epoch or a rule
 * says so. The usual TCP segment takes the short way (in_order.ts) and is never seen here.
 *
 * A refusal never loses a frame. A primary frame that cannot be tracked goes to the overflow list and leaves
 * with the next checkpoint; a secondary record that cannot be kept is finished, and its flow waits for that
 * checkpoint.
 */
import type { DatagramFlows } from "./datagram.ts";
import type { EarlyRecords } from "./early_records.ts";
import type { FlowFinder } from "./flow_finder.ts";
import { KIND_BYPASS, KIND_TCP } from "./flow_key.ts";
import { FLOW_FRAGMENTS, FLOW_FROZEN } from "./flow_table.ts";
import type { FragmentFlows } from "./fragments.ts";
import type { OverflowList } from "./overflow_list.ts";
import { parseRecord } from "./parse.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import type { CompareState } from "./state.ts";
import type { TcpFlows } from "./tcp.ts";

/** An epoch is ahead of another, modulo 2^16, if it is less than this further on. */
const EPOCHS_AHEAD_MAX = 0x8000;

/** Whose job it is to compare a flow. */
export interface FlowComparers {
  tcp: TcpFlows;
  datagrams: DatagramFlows;
  fragments: FragmentFlows;
}

export class Admission {
  readonly #state: CompareState;
  readonly #frame: ParsedFrame;
  readonly #finder: FlowFinder;
  readonly #tcp: TcpFlows;
  readonly #datagrams: DatagramFlows;
  readonly #fragments: FragmentFlows;
  readonly #overflow: OverflowList;
  readonly #early: EarlyRecords;
  /** Number of checkpoints when a full flow table was last reported on account of the secondary. */
  #tableReported = -1;

  constructor(
    state: CompareState,
    frame: ParsedFrame,
    finder: FlowFinder,
    { tcp, datagrams, fragments }: FlowComparers,
    overflow: OverflowList,
    early: EarlyRecords,
  ) {
    this.#state = state;
    this.#frame = frame;
    this.#finder = finder;
    this.#tcp = tcp;
    this.#datagrams = datagrams;
    this.#fragments = fragments;
    this.#overflow = overflow;
    this.#early = early;
  }

  /** A record of the primary at byte `offset`. */
  addPrimary(slot: number, offset: number): void {
    const state = this.#state;
    const frame = this.#frame;
    const { stats } = state;
    parseRecord(state.primaryBytes, offset, frame);
    stats.primaryAdded++;
    stats.heldFrames++;
    if (frame.timeNs > state.nowNs) state.nowNs = frame.timeNs;
    if (frame.kind === KIND_BYPASS) {
      stats.releasedBypass++;
      state.releaseSlot(slot);
      return;
    }
    const late = frame.timeNs <= state.boundaryNs;
    const hasPassthrough = state.rules?.hasPassthrough === true;
    const flow = late && frame.kind !== KIND_TCP && !hasPassthrough ? -1 : this.#finder.flowOf(frame);
    if (hasPassthrough && this.#finder.passes(flow, frame)) {
      stats.releasedPassthrough++;
      state.releaseSlot(slot);
      return;
    }
    if (late) {
      this.#addLate(slot, flow);
      return;
    }
    if (flow < 0 || state.poolExhausted || state.flows.overflowed[flow] > 0) {
      const first = this.#overflow.length === 0;
      this.#overflow.push(slot, frame.timeNs, flow);
      if (first) this.#overflow.report("the flow table is full");
      return;
    }
    state.flows.lastSeenNs[flow] = state.nowNs;
    if (state.flows.held[flow] >= state.limits.heldFramesPerFlowMax) {
      this.#overflow.push(slot, frame.timeNs, flow);
      state.diverge(flow, "overflow", `more than ${state.limits.heldFramesPerFlowMax} frames of it are held`);
      return;
    }
    const segment = state.hold(flow, slot, frame);
    if (segment < 0) {
      state.poolExhausted = true;
      this.#overflow.push(slot, frame.timeNs, flow);
      this.#overflow.report(`more than ${state.limits.heldFramesMax} frames are held`);
      return;
    }
    if (frame.kind === KIND_TCP) this.#tcp.primaryAdded(flow, segment);
    else if ((state.flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.#fragments.primaryAdded(flow, segment);
    else this.#datagrams.run(flow);
  }

  /** A record of the secondary at byte `offset`, of any epoch. */
  addSecondary(slot: number, offset: number): void {
    const state = this.#state;
    const frame = this.#frame;
    const { stats } = state;
    parseRecord(state.secondaryBytes, offset, frame);
    stats.secondaryAdded++;
    stats.pendingFrames++;
    if (frame.timeNs > state.nowNs) state.nowNs = frame.timeNs;
    const isEarly = this.#admitByEpoch(slot, offset);
    if (isEarly) stats.earlyFrames++;
  }

  /** The records of a newer epoch that have waited for this one. */
  admitEarly(): void {
    const early = this.#early;
    const count = early.length;
    early.length = 0;
    for (let i = 0; i < count; i++) {
      const offset = early.offsets[i];
      parseRecord(this.#state.secondaryBytes, offset, this.#frame);
      this.#admitByEpoch(early.slots[i], offset);
    }
  }

  /** Takes, keeps or finishes the record just parsed. True if it is of a newer epoch and kept. */
  #admitByEpoch(slot: number, offset: number): boolean {
    const state = this.#state;
    const ahead = (this.#frame.epoch - state.epoch) & 0xffff;
    if (ahead === 0) {
      this.#acceptSecondary(slot);
    } else if (ahead < EPOCHS_AHEAD_MAX) {
      this.#early.push(slot, offset);
      return true;
    } else {
      state.stats.staleFrames++;
      state.finishSlot(slot);
    }
    return false;
  }

  #acceptSecondary(slot: number): void {
    const state = this.#state;
    const frame = this.#frame;
    const { flows, stats } = state;
    if (frame.kind === KIND_BYPASS) {
      state.finishSlot(slot);
      return;
    }
    const flow = this.#finder.flowOf(frame);
    if (state.rules?.hasPassthrough === true && this.#finder.passes(flow, frame)) {
      state.finishSlot(slot);
      return;
    }
    if (flow < 0 || (flows.flags[flow] & FLOW_FROZEN) !== 0) {
      // Either way a checkpoint is on its way, and nothing can be matched before it.
      if (flow < 0) this.#reportFullTable();
      stats.discardedFrames++;
      state.finishSlot(slot);
      return;
    }
    flows.lastSeenNs[flow] = state.nowNs;
    if (flows.pending[flow] >= state.limits.pendingFramesPerFlowMax) {
      this.#refuseSecondary(slot, flow, state.limits.pendingFramesPerFlowMax);
      return;
    }
    if (frame.kind === KIND_TCP) {
      if (this.#tcp.secondaryAdded(flow, slot, frame)) return;
    } else {
      const segment = state.wait(flow, slot, frame);
      if (segment >= 0) {
        state.secondaryQueue.push(flow, segment);
        if ((flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.#fragments.secondaryAdded(flow, segment);
        else this.#datagrams.run(flow);
        return;
      }
    }
    this.#refuseSecondary(slot, flow, state.limits.pendingFramesMax);
  }

  #refuseSecondary(slot: number, flow: number, limit: number): void {
    const state = this.#state;
    state.stats.discardedFrames++;
    state.finishSlot(slot);
    state.diverge(flow, "overflow", `more than ${limit} frames of the secondary wait for the primary's`);
  }

  /**
   * A frame that a past checkpoint covers. It only has to be sent, but it says how far its connection had
   * come.
   */
  #addLate(slot: number, flow: number): void {
    const state = this.#state;
    const frame = this.#frame;
    state.stats.releasedByCheckpoint++;
    state.releaseSlot(slot);
    if (frame.kind === KIND_TCP && flow >= 0) this.#tcp.noteLate(flow, frame);
  }

  /** The secondary's frames alone can fill the table; one report for each epoch is enough. */
  #reportFullTable(): void {
    const { stats, limits } = this.#state;
    if (this.#tableReported === stats.checkpoints) return;
    this.#tableReported = stats.checkpoints;
    this.#state.report("overflow", -1, 0, `more than ${limits.flowsMax} flows have frames that wait`);
  }
}
