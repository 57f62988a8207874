import type { Comparer } from "../../src/compare/comparer.ts";
import type { EarlyRecords } from "../../src/compare/early_records.ts";
import type { LinkedLists } from "../../src/compare/linked_lists.ts";
import type { OverflowList } from "../../src/compare/overflow_list.ts";
import { ID_STEP } from "../../src/compare/rows.ts";
import type { SegmentPool } from "../../src/compare/segment_pool.ts";
import type { CompareState } from "../../src/compare/state.ts";

interface Inside {
  state: CompareState;
  overflow: OverflowList;
  early: EarlyRecords;
}

/** Looks through all of a comparer's tables and lists; throws where they contradict each other. */
export function audit(comparer: Comparer): void {
  const { state, overflow, early } = comparer as unknown as Inside;
  const { flows, primary, secondary, stats } = state;
  equal("heldFrames", stats.heldFrames, primary.used + overflow.length);
  equal("pendingFrames", stats.pendingFrames, secondary.used + early.length);
  equal("primaryAge", lengthOf(state.primaryAge, 0, primary.capacity), primary.used);
  equal("secondaryAge", lengthOf(state.secondaryAge, 0, secondary.capacity), secondary.used);
  mark("primaryPatient", state.primaryAge, state.primaryPatient);
  mark("primaryUnexpired", state.primaryAge, state.primaryUnexpired);
  mark("secondaryUnexpired", state.secondaryAge, state.secondaryUnexpired);
  let live = 0;
  let held = 0;
  let pending = 0;
  let overflowed = 0;
  for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
    const ofPrimary = lengthOfFlow(state.queue, flow, primary);
    const sorted = lengthOfFlow(state.primarySorted, flow, primary);
    const ofSecondary =
      lengthOfFlow(state.secondaryQueue, flow, secondary) +
      lengthOfFlow(state.secondarySorted, flow, secondary) +
      lengthOfFlow(state.secondaryResets, flow, secondary);
    if (!flows.isLive(flow)) {
      equal(`frames of the forgotten flow ${flow}`, ofPrimary + sorted + ofSecondary, 0);
      continue;
    }
    live++;
    equal(`held of flow ${flow}`, ofPrimary, flows.held[flow]);
    equal(`pending of flow ${flow}`, ofSecondary, flows.pending[flow]);
    if (sorted > ofPrimary) throw new Error(`flow ${flow} has ${sorted} sorted of ${ofPrimary} segments`);
    held += ofPrimary;
    pending += ofSecondary;
    overflowed += flows.overflowed[flow];
  }
  equal("flows", live, flows.size);
  equal("held of all flows", held, primary.used);
  equal("pending of all flows", pending, secondary.used);
  equal("overflowed of all flows", overflowed + overflow.withoutFlow, overflow.length);
  const { heldFramesMax, pendingFramesMax, flowsMax } = state.limits;
  if (primary.used > heldFramesMax || secondary.used > pendingFramesMax || flows.size > flowsMax) {
    throw new Error("a limit was passed");
  }
}

function equal(name: string, is: number, should: number): void {
  if (is !== should) throw new Error(`${name}: ${is}, but ${should} elsewhere`);
}

function mark(name: string, list: LinkedLists, item: number): void {
  for (let other = list.head[0]; other >= 0; other = list.next[other]) if (other === item) return;
  if (item >= 0) throw new Error(`${name} is ${item}, which does not wait`);
}

function lengthOf(list: LinkedLists, which: number, max: number): number {
  let length = 0;
  let before = -1;
  for (let item = list.head[which]; item >= 0; item = list.next[item]) {
    if (list.prev[item] !== before) throw new Error(`list ${which} is torn at ${item}`);
    if (++length > max) throw new Error(`list ${which} goes round in circles`);
    before = item;
  }
  if (list.tail[which] !== before) throw new Error(`list ${which} ends at another item than it says`);
  return length;
}

function lengthOfFlow(list: LinkedLists, flow: number, pool: SegmentPool): number {
  for (let item = list.head[flow]; item >= 0; item = list.next[item]) {
    if (pool.flow[item] !== flow)
      throw new Error(`item ${item} of flow ${flow} belongs to ${pool.flow[item]}`);
  }
  return lengthOf(list, flow, pool.capacity);
}
