/**
 * The verdict on a goal, given the arbiter's record: the rules of the compare-and-swap, as one pure function.
 *
 * Invariants of the record are in vm_record.ts. Each write names the revision that it replaces, so a write
 * that is decided here happens only if the record is still the one that was looked at.
 */
import type { Goal, State } from "./state.ts";
import type { VmRecord, VmRecordUpdate } from "./vm_record.ts";

export type Verdict =
  /** To be written on top of the record. */
  | { kind: "write"; update: VmRecordUpdate }
  /** It stands in the record already. */
  | { kind: "stands" }
  /** Nothing is to be written any more: the record says something else, which `startFrom` acts on. */
  | { kind: "moot" }
  /** This replica must not take over. */
  | { kind: "refused"; reason: string }
  /** This host's replica is not what the record calls valid. */
  | { kind: "given_up" }
  /** The peer, or another machine of this name, has had the VM in between. */
  | { kind: "lost"; record: VmRecord }
  /** There is no record, and there must be one. */
  | { kind: "missing" };

export function judge(goal: Goal, s: State): Verdict {
  const { record } = s;
  const { self } = s.settings;
  switch (goal) {
    case "first":
      if (record !== undefined) return { kind: "moot" };
      return write({ term: 1, generation: s.generation, holder: self, replicaValid: false });
    case "renounce":
      if (record === undefined || record.holder === self || !record.replicaValid) return { kind: "moot" };
      return write({ ...record, replicaValid: false });
    case "invalid":
    case "valid":
    case "still_valid":
      return judgeOwn(goal, s);
    case "take":
      return judgeTakeover(s);
    case "boot":
      if (record === undefined) return { kind: "missing" };
      if (record.holder !== self) return { kind: "moot" };
      return record.replicaValid ? write({ ...record, replicaValid: false }) : { kind: "stands" };
  }
}

/** The record of a VM that this host holds. */
function judgeOwn(goal: "invalid" | "valid" | "still_valid", s: State): Verdict {
  const { record, generation } = s;
  if (record === undefined) return { kind: "missing" };
  // Of another term: the record means another machine of this name, or the peer has had the VM in between.
  if (record.holder !== s.settings.self || (s.term !== undefined && record.term !== s.term))
    return { kind: "lost", record };
  const valid = record.replicaValid && record.generation === generation;
  if (goal === "valid" && valid) return { kind: "stands" };
  if (goal === "still_valid" && !valid) return { kind: "given_up" };
  // Written again even if it stands there: an earlier agent's "invalid" may still be on its way, and must
  // fail.
  return write({ ...record, generation, replicaValid: goal !== "invalid" });
}

function judgeTakeover(s: State): Verdict {
  const { record } = s;
  const { self } = s.settings;
  if (record === undefined) return { kind: "missing" };
  // An earlier write whose answer was lost.
  if (record.holder === self && s.committed) return { kind: "stands" };
  const refusal = takeoverRefusal(s, record);
  if (refusal !== undefined) return { kind: "refused", reason: `no takeover: ${refusal}` };
  return write({ term: record.term + 1, generation: s.generation, holder: self, replicaValid: false });
}

/** `refuse`: a replica that is out of date, or of another attempt, never takes over. */
export function takeoverRefusal(s: State, record: VmRecord): string | undefined {
  if (record.holder === s.settings.self) return "the record names this host already";
  if (!record.replicaValid) return `${record.holder} continues alone, this replica is out of date`;
  if (record.generation !== s.generation)
    return `the valid replica is of generation ${record.generation}, this one is of ${s.generation}`;
  return undefined;
}

function write({ term, generation, holder, replicaValid }: VmRecordUpdate): Verdict {
  return { kind: "write", update: { term, generation, holder, replicaValid } };
}
