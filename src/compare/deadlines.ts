/**
 * Frames that have waited too long for their counterpart, on either side. All may wait equally long, so the
 * list in order of arrival is the list in order of deadlines: a mark moves along it, and behind the mark
 * everything has been looked at. What is still there one more wait later is looked at again, from the start.
 */
import { FLOW_FRAGMENTS, FLOW_FROZEN, FLOW_TCP } from "./flow_table.ts";
import type { LinkedLists } from "./linked_lists.ts";
import type { SegmentPool } from "./segment_pool.ts";
import type { CompareState } from "./state.ts";
import type { TcpFlows } from "./tcp.ts";

export class Deadlines {
  /** Waiting counts from here at the earliest: nothing could be matched while the VMs stood still. */
  #resumedNs = 0;
  /** When the frames behind the mark are looked at again; Infinity if there are none. */
  #primaryAgainNs = Number.POSITIVE_INFINITY;
  #secondaryAgainNs = Number.POSITIVE_INFINITY;
  /** No earlier than this are VMs that wait for each other reported again. */
  #crossedAgainNs = Number.NEGATIVE_INFINITY;

  readonly #state: CompareState;
  readonly #tcp: TcpFlows;
  readonly #maxWaitNs: number;
  readonly #partAfterNs: number;
  readonly #crossedAfterNs: number;

  constructor(
    state: CompareState,
    tcp: TcpFlows,
    maxWaitNs: number,
    partAfterNs: number,
    crossedAfterNs: number,
  ) {
    this.#state = state;
    this.#tcp = tcp;
    this.#maxWaitNs = maxWaitNs;
    this.#partAfterNs = partAfterNs;
    this.#crossedAfterNs = crossedAfterNs;
  }

  /** Everything that waits has its whole time before it again. */
  restart(): void {
    const state = this.#state;
    this.#resumedNs = state.nowNs;
    this.#primaryAgainNs = Number.POSITIVE_INFINITY;
    this.#secondaryAgainNs = Number.POSITIVE_INFINITY;
    this.#crossedAgainNs = Number.NEGATIVE_INFINITY;
    state.primaryUnexpired = state.primaryAge.head[0];
    state.primaryPatient = state.primaryAge.head[0];
    state.secondaryUnexpired = state.secondaryAge.head[0];
  }

  /**
   * Reports each flow with a frame whose time has run out, at most once in maxWaitNs. Allocates only to
   * report.
   */
  expire(nowNs: number): void {
    this.#sendParts(nowNs);
    this.#expireCrossed(nowNs);
    this.#expirePrimary(nowNs);
    this.#expireSecondary(nowNs);
  }

  nextNs(): number {
    const { primary, primaryAge, primaryUnexpired, secondary, secondaryAge, secondaryUnexpired } =
      this.#state;
    const primaryNs = this.#deadlineOf(primary, primaryAge, primaryUnexpired, this.#primaryAgainNs);
    const secondaryNs = this.#deadlineOf(secondary, secondaryAge, secondaryUnexpired, this.#secondaryAgainNs);
    return Math.min(primaryNs, secondaryNs, this.#partsNs(), this.#crossedNs());
  }

  #partsNs(): number {
    const { primary, primaryPatient } = this.#state;
    return primaryPatient < 0 ? Number.POSITIVE_INFINITY : primary.timeNs[primaryPatient] + this.#partAfterNs;
  }

  /** Looks once more at flows whose frames have become old enough to be sent in parts. */
  #sendParts(nowNs: number): void {
    const state = this.#state;
    while (this.#partsNs() <= nowNs) {
      const item = state.primaryPatient;
      const flow = state.primary.flow[item];
      state.primaryPatient = state.primaryAge.next[item];
      if ((state.flows.flags[flow] & FLOW_TCP) !== 0) this.#tcp.waitedLong(flow, item);
    }
  }

  /**
   * When the VMs count as waiting for each other. One that is late has sent nothing that the other has not;
   * when each has sent in some flow what the other has not, they have taken their input in another order.
   * Behind a lock (of a row in PostgreSQL, say) neither then comes to send the missing, because its client
   * waits for what is held: only a checkpoint helps.
   */
  #crossedNs(): number {
    const { primary, primaryAge, secondary, secondaryAge } = this.#state;
    const held = primaryAge.head[0];
    const pending = secondaryAge.head[0];
    if (held < 0 || pending < 0 || primary.flow[held] === secondary.flow[pending])
      return Number.POSITIVE_INFINITY;
    const sinceNs = Math.max(primary.timeNs[held], secondary.timeNs[pending]);
    return Math.max(this.#waitingSince(sinceNs) + this.#crossedAfterNs, this.#crossedAgainNs);
  }

  #expireCrossed(nowNs: number): void {
    if (this.#crossedNs() > nowNs) return;
    this.#crossedAgainNs = nowNs + this.#maxWaitNs;
    const state = this.#state;
    const item = state.primaryAge.head[0];
    const flow = state.primary.flow[item];
    if (!this.#mayReport(flow, nowNs)) return;
    const waitedNs = nowNs - state.primary.timeNs[item];
    let detail =
      `a frame of the primary has had no counterpart for ${Math.round(waitedNs / 1e6)} ms, and a frame of ` +
      "the secondary has none in another flow: the VMs wait for each other";
    if ((state.flows.flags[flow] & FLOW_TCP) !== 0) detail += `; ${this.#tcp.describeWait(flow)}`;
    state.report("missing_on_secondary", flow, waitedNs, detail, undefined, { primary: item, secondary: -1 });
  }

  #expirePrimary(nowNs: number): void {
    const state = this.#state;
    const { primary, primaryAge, flows } = state;
    if (this.#primaryAgainNs <= nowNs) {
      this.#primaryAgainNs = Number.POSITIVE_INFINITY;
      state.primaryUnexpired = primaryAge.head[0];
    }
    for (let item = state.primaryUnexpired; item >= 0; item = state.primaryUnexpired) {
      if (this.#waitingSince(primary.timeNs[item]) + this.#maxWaitNs > nowNs) return;
      state.primaryUnexpired = primaryAge.next[item];
      if (this.#primaryAgainNs === Number.POSITIVE_INFINITY) this.#primaryAgainNs = nowNs + this.#maxWaitNs;
      const flow = primary.flow[item];
      if (!this.#mayReport(flow, nowNs)) continue;
      const waitedNs = nowNs - primary.timeNs[item];
      let detail = `a frame of the primary has had no counterpart for ${Math.round(waitedNs / 1e6)} ms`;
      if ((flows.flags[flow] & FLOW_TCP) !== 0) detail += `: ${this.#tcp.describeWait(flow)}`;
      if ((flows.flags[flow] & FLOW_FRAGMENTS) !== 0)
        detail += ": other fragments of its datagram have not come";
      const place = { primary: item, secondary: -1 };
      state.report("missing_on_secondary", flow, waitedNs, detail, undefined, place);
    }
  }

  #expireSecondary(nowNs: number): void {
    const state = this.#state;
    const { secondary, secondaryAge, flows } = state;
    if (this.#secondaryAgainNs <= nowNs) {
      this.#secondaryAgainNs = Number.POSITIVE_INFINITY;
      state.secondaryUnexpired = secondaryAge.head[0];
    }
    for (let item = state.secondaryUnexpired; item >= 0; item = state.secondaryUnexpired) {
      if (this.#waitingSince(secondary.timeNs[item]) + this.#maxWaitNs > nowNs) return;
      state.secondaryUnexpired = secondaryAge.next[item];
      if (this.#secondaryAgainNs === Number.POSITIVE_INFINITY)
        this.#secondaryAgainNs = nowNs + this.#maxWaitNs;
      const flow = secondary.flow[item];
      if (!this.#mayReport(flow, nowNs)) continue;
      const waitedNs = nowNs - secondary.timeNs[item];
      let detail = `a frame of the secondary has had no counterpart for ${Math.round(waitedNs / 1e6)} ms`;
      if ((flows.flags[flow] & FLOW_TCP) !== 0) {
        const from = secondary.sequence[item] >>> 0;
        const to = secondary.end[item] >>> 0;
        detail += `: sequence ${from} to ${to}, ${this.#tcp.describeWait(flow)}`;
      }
      if ((flows.flags[flow] & FLOW_FRAGMENTS) !== 0)
        detail += ": other fragments of its datagram have not come";
      const place = { primary: -1, secondary: item };
      state.report("missing_on_primary", flow, waitedNs, detail, undefined, place);
    }
  }

  #mayReport(flow: number, nowNs: number): boolean {
    const { flows } = this.#state;
    if ((flows.flags[flow] & FLOW_FROZEN) !== 0) return false;
    const reportedNs = flows.reportedNs[flow];
    if (reportedNs !== 0 && nowNs - reportedNs < this.#maxWaitNs) return false;
    flows.reportedNs[flow] = nowNs;
    return true;
  }

  #waitingSince(timeNs: number): number {
    return Math.max(timeNs, this.#resumedNs);
  }

  #deadlineOf(pool: SegmentPool, age: LinkedLists, unexpired: number, againNs: number): number {
    const firstNs =
      unexpired < 0 ? Number.POSITIVE_INFINITY : this.#waitingSince(pool.timeNs[unexpired]) + this.#maxWaitNs;
    return age.head[0] === unexpired ? firstNs : Math.min(firstNs, againNs);
  }
}
