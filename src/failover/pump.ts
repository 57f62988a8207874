/**
 * Carries goals to the arbiter. Transitions only set a goal; each decision ends with one pump, which reads
 * the record, writes to it, or continues from what the record says. One question is under way at a time.
 */

import type { Event } from "./events.ts";
import { judge, type Verdict } from "./goal.ts";
import { becomeProtected, goAlone, holderStops, leaveReplica, runAlone } from "./holder.ts";
import { fenceFirst, replicaUseless } from "./replica.ts";
import { startFrom, vmLost } from "./start.ts";
import { awaitsTakeover, isHolder, type State } from "./state.ts";
import { enter, type Step } from "./step.ts";

/** There is something that only the arbiter can tell or write down. */
export function asksArbiter(s: State): boolean {
  if (!s.settings.arbiter || s.leaseFrom === "self") return false;
  return s.goal !== undefined || (s.phase === "starting" && s.found !== undefined) || awaitsTakeover(s);
}

export function pump(step: Step): void {
  const { s, now, actions } = step;
  while (asksArbiter(s) && s.call === undefined && now >= s.retryAtMs) {
    if (!step.informed) {
      s.call = s.nextCall++;
      actions.push({ type: "read_record", call: s.call });
      return;
    }
    if (s.goal !== undefined) carryOn(step, judge(s.goal, s));
    else if (s.phase === "starting") startFrom(step, s.record);
    else awaitTakeover(step);
  }
}

/**
 * This host's VM is gone and the peer's replica is to take it over: until then the record is looked at again
 * and again.
 */
function awaitTakeover(step: Step): void {
  const { s, now } = step;
  if (s.record === undefined) {
    recordMissing(step);
  } else if (!s.record.replicaValid) {
    enter(step, "stopped", vmLost(`${s.settings.peer}'s replica, which was to take it over, is gone too`));
  } else {
    s.retryAtMs = now + s.settings.arbiterRetryMs;
    step.informed = false;
  }
}

/** An answer to an older question is of no interest. */
export function arbiterAnswered(step: Step, { call, result }: Extract<Event, { type: "arbiter" }>): void {
  const { s, now } = step;
  if (call !== s.call) return;
  s.call = undefined;
  if (result.kind === "unreachable") {
    // A write may have happened or not; the next read tells.
    s.retryAtMs = now + s.settings.arbiterRetryMs;
    return;
  }
  s.record = result.record;
  // The peer has taken this host's VM over, as it was to.
  if (s.phase === "waiting" && result.record?.holder === s.settings.peer)
    s.reason = `${s.settings.peer} runs the VM`;
  step.informed = true;
  if (result.kind === "swapped") stands(step);
}

function carryOn(step: Step, verdict: Verdict): void {
  const { s, actions } = step;
  switch (verdict.kind) {
    case "write":
      if (s.goal === "take" && !s.committed) {
        s.committed = true;
        enter(step, "taking_over", s.claim?.reason);
      }
      s.call = s.nextCall++;
      actions.push({
        type: "swap_record",
        call: s.call,
        expectedRevision: s.record?.revision ?? 0,
        record: verdict.update,
      });
      break;
    case "stands":
      stands(step);
      break;
    case "moot":
      s.goal = undefined;
      if (s.phase === "waiting") s.reason = `${s.record?.holder} runs the VM`;
      break;
    case "refused":
      replicaUseless(step, verdict.reason);
      break;
    case "given_up":
      goAlone(step, "this host's agent had given its replica up before it was restarted");
      break;
    case "lost":
      s.goal = undefined;
      if (isHolder(s))
        holderStops(step, `${verdict.record.holder} has taken the VM over (term ${verdict.record.term})`);
      break;
    case "missing":
      recordMissing(step);
      break;
  }
}

/** The goal stands in the record. */
function stands(step: Step): void {
  const { s } = step;
  const { goal } = s;
  s.goal = undefined;
  if (goal !== "renounce") s.term = s.record?.term;
  switch (goal) {
    case "first":
      runAlone(step);
      break;
    case "invalid":
      if (s.phase === "starting" && s.found === "replica")
        fenceFirst(step, "this host's agent had taken the VM over before it was restarted");
      else if (s.phase === "starting") runAlone(step);
      else if (s.goingAlone === "recording") leaveReplica(step);
      break;
    case "valid":
      if (s.phase === "protecting") becomeProtected(step);
      break;
    case "still_valid":
      s.protecting = undefined;
      step.actions.push({ type: "resume", generation: s.generation });
      break;
    case "take":
      fenceFirst(step, s.claim?.reason ?? "");
      break;
    case "boot":
      s.bootsNext = true;
      enter(step, "stopped", "the administrator has it booted from this host's disks");
      break;
    default: // renounced: `startFrom` is next
  }
}

function recordMissing(step: Step): void {
  const { s } = step;
  const reason =
    "the arbiter has lost this VM's record; stop both agents, decide which host's VM is to continue, " +
    "and start that one first";
  s.needsAdministrator = true;
  if (s.phase === "standby" || s.phase === "taking_over") replicaUseless(step, reason);
  else holderStops(step, reason);
}
