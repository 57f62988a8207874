/** The half of docs/failover.md that is about the holder: who may send, and when the replica is given up. */
import type { Event } from "./events.ts";
import { isHolder, type State } from "./state.ts";
import { answer, enter, retryProtectionLater, type Step, stop, want } from "./step.ts";

/** `run alone`: the record says that there is no replica, so the agent itself keeps the lease up. */
export function runAlone(step: Step): void {
  const { s, now, actions } = step;
  s.leaseFrom = "self";
  actions.push({ type: "extend_lease", untilMs: now + s.settings.leaseMs }, { type: "run_alone" });
}

/** `protect`: a new generation, so that nothing of an earlier attempt can be taken for this one. */
export function protect(step: Step): void {
  const { s, actions } = step;
  s.generation++;
  s.protecting = "copying";
  enter(step, "protecting");
  actions.push({ type: "protect", generation: s.generation });
}

/**
 * `primed`: the replica is complete. The lease depends on the secondary *before* the record lets that one
 * take over.
 */
export function primed(step: Step, generation: number): void {
  const { s, now } = step;
  if (s.phase !== "protecting" || generation !== s.generation) return;
  if (s.protecting === "undoing") {
    // It was complete when it was told to end: nothing undoes itself any more, and frames are held.
    leaveUnrecorded(step, "protection was ended after the replica was complete");
    return;
  }
  if (s.protecting !== "copying") return;
  s.protecting = "answer";
  s.leaseFrom = "peer";
  s.lastAnswerMs = now;
}

export function heartbeatAnswered(step: Step, event: Extract<Event, { type: "heartbeat_answered" }>): void {
  const { s, now, actions } = step;
  if (s.leaseFrom !== "peer" || event.generation !== s.generation) return;
  // A newer answer has overtaken it; or it was asked before the replica was complete, and then the lease that
  // this agent gave itself may last longer than the secondary would wait after that answer.
  if (event.sentMs < s.lastAnswerMs) return;
  if (!event.accepted) {
    if (now < s.peerBackByMs) return; // it has only begun
    goAlone(step, "the secondary's agent reports that it is not this VM's replica");
    return;
  }
  s.lastAnswerMs = event.sentMs;
  // From the time of sending: the secondary counts from its answer, which is later.
  actions.push({ type: "extend_lease", untilMs: event.sentMs + s.settings.leaseMs });
  if (s.protecting !== "answer" || s.goal !== undefined) return;
  if (s.phase === "resuming") want(step, "still_valid");
  else if (s.settings.arbiter) want(step, "valid");
  else becomeProtected(step);
}

export function becomeProtected(step: Step): void {
  step.s.protecting = undefined;
  enter(step, "protected");
  step.actions.push({ type: "begin_checkpoints" });
}

export function protectionFailed(step: Step, event: Extract<Event, { type: "protection_failed" }>): void {
  const { s, actions } = step;
  if (s.phase !== "protecting" || event.generation !== s.generation) return;
  if (event.entered) {
    leaveUnrecorded(step, event.reason);
    return;
  }
  s.protecting = undefined;
  actions.push({ type: "tell_peer", what: "abandon", generation: s.generation, reason: event.reason });
  retryProtectionLater(step);
  enter(step, "alone", event.reason);
}

/**
 * The record has not called this replica valid, so nothing needs to be written before the held frames may
 * leave.
 */
function leaveUnrecorded(step: Step, reason: string): void {
  step.s.protecting = undefined;
  enter(step, "going_alone", reason);
  leaveReplica(step);
}

/** The peer's agent is back after its restart. The time without answers counts from now. */
export function peerIsBack(step: Step, generation: number): void {
  const { s, now } = step;
  if (generation !== s.generation) return;
  s.peerBackByMs = Number.NEGATIVE_INFINITY;
  if (s.leaseFrom !== "peer") return;
  s.lastAnswerMs = now;
  s.heardMs.control = now;
  s.controlClosed = false;
  catchUp(step);
}

/**
 * One of the two agents was away for a time: a checkpoint makes both VMs equal again, and further ones
 * follow.
 */
export function catchUp({ actions }: Step): void {
  actions.push({ type: "catch_up" });
}

/**
 * `go alone`: the replica is lost. First: is this host's QEMU alive? If not, the replica is the last copy and
 * must not be invalidated.
 */
export function goAlone(step: Step, reason: string): void {
  const { s, actions } = step;
  if (!isHolder(s) || s.phase === "alone" || s.phase === "going_alone") return;
  if (s.phase === "protecting" && s.protecting !== "answer") {
    // Nothing depends on the replica yet; the procedure undoes itself and reports that.
    if (s.protecting === "copying") actions.push({ type: "end_protection", reason });
    s.protecting = "undoing";
    return;
  }
  // No answer prolongs the lease any more: it runs out unless the record lets this agent renew it.
  s.leaseFrom = "none";
  s.protecting = undefined;
  s.peerBackByMs = Number.NEGATIVE_INFINITY;
  s.restarting = false;
  s.retiredMs = undefined;
  s.goal = undefined;
  s.call = undefined;
  s.goingAlone = "probing";
  enter(step, "going_alone", reason);
  actions.push({ type: "end_protection", reason }, { type: "probe_qemu" });
}

/** `record alone`: "replica invalid" before a single unverified frame leaves. */
export function recordAlone(step: Step): void {
  const { s } = step;
  if (s.phase !== "going_alone" || s.goingAlone !== "probing") return;
  s.goingAlone = "recording";
  if (s.settings.arbiter) want(step, "invalid");
  else leaveReplica(step);
}

export function leaveReplica(step: Step): void {
  const { s, actions } = step;
  s.goingAlone = "leaving";
  actions.push({ type: "tell_peer", what: "abandon", generation: s.generation, reason: s.reason ?? "" });
  retryProtectionLater(step);
  runAlone(step);
}

/** `give up`: nothing leaves this host any more, so the secondary does not wait for the lease. */
export function holderGivesUp(step: Step, reason: string): void {
  const { s, actions } = step;
  const replicaMayBeValid = s.settings.arbiter && couldBeValid(s);
  const { generation } = s;
  holderStops(step, reason);
  if (replicaMayBeValid) actions.push({ type: "tell_peer", what: "give_up", generation, reason });
}

export function holderStops(step: Step, reason: string): void {
  stop(step, reason);
  step.actions.push({ type: "end_protection", reason });
}

/** Until "replica invalid" is confirmed, the replica may still take over. */
export function couldBeValid(s: State): boolean {
  return s.leaseFrom === "peer" || s.goingAlone === "probing" || s.goingAlone === "recording";
}

/** The clients' network is gone here and not there. */
export function isWorseOff(s: State): boolean {
  return s.phase === "protected" && s.settings.arbiter && !s.ownUplink && s.peerUplink;
}

export function handOverIfWorseOff(step: Step): void {
  if (isWorseOff(step.s)) handOver(step, "this host has lost the clients' network; the peer has not");
}

/**
 * `hand over`: both VMs at the same point, everything verified released, then `give up`; the secondary does
 * the rest.
 */
export function handOver(step: Step, reason: string): void {
  if (!step.s.settings.arbiter) return;
  enter(step, "handing_over", reason);
  step.s.retiredMs = undefined;
  step.actions.push({ type: "hand_over", generation: step.s.generation });
}

/**
 * `retire`: nothing leaves this host any more, the secondary may take over. This VM is kept until that is
 * certain. A peer that is lost now has not written itself into the record; then this host goes alone, as with
 * any lost replica.
 */
export function retire(step: Step): void {
  const { s, now, actions } = step;
  if (s.phase !== "handing_over") return;
  const reason = s.reason ?? "handed over";
  s.leaseFrom = "none";
  s.retiredMs = now;
  actions.push(
    { type: "retire" },
    { type: "end_protection", reason },
    { type: "tell_peer", what: "give_up", generation: s.generation, reason },
  );
}

/** The secondary's agent says that it is back. */
export function replicaIsBack(
  step: Step,
  { request, generation }: Extract<Event, { type: "peer_is_back" }>,
): void {
  const { s } = step;
  if (!isHolder(s) || generation !== s.generation) {
    answer(step, request, `it no longer needs this replica: this host is ${s.phase}`);
    return;
  }
  peerIsBack(step, generation);
  answer(step, request);
}
