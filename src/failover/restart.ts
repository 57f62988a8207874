/** `restart`: an agent of the pair ends and begins again at once, and the VM's protection outlives that. */

import type { Event } from "./events.ts";
import { catchUp, peerIsBack } from "./holder.ts";
import { PHASES } from "./state.ts";
import { answer, type Step } from "./step.ts";

type Of<T extends Event["type"]> = Extract<Event, { type: T }>;

const LATER = "ask for the restart when that is over";

/** This agent is about to end. */
export function restartWanted(step: Step, { request }: Of<"restart_wanted">): void {
  const { s, now, actions } = step;
  // Nobody may take over what has no replica, so nobody waits for this lease to run out.
  if (s.phase === "alone") actions.push({ type: "extend_lease", untilMs: now + s.settings.restartMs });
  if (!s.settings.adoptable || PHASES[s.phase].settled) {
    answer(step, request);
    return;
  }
  if (s.phase !== "protected" && s.phase !== "standby") {
    answer(step, request, `this host is ${s.phase}: ${LATER}`);
    return;
  }
  if (s.restarting) {
    answer(step, request, "a restart is under way already");
    return;
  }
  s.restarting = true;
  const { generation } = s;
  if (s.phase === "standby") actions.push({ type: "ask_peer_to_wait", request, generation });
  else actions.push({ type: "pause_checkpoints", request, whose: "own", generation });
}

/** The peer's agent is about to end. */
export function peerRestarts(step: Step, { request, generation }: Of<"peer_restarts">): void {
  const { s, actions } = step;
  if ((s.phase !== "standby" && s.phase !== "protected") || generation !== s.generation)
    answer(step, request, `not protected in generation ${generation}: this host is ${s.phase}`);
  else if (s.restarting) answer(step, request, "this agent is about to be restarted itself");
  else if (s.phase === "standby") waitForPeer(step, request);
  else actions.push({ type: "pause_checkpoints", request, whose: "peer", generation });
}

export function checkpointsPaused(
  step: Step,
  { request, whose, generation }: Of<"checkpoints_paused">,
): void {
  const { s, actions } = step;
  if (s.phase !== "protected" || generation !== s.generation) {
    if (s.leaseFrom === "peer") catchUp(step);
    answer(step, request, `no longer protected in generation ${generation}: this host is ${s.phase}`);
  } else if (whose === "peer") waitForPeer(step, request);
  else actions.push({ type: "ask_peer_to_wait", request, generation });
}

function waitForPeer(step: Step, request: number): void {
  step.s.peerBackByMs = step.now + step.s.settings.restartMs;
  answer(step, request);
}

export function peerWaits(step: Step, { request, refusal, atRest }: Of<"peer_waits">): void {
  const { s } = step;
  if (refusal !== undefined) {
    answer(
      step,
      request,
      `it would lose its protection, because the peer's agent cannot wait for this one (${refusal}): ` +
        "ask for the restart when it is protected, or end the agent with SIGTERM",
    );
    return;
  }
  const inOrder = s.claim === undefined && s.goal === undefined && !s.givenUp && !s.succeeding && atRest;
  if (s.phase === "protected" || (s.phase === "standby" && inOrder)) answer(step, request);
  else answer(step, request, `the replica is ${s.phase} on this host: ${LATER}`);
}

/** It does not end after all. */
export function restartCancelled(step: Step): void {
  const { s, now, actions } = step;
  if (!s.restarting) return;
  s.restarting = false;
  // While the peer is away for the same reason, its return ends the pause.
  // A hand-over that began meanwhile waits for its last checkpoint.
  if (s.leaseFrom === "peer" && s.peerBackByMs <= now) catchUp(step);
  // A primary that does not hear of it waits no longer than it would have.
  if (s.phase === "standby")
    actions.push({ type: "tell_peer", what: "back", generation: s.generation, reason: "it did not restart" });
}

/** The primary's agent was restarted and wants to continue with the replica here. */
export function resumeWanted(step: Step, { request, generation }: Of<"resume_wanted">): void {
  const { s } = step;
  if (s.phase !== "standby" || generation !== s.generation) {
    answer(step, request, `this host does not have this replica: it is ${s.phase}`);
    return;
  }
  peerIsBack(step, generation);
  // What the replica has sent since then is held on this host, and nowhere else.
  answer(
    step,
    request,
    s.succeeding ? "it is being handed over, and this host has done its part" : undefined,
  );
}
