/**
 * Who may send, who takes over, when to give up: one pure function, (state, event, time) -> (state, actions).
 *
 * Invariant: at no time do two agents let the output of the same VM onto the network, and no replica takes
 * over that does not cover what the network has seen.
 *
 * Why it holds. The holder lets output pass only while (a) the record names it and (b) its kernel lease has
 * not run out. While the record says that the replica is valid, the lease is prolonged only by heartbeats
 * that the secondary has answered, up to `lease` after the moment the heartbeat was *sent*. The secondary
 * writes itself into the record only `lease + margin` after its last *answer*, which is later than that, and
 * from then on it answers no heartbeat. To continue without those answers, the holder first writes "replica
 * invalid", from which nobody takes over. All writes are compare-and-swaps on the record's revision, so of
 * two that exclude each other one happens.
 *
 * Each transition is a function of its own, named as in docs/failover.md, which gives the reasons.
 */

import type { Decision } from "./actions.ts";
import { overdue } from "./deadlines.ts";
import type { Event } from "./events.ts";
import { controlClosed, diskError, qemuGone, qemuSilent } from "./faults.ts";
import * as holder from "./holder.ts";
import { command } from "./operator.ts";
import { arbiterAnswered, pump } from "./pump.ts";
import * as replica from "./replica.ts";
import * as restart from "./restart.ts";
import { startWithoutArbiter } from "./start.ts";
import { isHolder, type State } from "./state.ts";
import { begin, enter, type Step } from "./step.ts";

export function decide(before: State, event: Event, nowMs: number): Decision {
  const step = begin(before, nowMs);
  apply(step, event);
  pump(step);
  return { state: step.s, actions: step.actions };
}

/**
 * The replica that a heartbeat of this agent names: the one it makes, or depends on. While it is being made
 * the answers prolong nothing; they keep the other agent from waiting for a primary that has given the
 * attempt up.
 */
export function heartbeatGeneration(s: State): number | undefined {
  return s.leaseFrom === "peer" || s.phase === "protecting" ? s.generation : undefined;
}

function apply(step: Step, event: Event): void {
  const { s, now } = step;
  switch (event.type) {
    case "started":
      s.found = event.vm;
      s.unsuitable = event.unsuitable;
      if (event.generation !== undefined) s.generation = event.generation;
      if (!s.settings.arbiter) startWithoutArbiter(step);
      break;
    case "round":
      round(step);
      break;
    case "deadline":
      overdue(step);
      break;
    case "arbiter":
      arbiterAnswered(step, event);
      break;
    case "heartbeat":
      replica.heartbeatCame(step, event);
      break;
    case "heartbeat_answered":
      holder.heartbeatAnswered(step, event);
      break;
    case "peer_seen":
      s.heardMs[event.path] = now;
      if (event.path === "control") s.controlClosed = false;
      s.peerReady = event.ready;
      s.peerUplink = event.uplink;
      break;
    case "control_closed":
      controlClosed(step);
      break;
    case "restart_wanted":
      restart.restartWanted(step, event);
      break;
    case "restart_cancelled":
      restart.restartCancelled(step);
      break;
    case "peer_restarts":
      restart.peerRestarts(step, event);
      break;
    case "checkpoints_paused":
      restart.checkpointsPaused(step, event);
      break;
    case "peer_waits":
      restart.peerWaits(step, event);
      break;
    case "resume_wanted":
      restart.resumeWanted(step, event);
      break;
    case "peer_is_back":
      holder.replicaIsBack(step, event);
      break;
    case "succeed":
      replica.succeed(step, event);
      break;
    case "peer_gave_up":
      replica.primaryGaveUp(step, event);
      break;
    case "replica_lost":
      if (event.generation === s.generation) holder.goAlone(step, event.reason);
      break;
    case "abandoned":
      if (event.generation === s.generation && (s.phase === "incoming" || s.phase === "standby")) {
        replica.replicaUseless(step, event.reason);
      }
      break;
    case "alone":
      if (s.phase === "starting" || s.goingAlone === "leaving") enter(step, "alone", s.reason);
      s.goingAlone = undefined;
      break;
    case "primed":
      holder.primed(step, event.generation);
      break;
    case "resumed":
      if (s.phase === "resuming" && event.generation === s.generation) holder.becomeProtected(step);
      break;
    case "protection_failed":
      holder.protectionFailed(step, event);
      break;
    case "prepare":
      replica.replicaWanted(step, event);
      break;
    case "prepare_failed":
      if (s.phase === "incoming") replica.replicaUseless(step, event.reason);
      break;
    case "follow_failed":
      if (s.phase === "standby") replica.replicaUseless(step, event.reason);
      break;
    case "entered":
      replica.replicaEntered(step, event);
      break;
    case "promoted":
      replica.promoted(step);
      break;
    case "promotion_failed":
      // The record names this agent, so nobody else may run the VM: there is nothing safe left to do.
      holder.holderStops(step, `QEMU failed to take over: ${event.reason}`);
      break;
    case "fenced":
      replica.fenced(step, event);
      break;
    case "handed_over":
      holder.retire(step);
      break;
    case "hand_over_failed":
      if (s.phase === "handing_over") holder.goAlone(step, `the hand-over failed: ${event.reason}`);
      break;
    case "qemu_answers":
      holder.recordAlone(step);
      break;
    case "qemu_gone":
      qemuGone(step, event.reason);
      break;
    case "qemu_silent":
      qemuSilent(step, event.reason);
      break;
    case "qemu_slow":
      // The main loop hangs, the out-of-band monitor answers: on the secondary or the replication link more
      // often than not.
      if (isHolder(s)) holder.goAlone(step, event.reason);
      else if (s.phase === "standby" || s.phase === "incoming") replica.replicaUseless(step, event.reason);
      break;
    case "shutdown":
      s.shutdown = event.reason;
      break;
    case "pair_broken":
      // The end of COLO on the secondary's side alone proves nothing: the primary may be gone, and this the
      // last copy.
      if (isHolder(s) && s.shutdown === undefined) holder.goAlone(step, event.reason);
      break;
    case "disk_error":
      diskError(step, event);
      break;
    case "overlays_full":
      replica.overlaysFull(step, event.reason);
      break;
    case "uplink":
      s.ownUplink = event.up;
      holder.handOverIfWorseOff(step);
      break;
    case "fail_over_wanted":
    case "unprotect_wanted":
    case "protect_wanted":
    case "promote_wanted":
    case "boot_wanted":
      command(step, event);
      break;
  }
}

/**
 * `round`: renews what a living agent renews. A timer alone never does: it can run while the rest of the
 * agent hangs.
 */
function round(step: Step): void {
  const { s, now, actions } = step;
  if (s.leaseFrom === "self") actions.push({ type: "extend_lease", untilMs: now + s.settings.leaseMs });
  overdue(step);
}
