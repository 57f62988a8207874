/**
 * The flow that a frame belongs to, made when its first frame is seen. The user's rules are applied to it
 * there and then: a frame of a known flow costs one look-up.
 */

import { KIND_TCP } from "./flow_key.ts";
import { FLOW_FRAGMENTS, FLOW_IGNORED_SET_KNOWN, FLOW_PASSTHROUGH, FLOW_TCP } from "./flow_table.ts";
import { isWaitingRoom } from "./fragments.ts";
import type { OverflowList } from "./overflow_list.ts";
import type { ParsedFrame } from "./parsed_frame.ts";
import type { CompareState } from "./state.ts";

/**
 * When the table is full: ids looked at for flows to forget. A flow without traffic for maxWaitNs may go: if
 * it is seen again it starts in mid-stream, which is safe.
 */
const EVICT_LOOKS = 4096;

export class FlowFinder {
  readonly #state: CompareState;
  readonly #overflow: OverflowList;
  readonly #maxWaitNs: number;

  constructor(state: CompareState, overflow: OverflowList, maxWaitNs: number) {
    this.#state = state;
    this.#overflow = overflow;
    this.#maxWaitNs = maxWaitNs;
  }

  /** The flow of a frame, made if need be; -1 if there is no room. */
  flowOf(frame: ParsedFrame): number {
    const state = this.#state;
    const { flows, rules, stats } = state;
    const known = flows.find(frame.key);
    if (known >= 0) return known;
    // A frame in the overflow list may be of this very flow, and comes first: no new flows before it has
    // left.
    if (this.#overflow.withoutFlow > 0) return -1;
    const flags = frame.kind === KIND_TCP ? FLOW_TCP : 0;
    let flow = flows.add(frame.key, flags, state.nowNs);
    if (flow < 0) {
      stats.flowsCollected += flows.collect(EVICT_LOOKS, state.nowNs, this.#maxWaitNs, this.#maxWaitNs);
      flow = flows.add(frame.key, flags, state.nowNs);
    }
    stats.flows = flows.size;
    if (flow < 0) return flow;
    if (isWaitingRoom(frame.key)) flows.flags[flow] |= FLOW_FRAGMENTS;
    if (rules !== undefined) this.#applyRules(flow, frame.key);
    return flow;
  }

  /** Whether the rules take a frame of this flow (-1: none) out of the comparison. */
  passes(flow: number, frame: ParsedFrame): boolean {
    const { flows, rules } = this.#state;
    if (flow >= 0) return (flows.flags[flow] & FLOW_PASSTHROUGH) !== 0;
    return rules?.passes(frame.key) === true;
  }

  #applyRules(flow: number, key: Int32Array): void {
    const { flows, rules } = this.#state;
    if (rules?.passes(key)) flows.flags[flow] |= FLOW_PASSTHROUGH;
    if (!rules?.hasIgnore) return;
    flows.ignoredSet[flow] = rules.ignoredSet(key);
    if (flows.ignoredSet[flow] > 0) flows.flags[flow] |= FLOW_IGNORED_SET_KNOWN;
  }
}
