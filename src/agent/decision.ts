/**
 * Who may send: pure decisions, no clocks and no network.
 *
 * Invariant: at no time do two agents let the output of the same VM onto the network.
 *
 * Why it holds. The holder lets output pass only while (a) the record names it and (b) its kernel lease has not run
 * out. While the record says that the replica is valid, the lease is extended only by heartbeats that the secondary
 * has answered, up to `lease` after the moment the heartbeat was *sent*. The secondary changes the record only
 * `lease + margin` after its last *answer*, which is later than that; and from then on it answers no heartbeat. To go
 * on without those answers, the holder first changes the record to "replica invalid", from which nobody takes over.
 * Both changes are compare-and-swaps on the same revision, so only one of them happens.
 */
import type { VmRecord, VmRecordUpdate } from "../arbiter/record.ts";

export interface TakeoverFacts {
  record: VmRecord | undefined;
  self: string;
  nowMs: number;
  /** When this agent last answered the holder's heartbeat; undefined if never. */
  lastAnswerMs: number | undefined;
  leaseMs: number;
  marginMs: number;
  /** The holder has said that its VM is gone and that it lets nothing pass any more. */
  givenUp: boolean;
}

export type TakeoverDecision =
  | { action: "take"; expectedRevision: number; record: VmRecordUpdate }
  | { action: "wait"; ms: number }
  | { action: "refuse"; reason: string };

/** May a secondary take the VM over now? */
export function decideTakeover(facts: TakeoverFacts): TakeoverDecision {
  const { record, self } = facts;
  if (record === undefined) return { action: "refuse", reason: "there is no record of this VM" };
  if (record.holder === self) return { action: "refuse", reason: "this host holds the VM already" };
  if (!record.replicaValid) {
    return {
      action: "refuse",
      reason: `the record says that ${record.holder} goes on alone; this replica is out of date`,
    };
  }
  if (!facts.givenUp) {
    // Never answered: the lease cannot have been extended by us, but the holder may still live on its first one.
    const since = facts.lastAnswerMs ?? facts.nowMs;
    const left = since + facts.leaseMs + facts.marginMs - facts.nowMs;
    if (left > 0) return { action: "wait", ms: left };
  }
  return {
    action: "take",
    expectedRevision: record.revision,
    record: { term: record.term + 1, generation: record.generation, holder: self, replicaValid: false },
  };
}

export type HolderDecision =
  | { action: "write"; expectedRevision: number; record: VmRecordUpdate }
  | { action: "keep" }
  | { action: "stop"; reason: string };

/** What the holder writes to be alone (`replicaValid` false) or to allow a takeover (true). */
export function decideReplicaValid(
  record: VmRecord | undefined,
  self: string,
  replicaValid: boolean,
): HolderDecision {
  if (record === undefined) {
    return {
      action: "write",
      expectedRevision: 0,
      record: { term: 1, generation: 0, holder: self, replicaValid },
    };
  }
  if (record.holder !== self) {
    return { action: "stop", reason: `${record.holder} has taken the VM over (term ${record.term})` };
  }
  // "Replica invalid" is written even if it stands there already: an earlier write of "valid" whose answer never came
  // may still be on its way, and only a new revision makes it fail.
  if (record.replicaValid && replicaValid) return { action: "keep" };
  return {
    action: "write",
    expectedRevision: record.revision,
    record: { term: record.term, generation: record.generation, holder: self, replicaValid },
  };
}

/** The role an agent starts with. `configured` counts only while there is no record. */
export function decideInitialRole(
  record: VmRecord | undefined,
  self: string,
  configured: "primary" | "secondary",
): "primary" | "secondary" {
  if (record === undefined) return configured;
  return record.holder === self ? "primary" : "secondary";
}

/** Until when (same clock as `sentMs`) a heartbeat sent at `sentMs` and answered lets the holder send. */
export function leaseDeadlineMs(sentMs: number, leaseMs: number): number {
  return sentMs + leaseMs;
}
