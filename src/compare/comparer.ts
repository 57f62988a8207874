/**
 * Decides which frames of the primary VM may leave (docs/architecture.md).
 *
 * Every record that is added is given back exactly once: a primary one by sink.permit(), a secondary one by
 * sink.finish(). A TCP frame may be sent in parts before, or otherwise than the primary sent it
 * (FrameChange). Frames of one flow are released in order of arrival. sink.permit() and sink.finish() may be
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
import { Admission } from "./admission.ts";
import { audit, type Tables, tablesOf } from "./audit.ts";
import { Checkpoints } from "./checkpoint.ts";
import { DatagramFlows } from "./datagram.ts";
import { Deadlines } from "./deadlines.ts";
import { EarlyRecords } from "./early_records.ts";
import { FlowFinder } from "./flow_finder.ts";
import { FragmentFlows } from "./fragments.ts";
import { InOrderTcp } from "./in_order.ts";
import { COMPARER_LIMITS, type ComparerOptions } from "./options.ts";
import { OverflowList } from "./overflow_list.ts";
import { ParsedFrame } from "./parsed_frame.ts";
import { CompareState } from "./state.ts";
import type { ComparerStats } from "./stats.ts";
import { TcpFlows } from "./tcp.ts";

export type { Divergence, DivergenceClass } from "./divergence.ts";
export {
  COMPARER_LIMITS,
  type ComparerLimits,
  type ComparerOptions,
  type ComparerSink,
  type RecordMemory,
} from "./options.ts";
export { parseRules, RuleError, type RuleLines, type Rules } from "./rules.ts";
export type { ComparerStats } from "./stats.ts";

/** Flow ids that one expire() looks at for idle flows. */
const COLLECT_PER_CALL = 64;

export class Comparer {
  readonly stats: ComparerStats;
  readonly #state: CompareState;
  readonly #inOrder: InOrderTcp;
  readonly #admission: Admission;
  readonly #checkpoints: Checkpoints;
  readonly #deadlines: Deadlines;
  readonly #overflow: OverflowList;
  readonly #early = new EarlyRecords();
  readonly #idleNs: number;
  readonly #closedIdleNs: number;

  /** Throws RangeError if a limit is out of range. */
  constructor(options: ComparerOptions) {
    const { primary, secondary, sink, memcmp, seed = (Math.random() * 2 ** 32) | 0 } = options;
    const { maxWaitNs = 200e6, idleNs = 300e9, closedIdleNs = 10e9, rules, epoch = 0 } = options;
    const { partAfterNs = Number.POSITIVE_INFINITY, crossedAfterNs = Number.POSITIVE_INFINITY } = options;
    const limits = { ...COMPARER_LIMITS, ...options.limits };
    for (const [name, value] of Object.entries(limits)) {
      if (!Number.isInteger(value) || value < 1 || value > 2 ** 24) {
        throw new RangeError(`The comparer's limit ${name} is ${value}; give an integer from 1 to 16777216.`);
      }
    }
    const shared = { primary, secondary, sink, memcmp, limits, seed };
    const state = new CompareState(rules === undefined ? shared : { ...shared, rules });
    state.epoch = epoch & 0xffff;
    const frame = new ParsedFrame();
    const tcp = new TcpFlows(state, partAfterNs);
    const datagrams = new DatagramFlows(state);
    const overflow = new OverflowList(state);
    const finder = new FlowFinder(state, overflow, maxWaitNs);
    const fragments = new FragmentFlows(state, tcp, datagrams, (of) => finder.flowOf(of));
    const flows = { tcp, datagrams, fragments };
    this.stats = state.stats;
    this.#state = state;
    this.#overflow = overflow;
    this.#inOrder = new InOrderTcp(state, frame, primary, secondary);
    this.#admission = new Admission(state, frame, finder, flows, overflow, this.#early);
    this.#deadlines = new Deadlines(state, tcp, maxWaitNs, partAfterNs, crossedAfterNs);
    this.#checkpoints = new Checkpoints(
      state,
      flows,
      this.#admission,
      this.#deadlines,
      overflow,
      this.#early,
    );
    this.#idleNs = idleNs;
    this.#closedIdleNs = closedIdleNs;
  }

  /** A frame of the primary VM; `offset` is that of its record in primary.bytes. */
  addPrimary(slot: number, offset: number): void {
    if (this.#overflow.length === 0 && !this.#state.poolExhausted) {
      if (this.#inOrder.addPrimary(slot, offset)) return;
    }
    this.#admission.addPrimary(slot, offset);
  }

  /**
   * A frame of the secondary VM. Records of an older epoch are finished at once, those of a newer one (16
   * bits, modulo 2^16) wait for its checkpoint().
   */
  addSecondary(slot: number, offset: number): void {
    if (!this.#inOrder.addSecondary(slot, offset)) this.#admission.addSecondary(slot, offset);
  }

  /**
   * The next record of both rings, if they are the same segment of a connection and nothing else of it waits:
   * does what addSecondary() and then addPrimary() would do, in a fraction of the time. False if not; nothing
   * has happened then.
   */
  addPair(
    primarySlot: number,
    primaryOffset: number,
    secondarySlot: number,
    secondaryOffset: number,
  ): boolean {
    if (this.#overflow.length !== 0 || this.#state.poolExhausted) return false;
    return this.#inOrder.addPair(primarySlot, primaryOffset, secondarySlot, secondaryOffset);
  }

  /**
   * A checkpoint is about to be asked for: from now on primary frames newer than `horizonNs` are held without
   * being compared, until checkpoint(). Older ones are compared as before. Timeouts are not reported
   * meanwhile. May be called again with a later time (that of the STOP event) or, if no checkpoint came of
   * it, for the next one: the frames in between are then compared.
   */
  beginCheckpoint(horizonNs: number): void {
    this.#checkpoints.begin(horizonNs);
  }

  /**
   * The secondary has loaded the primary's state as of `boundaryNs` (the primary's STOP). Primary frames up
   * to then are released, also those that are added later; secondary records of older epochs are finished;
   * frames after it are compared with the secondary's records of `newEpoch`.
   */
  checkpoint(boundaryNs: number, newEpoch: number): { released: number; dropped: number } {
    return this.#checkpoints.complete(boundaryNs, newEpoch);
  }

  /**
   * The VM runs alone from now on: everything held is released in order of arrival, all secondary records are
   * finished, all flows are forgotten. Returns how many frames were released. Frames added afterwards are
   * held again, until the next call.
   */
  releaseAll(): number {
    return this.#checkpoints.releaseAll();
  }

  /**
   * Reports frames that have waited longer than maxWaitNs, once for each flow and again only after another
   * maxWaitNs, and forgets idle flows. Nothing is released by a timeout. Call it at the latest at
   * nextDeadlineNs(), and about once a second when idle.
   */
  expire(nowNs: number): void {
    const state = this.#state;
    const { stats } = state;
    if (nowNs > state.nowNs) state.nowNs = nowNs;
    if (state.horizonNs === Number.POSITIVE_INFINITY) {
      this.#deadlines.expire(nowNs);
    }
    stats.flowsCollected += state.flows.collect(COLLECT_PER_CALL, nowNs, this.#idleNs, this.#closedIdleNs);
    stats.flows = state.flows.size;
  }

  /** When expire() is needed next for a timeout; Infinity if nothing waits or a checkpoint has begun. */
  nextDeadlineNs(): number {
    if (this.#state.horizonNs !== Number.POSITIVE_INFINITY) return Number.POSITIVE_INFINITY;
    return this.#deadlines.nextNs();
  }

  /** Throws an Error if tables and lists contradict each other. For tests: it looks at all of them. */
  audit(): void {
    audit(this.#state, this.#overflow, this.#early);
  }

  /** A copy of what the tables say. For tests. */
  tables(): Tables {
    return tablesOf(this.#state);
  }
}
