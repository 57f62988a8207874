/**
 * What happens when nothing happens. One table says both when (the agent's timer) and what (`overdue`): an
 * entry is due from its moment on, and each `then` removes or moves its own entry.
 */
import { goAlone, handOverIfWorseOff, isWorseOff, peerIsBack, protect } from "./holder.ts";
import { asksArbiter } from "./pump.ts";
import {
  claim,
  claimIfDue,
  endSuccession,
  fenceFirst,
  isFencing,
  replicaUseless,
  takeoverAtMs,
} from "./replica.ts";
import type { State } from "./state.ts";
import type { Step } from "./step.ts";
import { peerVerdict } from "./verdict.ts";

interface Deadline {
  /** CLOCK_BOOTTIME in ms; finite. */
  atMs: number;
  then(step: Step): void;
}

/** The deadlines of a state, in the order in which they are looked at. */
function due(s: State): Deadline[] {
  const { timeoutMs } = s.settings;
  const all: Deadline[] = [];
  const at = (atMs: number, then: Deadline["then"]) => {
    if (atMs !== Number.POSITIVE_INFINITY) all.push({ atMs, then });
  };
  // The pump at the end of the step asks.
  if (asksArbiter(s) && s.call === undefined) at(s.retryAtMs, () => undefined);
  if (s.leaseFrom === "peer") {
    // Answers on the clients' network keep the lease up, but no replica: that needs the replication link.
    const silentAtMs = Math.min(s.lastAnswerMs, s.heardMs.control) + timeoutMs;
    at(Math.max(silentAtMs, s.peerBackByMs), peerLost);
    // It answers, so it has not ended after all.
    if (Number.isFinite(s.peerBackByMs)) at(s.peerBackByMs, (step) => peerIsBack(step, step.s.generation));
  } else if (s.phase === "protecting" && s.protecting === "copying") {
    at(s.heardMs.control + timeoutMs, peerLost);
  }
  if (s.phase === "handing_over" && s.retiredMs !== undefined)
    at(s.retiredMs + timeoutMs, (step) => goAlone(step, "the peer did not take the VM in time"));
  if (s.phase === "incoming")
    at(s.lastAnswerMs + timeoutMs, (step) => replicaUseless(step, "the primary has given up this replica"));
  if (s.phase === "standby" && s.claim === undefined)
    at(Math.max(s.lastAnswerMs + timeoutMs, s.peerBackByMs), (step) =>
      claim(step, peerVerdict(step.s, step.now)),
    );
  if (s.phase === "standby" && s.claim !== undefined && s.goal === undefined && s.settings.arbiter)
    at(s.givenUp ? s.claim.sinceMs : takeoverAtMs(s), claimIfDue);
  if (isFencing(s) && s.claim?.fence === "none")
    at(s.retryAtMs, (step) => fenceFirst(step, step.s.claim?.reason ?? ""));
  // A QEMU that cannot be protected lets its VM run alone for good.
  if (s.phase === "alone" && s.peerReady && s.unsuitable === undefined)
    at(Math.max(s.protectAtMs, s.unprotectedUntilMs), protect);
  if (s.succeededAtMs !== undefined) at(s.succeededAtMs, endSuccession);
  if (isWorseOff(s)) at(s.sinceMs, handOverIfWorseOff);
  return all;
}

/**
 * When `overdue` has something to do, so that nobody waits for the next round; CLOCK_BOOTTIME in ms, or
 * Infinity.
 */
export function nextDeadlineMs(s: State): number {
  return due(s).reduce((next, { atMs }) => Math.min(next, atMs), Number.POSITIVE_INFINITY);
}

/** `overdue`: notices what has not happened in time. */
export function overdue(step: Step): void {
  for (const { atMs, then } of due(step.s)) {
    if (step.now < atMs) continue;
    const { phase } = step.s;
    then(step);
    // The rest of the table was made for another phase.
    if (step.s.phase !== phase) return;
  }
}

function peerLost(step: Step): void {
  goAlone(step, peerVerdict(step.s, step.now));
}
