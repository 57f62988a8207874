/**
 * The comparer's tables and lists, looked through for contradictions. For tests: it allocates, and takes time
 * for each frame and flow.
 */
import type { EarlyRecords } from "./early_records.ts";
import { KEY_WORDS } from "./flow_key.ts";
import type { LinkedLists } from "./linked_lists.ts";
import type { OverflowList } from "./overflow_list.ts";
import { ID_STEP } from "./rows.ts";
import type { SegmentPool } from "./segment_pool.ts";
import type { CompareState } from "./state.ts";

/** Throws an Error that names the first contradiction. */
export function audit(state: CompareState, overflow: OverflowList, early: EarlyRecords): void {
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

/** What the tables say: the numbers of the state, and the columns of each flow that lives. */
export interface Tables {
  numbers: Record<string, number>;
  flows: Record<string, number>[];
}

export function tablesOf(state: CompareState): Tables {
  const { flows } = state;
  const numbers = Object.entries(state).filter(([, value]) => typeof value === "number");
  const columns = Object.entries(flows).filter(
    (entry): entry is [string, Int32Array | Float64Array] =>
      entry[1] instanceof Int32Array || entry[1] instanceof Float64Array,
  );
  const rows: Record<string, number>[] = [];
  for (let flow = 0; flow < flows.highest; flow += ID_STEP) {
    if (!flows.isLive(flow)) continue;
    const row = Object.fromEntries(columns.map(([name, column]) => [name, column[flow]]));
    for (let word = 0; word < KEY_WORDS; word++) row[`key ${word}`] = flows.keyWord(flow, word);
    rows.push(row);
  }
  return { numbers: Object.fromEntries(numbers), flows: rows };
}
