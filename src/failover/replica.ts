/**
 * The half of docs/failover.md that is about the replica: when it offers itself, when it takes over, when it
 * is useless.
 */
import type { Event } from "./events.ts";
import type { State } from "./state.ts";
import { answer, enter, retryProtectionLater, type Step, stop, want } from "./step.ts";

type Of<T extends Event["type"]> = Extract<Event, { type: T }>;

/** By then the network has learnt from the VM's own frames where it is after a hand-over. */
const SUCCESSION_MS = 1_000;

export function replicaWanted(step: Step, { request, generation }: Of<"prepare">): void {
  const { s, now } = step;
  if (s.phase !== "waiting" || s.unsuitable !== undefined) {
    answer(step, request, `this host has no replica to offer: ${s.unsuitable ?? `it is ${s.phase}`}`);
    return;
  }
  s.generation = generation;
  s.lastAnswerMs = now;
  s.goal = undefined;
  s.call = undefined;
  enter(step, "incoming");
  answer(step, request);
}

export function replicaEntered(step: Step, { request, generation }: Of<"entered">): void {
  const { s, now } = step;
  if (s.phase !== "incoming" || generation !== s.generation) {
    answer(step, request, `this host does not expect this primary: it is ${s.phase}`);
    return;
  }
  s.lastAnswerMs = now;
  s.givenUp = false;
  s.claim = undefined;
  enter(step, "standby");
  answer(step, request);
}

/** The primary is about to hand the VM over. */
export function succeed(step: Step, { request, generation }: Of<"succeed">): void {
  const { s } = step;
  if (s.phase !== "standby" || generation !== s.generation) {
    answer(step, request, `this host does not have this replica: it is ${s.phase}`);
    return;
  }
  s.succeeding = true;
  answer(step, request);
}

/**
 * `heartbeat`: an answer lets the holder send for another lease, so none is given once this agent may be the
 * holder.
 */
export function heartbeatCame(step: Step, event: Of<"heartbeat">): void {
  const { s, now } = step;
  const own = event.generation === s.generation;
  if (s.phase === "incoming" && own) s.lastAnswerMs = now;
  const accepted = s.phase === "standby" && own && !s.givenUp && !s.committed;
  if (accepted) {
    s.lastAnswerMs = now;
    // The primary is back before anything was written.
    if (s.claim !== undefined) s.reason = undefined;
    s.claim = undefined;
    s.goal = undefined;
    s.call = undefined;
  }
  answer(step, event.request, accepted ? undefined : `this host is ${s.phase} of generation ${s.generation}`);
}

export function primaryGaveUp(step: Step, event: Of<"peer_gave_up">): void {
  const { s } = step;
  if (s.phase !== "standby" || event.generation !== s.generation) return;
  s.givenUp = true;
  if (s.claim === undefined) claim(step, `the primary gave up: ${event.reason}`);
  else claimIfDue(step);
}

/** `claim`: the primary seems lost. Until the record is being written, a heartbeat ends the claim. */
export function claim(step: Step, reason: string): void {
  const { s, now } = step;
  s.claim = { reason, sinceMs: now, fence: "none" };
  if (!s.settings.arbiter)
    s.reason =
      `${reason}; without an arbiter a dead primary cannot be told from a cut link; use ` +
      "colo-agent promote if the other host is off";
  claimIfDue(step);
}

/** When the holder's lease has run out for sure. */
export function takeoverAtMs(s: State): number {
  return s.lastAnswerMs + s.settings.leaseMs + s.settings.marginMs;
}

export function claimIfDue(step: Step): void {
  const { s, now } = step;
  if (s.claim === undefined || s.goal !== undefined || !s.settings.arbiter) return;
  if (!s.givenUp && now < takeoverAtMs(s)) return;
  want(step, "take");
}

/** The record names this agent, which does not run the VM yet. */
export function isFencing(s: State): boolean {
  return s.phase === "taking_over" && s.goal === undefined && s.leaseFrom === "none";
}

/**
 * `fence`: only after the record names this agent. Before that, the fence command could turn off a primary
 * that rightly continues alone, with the only copy. A primary that gave up has blocked itself.
 */
export function fenceFirst(step: Step, reason: string): void {
  const { s, now, actions } = step;
  s.committed = true;
  s.claim ??= { reason, sinceMs: now, fence: "none" };
  if (s.phase !== "taking_over") enter(step, "taking_over", reason);
  if (s.settings.fence === "none" || s.givenUp) {
    becomeHolder(step, reason);
    return;
  }
  s.claim.fence = "running";
  actions.push({ type: "fence", term: s.record?.term ?? 0 });
}

export function fenced(step: Step, event: Of<"fenced">): void {
  const { s, now } = step;
  if (!isFencing(s) || s.claim?.fence !== "running") return;
  if (!event.ok && s.settings.fence === "required") {
    s.claim.fence = "none";
    s.retryAtMs = now + s.settings.arbiterRetryMs;
    s.reason = `the fence command failed: ${event.output}`;
    return;
  }
  s.claim.fence = "done";
  becomeHolder(step, s.claim.reason);
}

export function promoted(step: Step): void {
  const { s, now } = step;
  if (s.phase !== "taking_over") return;
  s.claim = undefined;
  s.committed = false;
  s.givenUp = false;
  if (s.succeeding) s.succeededAtMs = now + SUCCESSION_MS;
  s.succeeding = false;
  retryProtectionLater(step);
  enter(step, "alone", s.reason);
}

export function promoteByHand(step: Step): void {
  const { s } = step;
  if (s.settings.arbiter || s.phase !== "standby") return;
  becomeHolder(step, "promoted by the administrator");
}

export function becomeHolder(step: Step, reason: string): void {
  const { s, now, actions } = step;
  s.leaseFrom = "self";
  s.committed = true;
  s.peerBackByMs = Number.NEGATIVE_INFINITY;
  s.restarting = false;
  enter(step, "taking_over", reason);
  actions.push({ type: "extend_lease", untilMs: now + s.settings.leaseMs }, { type: "promote", reason });
}

/** The network has learnt where the VM is now. */
export function endSuccession({ s, actions }: Step): void {
  s.succeededAtMs = undefined;
  actions.push({ type: "end_succession" });
}

/** `useless`: this replica can never take over; the primary should know at once. */
export function replicaUseless(step: Step, reason: string): void {
  const { s, actions } = step;
  const told = s.phase === "standby" || s.phase === "incoming";
  stop(step, reason);
  if (told) actions.push({ type: "tell_peer", what: "replica_lost", generation: s.generation, reason });
}

/** `useless`, unless this replica may be the last copy: a takeover empties the overlays into the disks. */
export function overlaysFull(step: Step, reason: string): void {
  const { s } = step;
  if (s.phase === "standby" && s.claim === undefined && !s.givenUp) replicaUseless(step, reason);
}
