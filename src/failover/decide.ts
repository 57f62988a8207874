/**
 * Who may send, who takes over, when to give up: one pure function, (state, event, time) -> (state, actions).
 *
 * Invariant: at no time do two agents let the output of the same VM onto the network, and no replica takes over that does
 * not cover what the network has seen.
 *
 * Why it holds. The holder lets output pass only while (a) the record names it and (b) its kernel lease has not run out.
 * While the record says that the replica is valid, the lease is prolonged only by heartbeats that the secondary has answered,
 * up to `lease` after the moment the heartbeat was *sent*. The secondary writes itself into the record only `lease + margin`
 * after its last *answer*, which is later than that, and from then on it answers no heartbeat. To go on without those answers,
 * the holder first writes "replica invalid", from which nobody takes over. All writes are compare-and-swaps on the record's
 * revision, so of two that exclude each other one happens.
 *
 * Each transition is a function of its own, named as in docs/failover.md, which gives the reasons.
 */

import type { Action, Decision, Event, Goal, Phase, State } from "./state.ts";
import { peerVerdict } from "./verdict.ts";
import type { VmRecord, VmRecordUpdate } from "./vm_record.ts";

/** A step under way: the state is a copy that the transitions change. */
interface Step {
  s: State;
  now: number;
  actions: Action[];
}

export function decide(before: State, event: Event, nowMs: number): Decision {
  const step: Step = {
    s: { ...before, heardMs: { ...before.heardMs }, claim: before.claim && { ...before.claim } },
    now: nowMs,
    actions: [],
  };
  apply(step, event);
  return { state: step.s, actions: step.actions };
}

/** When `round` has something to do besides prolonging the lease, so that nobody waits for the next regular one; CLOCK_BOOTTIME. */
export function nextDeadlineMs(s: State): number {
  let next = Number.POSITIVE_INFINITY;
  if (asksArbiter(s) && s.call === undefined) next = s.retryAtMs;
  if (s.phase === "standby" && s.claim !== undefined && s.goal === undefined && s.settings.arbiter) {
    next = Math.min(next, s.givenUp ? 0 : takeoverAtMs(s));
  }
  if (isFencing(s) && s.claim?.fence === "none") next = Math.min(next, s.retryAtMs);
  if (s.phase === "handing_over" && s.retiredMs !== undefined) {
    next = Math.min(next, s.retiredMs + s.settings.timeoutMs);
  }
  if (s.leaseFrom === "peer") {
    const silentMs = Math.min(s.lastAnswerMs, s.heardMs.control) + s.settings.timeoutMs;
    next = Math.min(next, Math.max(silentMs, s.peerBackByMs));
  }
  return next;
}

/**
 * The replica that a heartbeat of this agent names: the one it makes, or depends on. While it is being made the answers prolong nothing;
 * they keep the other agent from waiting for a primary that has given the attempt up.
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
      start(step);
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
      heartbeatCame(step, event);
      break;
    case "heartbeat_answered":
      heartbeatAnswered(step, event);
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
    case "peer_restarts":
      if ((s.phase === "standby" || s.phase === "protected") && event.generation === s.generation)
        s.peerBackByMs = now + s.settings.restartMs;
      break;
    case "peer_is_back":
      peerIsBack(step, event.generation);
      break;
    case "peer_gave_up":
      primaryGaveUp(step, event);
      break;
    case "replica_lost":
      if (event.generation === s.generation) goAlone(step, event.reason);
      break;
    case "abandoned":
      if (event.generation === s.generation && (s.phase === "incoming" || s.phase === "standby")) {
        replicaUseless(step, event.reason);
      }
      break;
    case "alone":
      if (s.phase === "starting" || s.goingAlone === "leaving") enter(step, "alone", s.reason);
      s.goingAlone = undefined;
      break;
    case "primed":
      primed(step, event.generation);
      break;
    case "resumed":
      if (s.phase === "resuming" && event.generation === s.generation) becomeProtected(step);
      break;
    case "protection_failed":
      protectionFailed(step, event);
      break;
    case "prepare":
      replicaWanted(step, event.generation);
      break;
    case "prepare_failed":
      if (s.phase === "incoming") replicaUseless(step, event.reason);
      break;
    case "follow_failed":
      if (s.phase === "standby") replicaUseless(step, event.reason);
      break;
    case "entered":
      replicaEntered(step, event.generation);
      break;
    case "promoted":
      promoted(step);
      break;
    case "promotion_failed":
      // The record names this agent, so nobody else may run the VM: there is nothing safe left to do.
      holderStops(step, `QEMU failed to take over: ${event.reason}`);
      break;
    case "fenced":
      fenced(step, event);
      break;
    case "handed_over":
      retire(step);
      break;
    case "hand_over_failed":
      if (s.phase === "handing_over") goAlone(step, `the hand-over failed: ${event.reason}`);
      break;
    case "qemu_answers":
      recordAlone(step);
      break;
    case "qemu_gone":
      qemuGone(step, event.reason);
      break;
    case "qemu_silent":
      qemuSilent(step, event.reason);
      break;
    case "qemu_slow":
      // The main loop hangs, the out-of-band monitor answers: on the secondary or the replication link more often than not.
      if (isHolder(s)) goAlone(step, event.reason);
      else if (s.phase === "standby" || s.phase === "incoming") replicaUseless(step, event.reason);
      break;
    case "shutdown":
      s.shutdown = event.reason;
      break;
    case "pair_broken":
      // The end of COLO on the secondary's side alone proves nothing: the primary may be gone, and this the last copy.
      if (isHolder(s) && s.shutdown === undefined) goAlone(step, event.reason);
      break;
    case "disk_error":
      diskError(step, event);
      break;
    case "overlays_full":
      overlaysFull(step, event.reason);
      break;
    case "uplink":
      s.ownUplink = event.up;
      handOverIfWorseOff(step);
      break;
    case "fail_over_wanted":
      if (s.phase === "protected") handOver(step, event.reason);
      break;
    case "unprotect_wanted":
      unprotect(step, event.untilMs);
      break;
    case "protect_wanted":
      s.unprotectedUntilMs = Number.NEGATIVE_INFINITY;
      s.protectAtMs = now;
      break;
    case "promote_wanted":
      promoteByHand(step);
      break;
  }
}

// --- start ---------------------------------------------------------------------------------------------------------------

/** `start`: the record says what this agent is; without one, the configuration does. */
function start(step: Step): void {
  const { s } = step;
  if (s.settings.arbiter) {
    askArbiter(step);
    return;
  }
  if (hasVm(s) && s.settings.configuredRole === "primary") {
    runAlone(step);
    return;
  }
  dropReplica(step);
  startAsOther(step, "there is no arbiter, so only the configured primary runs the VM");
}

function startFrom(step: Step, record: VmRecord | undefined): void {
  const { s } = step;
  const follows = s.found === "following" && s.unsuitable === undefined;
  if (follows && record !== undefined && takeoverRefusal(s, record) === undefined) {
    followAgain(step);
    return;
  }
  dropReplica(step);
  if (record === undefined) {
    if (hasVm(s) && s.settings.configuredRole === "primary") {
      pursue(step, "first");
      return;
    }
    startAsOther(step, "nobody has held this VM yet");
    return;
  }
  s.generation = record.generation;
  if (record.holder === s.settings.self) {
    startAsHolder(step, record);
    return;
  }
  // A takeover that an earlier life has written may still be on its way; its replica is gone, so it must fail.
  if (record.replicaValid) pursue(step, "renounce");
  else startAsOther(step, `${record.holder} runs the VM`);
}

/** Only a QEMU that has the VM may go on as the VM, and only one that has not may wait for it. */
function startAsHolder(step: Step, record: VmRecord): void {
  const { s } = step;
  if (s.found === "protected" && record.replicaValid && s.unsuitable === undefined) {
    resume(step, record);
    return;
  }
  if (s.found !== "incoming") {
    // Written anew even if it says so already: a write of an earlier life may still be on its way, and must fail.
    pursue(step, "invalid");
    return;
  }
  if (!record.replicaValid) {
    const how = "start its QEMU without -incoming to boot it from its disk";
    enter(
      step,
      "stopped",
      `the VM is lost: this host ran it without a replica, and its QEMU is gone; ${how}`,
    );
    return;
  }
  // The replica is the last copy, and takes over when the lease that an earlier life may have left has run out.
  enter(step, "waiting", `the VM's QEMU on this host is gone; ${s.settings.peer} is to take it over`);
}

/**
 * `resume protection`: an earlier life of this agent had protected the VM, and nobody has written anything since. Its replica's agent
 * says whether it still stands by; only its answers prolong the lease, as before.
 */
function resume(step: Step, record: VmRecord): void {
  const { s, now } = step;
  s.term = record.term;
  s.leaseFrom = "peer";
  s.lastAnswerMs = now;
  s.heardMs.control = now;
  s.protecting = "answer";
  enter(step, "resuming", "this host's agent was restarted");
}

/**
 * `follow again`: the last life of this agent had ended as announced, with no takeover begun, and the primary has made no checkpoint
 * since. Nobody may have answered the primary later than now.
 */
function followAgain(step: Step): void {
  const { s, now, actions } = step;
  s.lastAnswerMs = now;
  s.heardMs.control = now;
  enter(step, "standby");
  actions.push({ type: "follow_again" });
}

/** The replica that an earlier life has left in good order is not what the record calls valid: it is one like any other. */
function dropReplica(step: Step): void {
  const { s, actions } = step;
  if (s.found !== "following") return;
  s.found = "replica";
  const reason = "it is not the replica that the record calls valid";
  // The primary may be waiting for this agent.
  actions.push(
    { type: "block" },
    { type: "tell_peer", what: "replica_lost", generation: s.generation, reason },
  );
}

function startAsOther(step: Step, reason: string): void {
  const { found, unsuitable } = step.s;
  if (found === "incoming" && unsuitable === undefined) {
    enter(step, "waiting", reason);
    return;
  }
  if (found === "incoming") {
    step.s.needsAdministrator = true; // another QEMU of the same build would be no better
    enter(step, "stopped", `${reason}, and this host can keep no replica: ${unsuitable}`);
    return;
  }
  if (found === "protected") step.actions.push({ type: "block" });
  const has = hasVm(step.s) ? "a VM" : "the replica of an earlier protection";
  enter(step, "stopped", `${reason}, and this host's QEMU has ${has}; start it anew with -incoming`);
}

// --- time ----------------------------------------------------------------------------------------------------------------

/** `round`: renews what a living agent renews. A timer alone never does: it can run while the rest of the agent hangs. */
function round(step: Step): void {
  const { s, now, actions } = step;
  if (s.leaseFrom === "self") actions.push({ type: "extend_lease", untilMs: now + s.settings.leaseMs });
  overdue(step);
}

/** `overdue`: notices what has not happened in time. */
function overdue(step: Step): void {
  const { s, now } = step;
  const { settings } = s;
  if (asksArbiter(s) && s.call === undefined && now >= s.retryAtMs) askArbiter(step);
  // Answers on the clients' network keep the lease up, but no replica: that needs the replication link.
  const heardMs = Math.min(s.lastAnswerMs, s.heardMs.control);
  if (s.leaseFrom === "peer" && now - heardMs > settings.timeoutMs && now > s.peerBackByMs) {
    goAlone(step, peerVerdict(s, now));
    return;
  }
  if (s.phase === "protecting" && now - s.heardMs.control > settings.timeoutMs) {
    goAlone(step, peerVerdict(s, now));
    return;
  }
  // It answers, so it has not ended after all.
  if (s.leaseFrom === "peer" && Number.isFinite(s.peerBackByMs) && now > s.peerBackByMs)
    peerIsBack(step, s.generation);
  if (s.phase === "handing_over" && s.retiredMs !== undefined && now - s.retiredMs > settings.timeoutMs) {
    goAlone(step, "the peer was handed the VM and has had time to take it");
    return;
  }
  if (s.phase === "incoming" && now - s.lastAnswerMs > settings.timeoutMs) {
    replicaUseless(step, "the primary has given up making this replica");
    return;
  }
  if (s.phase === "standby") {
    const silentSinceMs = Math.max(s.lastAnswerMs + settings.timeoutMs, s.peerBackByMs);
    if (s.claim === undefined && now > silentSinceMs) claim(step, peerVerdict(s, now));
    else if (s.claim !== undefined) claimIfDue(step);
  }
  if (isFencing(s) && s.claim?.fence === "none" && now >= s.retryAtMs) fenceFirst(step, s.claim.reason);
  if (s.phase === "alone" && s.peerReady && now >= Math.max(s.protectAtMs, s.unprotectedUntilMs)) {
    // A QEMU that cannot be protected lets its VM run alone for good.
    if (s.unsuitable === undefined) protect(step);
  }
  handOverIfWorseOff(step);
}

// --- the holder ----------------------------------------------------------------------------------------------------------

/** `run alone`: the record says that there is no replica, so the agent itself keeps the lease up. */
function runAlone(step: Step): void {
  const { s, now, actions } = step;
  s.leaseFrom = "self";
  actions.push({ type: "extend_lease", untilMs: now + s.settings.leaseMs }, { type: "run_alone" });
}

/** `protect`: a new generation, so that nothing of an earlier attempt can be taken for this one. */
function protect(step: Step): void {
  const { s, actions } = step;
  s.generation++;
  s.protecting = "copying";
  enter(step, "protecting");
  actions.push({ type: "protect", generation: s.generation });
}

/** `primed`: the replica is complete. The lease depends on the secondary *before* the record lets it take over. */
function primed(step: Step, generation: number): void {
  const { s, now } = step;
  if (s.phase !== "protecting" || s.protecting !== "copying" || generation !== s.generation) return;
  s.protecting = "answer";
  s.leaseFrom = "peer";
  s.lastAnswerMs = now;
}

function heartbeatAnswered(step: Step, event: Extract<Event, { type: "heartbeat_answered" }>): void {
  const { s, now, actions } = step;
  if (s.leaseFrom !== "peer" || event.generation !== s.generation) return;
  // Overtaken by a newer answer, or asked before the replica was complete: then the lease that this agent had given itself may last
  // longer than the secondary would wait after that answer.
  if (event.sentMs < s.lastAnswerMs) return;
  if (!event.accepted) {
    if (now < s.peerBackByMs) return; // it has only begun
    goAlone(step, "the secondary's agent says that it is not this VM's replica");
    return;
  }
  s.lastAnswerMs = event.sentMs;
  // From the time of sending: the secondary counts from its answer, which is later.
  actions.push({ type: "extend_lease", untilMs: event.sentMs + s.settings.leaseMs });
  if (s.protecting !== "answer" || s.goal !== undefined) return;
  if (s.phase === "resuming") pursue(step, "still_valid");
  else if (s.settings.arbiter) pursue(step, "valid");
  else becomeProtected(step);
}

function becomeProtected(step: Step): void {
  step.s.protecting = undefined;
  enter(step, "protected");
  step.actions.push({ type: "begin_checkpoints" });
}

function protectionFailed(step: Step, event: Extract<Event, { type: "protection_failed" }>): void {
  const { s, actions } = step;
  if (s.phase !== "protecting" || event.generation !== s.generation) return;
  s.protecting = undefined;
  if (event.entered) {
    // The record has not called this replica valid, so nothing needs to be written before what is held may go.
    enter(step, "going_alone", event.reason);
    leaveReplica(step);
    return;
  }
  actions.push({ type: "tell_peer", what: "abandon", generation: s.generation, reason: event.reason });
  s.protecting = undefined;
  retryProtectionLater(step);
  enter(step, "alone", event.reason);
}

/** The peer's agent goes on where it had left off, earlier than it had to. What it has not heard meanwhile counts from now. */
function peerIsBack(step: Step, generation: number): void {
  const { s, now, actions } = step;
  if (generation !== s.generation) return;
  s.peerBackByMs = Number.NEGATIVE_INFINITY;
  if (s.leaseFrom !== "peer") return;
  s.lastAnswerMs = now;
  s.heardMs.control = now;
  s.controlClosed = false;
  actions.push({ type: "catch_up" });
}

/** `go alone`: the replica is lost. First: is this host's QEMU alive? If not, the replica is the last copy and must not be invalidated. */
function goAlone(step: Step, reason: string): void {
  const { s, actions } = step;
  if (!isHolder(s) || s.phase === "alone" || s.phase === "going_alone") return;
  if (s.phase === "protecting" && s.protecting === "copying") {
    // Nothing depends on the replica yet; the procedure undoes itself and reports that.
    actions.push({ type: "end_protection", reason });
    return;
  }
  // No answer prolongs the lease any more: what is left of it runs out unless the record lets this agent renew it.
  s.leaseFrom = "none";
  s.protecting = undefined;
  s.peerBackByMs = Number.NEGATIVE_INFINITY;
  s.goal = undefined;
  s.call = undefined;
  s.goingAlone = "probing";
  enter(step, "going_alone", reason);
  actions.push({ type: "end_protection", reason }, { type: "probe_qemu" });
}

/** `record alone`: "replica invalid" before a single unverified frame leaves. */
function recordAlone(step: Step): void {
  const { s } = step;
  if (s.phase !== "going_alone" || s.goingAlone !== "probing") return;
  s.goingAlone = "recording";
  if (s.settings.arbiter) pursue(step, "invalid");
  else leaveReplica(step);
}

function leaveReplica(step: Step): void {
  const { s, actions } = step;
  s.goingAlone = "leaving";
  actions.push({ type: "tell_peer", what: "abandon", generation: s.generation, reason: s.reason ?? "" });
  retryProtectionLater(step);
  runAlone(step);
}

/** `give up`: nothing leaves this host any more, so the secondary need not wait for the lease. */
function holderGivesUp(step: Step, reason: string): void {
  const { s, actions } = step;
  const replicaMayBeValid = s.settings.arbiter && couldBeValid(s);
  const { generation } = s;
  holderStops(step, reason);
  if (replicaMayBeValid) actions.push({ type: "tell_peer", what: "give_up", generation, reason });
}

function holderStops(step: Step, reason: string): void {
  const { s, actions } = step;
  s.leaseFrom = "none";
  s.protecting = undefined;
  s.goingAlone = undefined;
  s.goal = undefined;
  s.call = undefined;
  s.claim = undefined;
  actions.push({ type: "block" }, { type: "end_protection", reason });
  enter(step, "stopped", reason);
}

/** Until "replica invalid" has been confirmed the replica may be the one that goes on. */
function couldBeValid(s: State): boolean {
  return s.leaseFrom === "peer" || s.goingAlone === "probing" || s.goingAlone === "recording";
}

/** `QEMU gone`: a VM that was shut down stays down; one that was lost lives on in its replica. */
function qemuGone(step: Step, reason: string): void {
  const { s, actions } = step;
  if (s.phase === "stopped") return;
  if (!isHolder(s) && s.phase !== "starting") {
    replicaUseless(step, `QEMU is gone: ${reason}`);
    return;
  }
  if (s.shutdown === undefined) {
    holderGivesUp(step, `QEMU is gone: ${reason}`);
    return;
  }
  const wasValid = couldBeValid(s);
  const { generation, shutdown } = s;
  holderStops(step, shutdown);
  if (!wasValid) return;
  actions.push({ type: "tell_peer", what: "abandon", generation, reason: shutdown });
  if (s.settings.arbiter) pursue(step, "invalid");
}

/** `QEMU silent`: it may come back, so a VM that has nobody to take over is left as it is. */
function qemuSilent(step: Step, reason: string): void {
  const { s } = step;
  if (s.phase === "standby" || s.phase === "incoming") {
    replicaUseless(step, reason);
    return;
  }
  if (isHolder(s) && couldBeValid(s)) holderGivesUp(step, reason);
}

function diskError(step: Step, event: Extract<Event, { type: "disk_error" }>): void {
  const { s } = step;
  if (s.phase === "standby") {
    replicaUseless(step, event.reason);
    return;
  }
  if (event.disk === "replica") {
    goAlone(step, event.reason);
    return;
  }
  if (s.phase === "protected") handOver(step, event.reason);
}

/** `useless`, unless this replica may be the last copy: a takeover empties the overlays into the disks. */
function overlaysFull(step: Step, reason: string): void {
  const { s } = step;
  if (s.phase === "standby" && s.claim === undefined && !s.givenUp) replicaUseless(step, reason);
}

/** `worse off`: the clients' network is gone here and not there. */
function handOverIfWorseOff(step: Step): void {
  const { s } = step;
  if (s.phase === "protected" && !s.ownUplink && s.peerUplink) {
    handOver(step, "this host has lost the clients' network, the peer has not");
  }
}

/** `hand over`: both VMs at the same point, everything verified released, then `give up`; the secondary does the rest. */
function handOver(step: Step, reason: string): void {
  if (!step.s.settings.arbiter) return;
  enter(step, "handing_over", reason);
  step.s.retiredMs = undefined;
  step.actions.push({ type: "hand_over" });
}

/**
 * `retire`: nothing leaves this host any more, the secondary may take over. This VM is kept until that is certain: a peer that is lost now
 * has not written itself into the record, and then this host goes on, as with any lost replica.
 */
function retire(step: Step): void {
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

function unprotect(step: Step, untilMs: number): void {
  step.s.unprotectedUntilMs = untilMs;
  goAlone(step, "protection was ended by the administrator");
}

// --- the other one -------------------------------------------------------------------------------------------------------

function replicaWanted(step: Step, generation: number): void {
  const { s, now, actions } = step;
  if (s.phase !== "waiting" || s.unsuitable !== undefined) return; // the one who asked sees from the phase that it was refused
  s.generation = generation;
  s.lastAnswerMs = now;
  enter(step, "incoming");
  actions.push({ type: "prepare_replica" });
}

function replicaEntered(step: Step, generation: number): void {
  const { s, now, actions } = step;
  if (s.phase !== "incoming" || generation !== s.generation) return;
  s.lastAnswerMs = now;
  s.givenUp = false;
  s.claim = undefined;
  enter(step, "standby");
  actions.push({ type: "follow" });
}

/** `heartbeat`: an answer lets the holder send for another lease, so none is given once this agent may be the holder. */
function heartbeatCame(step: Step, event: Extract<Event, { type: "heartbeat" }>): void {
  const { s, now, actions } = step;
  const own = event.generation === s.generation;
  if (s.phase === "incoming" && own) s.lastAnswerMs = now;
  const accepted = s.phase === "standby" && own && !s.givenUp && !s.committed;
  if (accepted) {
    s.lastAnswerMs = now;
    // The primary is back before anything was written.
    s.claim = undefined;
    s.goal = undefined;
    s.call = undefined;
  }
  actions.push({ type: "answer_heartbeat", accepted });
}

function controlClosed(step: Step): void {
  const { s, now } = step;
  s.controlClosed = true;
  s.peerReady = false;
  if (s.leaseFrom === "peer") {
    if (now >= s.peerBackByMs) goAlone(step, peerVerdict(s, now));
    return;
  }
  if (s.phase === "protecting" || s.phase === "handing_over") {
    goAlone(step, "the connection to the peer's agent closed");
    return;
  }
  if (s.phase === "incoming") {
    replicaUseless(step, "the connection to the peer's agent closed");
    return;
  }
  // No need to wait for silence to add up; the lease is waited for all the same.
  if (s.phase === "standby" && s.claim === undefined && now >= s.peerBackByMs)
    claim(step, peerVerdict(s, now));
}

function primaryGaveUp(step: Step, event: Extract<Event, { type: "peer_gave_up" }>): void {
  const { s } = step;
  if (s.phase !== "standby" || event.generation !== s.generation) return;
  s.givenUp = true;
  if (s.claim === undefined) claim(step, `the primary gave up: ${event.reason}`);
  else claimIfDue(step);
}

/** `claim`: the primary seems lost. Until the record is being written, a heartbeat ends the claim. */
function claim(step: Step, reason: string): void {
  const { s, now } = step;
  s.claim = { reason, sinceMs: now, fence: "none" };
  claimIfDue(step);
}

/** When the holder's lease has run out for sure. */
function takeoverAtMs(s: State): number {
  return s.lastAnswerMs + s.settings.leaseMs + s.settings.marginMs;
}

function claimIfDue(step: Step): void {
  const { s, now } = step;
  if (s.claim === undefined || s.goal !== undefined) return;
  if (!s.settings.arbiter) {
    s.reason = `${s.claim.reason}; there is no arbiter to tell a dead primary from a cut link, so only an administrator can promote this replica (colo-agent promote)`;
    return;
  }
  if (!s.givenUp && now < takeoverAtMs(s)) return;
  pursue(step, "take");
}

/** The record names this agent, which does not run the VM yet. */
function isFencing(s: State): boolean {
  return s.phase === "taking_over" && s.goal === undefined && s.leaseFrom === "none";
}

/**
 * `fence`: after the record names this agent, or a primary might be turned off that goes on alone, rightly and with the only copy.
 * One that gave up has blocked itself.
 */
function fenceFirst(step: Step, reason: string): void {
  const { s, now, actions } = step;
  s.committed = true;
  s.claim ??= { reason, sinceMs: now, fence: "none" };
  if (s.phase !== "taking_over") enter(step, "taking_over", reason);
  if (s.settings.fence === "none" || s.givenUp) {
    becomeHolder(step, reason);
    return;
  }
  s.claim.fence = "running";
  actions.push({ type: "fence" });
}

function fenced(step: Step, event: Extract<Event, { type: "fenced" }>): void {
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

function promoted(step: Step): void {
  const { s } = step;
  if (s.phase !== "taking_over") return;
  s.claim = undefined;
  s.committed = false;
  s.givenUp = false;
  retryProtectionLater(step);
  enter(step, "alone", s.reason);
}

function promoteByHand(step: Step): void {
  const { s } = step;
  if (s.settings.arbiter || s.phase !== "standby") return;
  becomeHolder(step, "promoted by the administrator");
}

function becomeHolder(step: Step, reason: string): void {
  const { s, now, actions } = step;
  s.leaseFrom = "self";
  s.committed = true;
  enter(step, "taking_over", reason);
  actions.push({ type: "extend_lease", untilMs: now + s.settings.leaseMs }, { type: "promote", reason });
}

/** `useless`: this replica can never take over; the primary should know at once. */
function replicaUseless(step: Step, reason: string): void {
  const { s, actions } = step;
  const told = s.phase === "standby" || s.phase === "incoming";
  s.leaseFrom = "none";
  s.claim = undefined;
  s.goal = undefined;
  s.call = undefined;
  actions.push({ type: "block" });
  enter(step, "stopped", reason);
  if (told) actions.push({ type: "tell_peer", what: "replica_lost", generation: s.generation, reason });
}

// --- the record ----------------------------------------------------------------------------------------------------------

function asksArbiter(s: State): boolean {
  return s.settings.arbiter && (s.goal !== undefined || s.phase === "starting") && s.leaseFrom !== "self";
}

function pursue(step: Step, goal: Goal): void {
  const { s } = step;
  s.goal = goal;
  s.call = undefined;
  // The last writer knows the revision; whoever does not learns it from the conflict or reads it first.
  if (s.record === undefined && goal !== "first") {
    askArbiter(step);
    return;
  }
  if (goal === "take") {
    askArbiter(step);
    return;
  }
  write(step);
}

function askArbiter(step: Step): void {
  const { s, actions } = step;
  s.call = s.nextCall++;
  actions.push({ type: "read_record", call: s.call });
}

function arbiterAnswered(step: Step, event: Extract<Event, { type: "arbiter" }>): void {
  const { s, now } = step;
  if (event.call !== s.call) return;
  s.call = undefined;
  const { result } = event;
  if (result.kind === "unreachable") {
    // A write may have happened or not; the next read tells.
    s.retryAtMs = now + s.settings.arbiterRetryMs;
    return;
  }
  s.record = result.record;
  if (result.kind === "swapped") {
    written(step);
    return;
  }
  if (s.goal === undefined) {
    if (s.phase === "starting") startFrom(step, result.record);
    return;
  }
  write(step);
}

/** Writes the goal on top of the record as it is now, or finds that it must not or need not be written. */
function write(step: Step): void {
  const { s, actions } = step;
  const { record, goal } = s;
  const { self } = s.settings;
  let update: VmRecordUpdate;
  switch (goal) {
    case "first":
      if (record !== undefined) {
        s.goal = undefined;
        startFrom(step, record);
        return;
      }
      update = { term: 1, generation: s.generation, holder: self, replicaValid: false };
      break;
    case "renounce":
      if (record === undefined || record.holder === self || !record.replicaValid) {
        s.goal = undefined;
        startFrom(step, record);
        return;
      }
      update = {
        term: record.term,
        generation: record.generation,
        holder: record.holder,
        replicaValid: false,
      };
      break;
    case "invalid":
    case "valid":
    case "still_valid":
      if (record === undefined) {
        noRecord(step);
        return;
      }
      // Of another term: the record means another machine of this name, or the peer has had the VM in between.
      if (record.holder !== self || (s.term !== undefined && record.term !== s.term)) {
        lostToPeer(step, record);
        return;
      }
      if (goal === "valid" && record.replicaValid && record.generation === s.generation) {
        written(step);
        return;
      }
      // Written anew even if it stands there: "invalid" of an earlier life may still be on its way, and must fail.
      if (goal === "still_valid" && (!record.replicaValid || record.generation !== s.generation)) {
        goAlone(step, "the agent's earlier life had given its replica up");
        return;
      }
      update = {
        term: record.term,
        generation: s.generation,
        holder: self,
        replicaValid: goal !== "invalid",
      };
      break;
    case "take": {
      if (record === undefined) {
        noRecord(step);
        return;
      }
      // An earlier write whose answer was lost.
      if (record.holder === self && s.committed) {
        written(step);
        return;
      }
      const refusal = takeoverRefusal(s, record);
      if (refusal !== undefined) {
        replicaUseless(step, `no takeover: ${refusal}`);
        return;
      }
      if (!s.committed) {
        s.committed = true;
        enter(step, "taking_over", s.claim?.reason);
      }
      update = { term: record.term + 1, generation: s.generation, holder: self, replicaValid: false };
      break;
    }
    default:
      return;
  }
  s.call = s.nextCall++;
  actions.push({
    type: "swap_record",
    call: s.call,
    expectedRevision: record?.revision ?? 0,
    record: update,
  });
}

/** `refuse`: a replica that is out of date, or of another attempt, never takes over. */
export function takeoverRefusal(s: State, record: VmRecord): string | undefined {
  if (record.holder === s.settings.self) return "the record names this host already";
  if (!record.replicaValid) return `${record.holder} goes on alone, this replica is out of date`;
  if (record.generation !== s.generation) {
    return `the valid replica is of generation ${record.generation}, this one is of ${s.generation}`;
  }
  return undefined;
}

/** The goal stands in the record. */
function written(step: Step): void {
  const { s } = step;
  const { goal } = s;
  s.goal = undefined;
  if (goal !== "renounce") s.term = s.record?.term;
  switch (goal) {
    case "first":
      runAlone(step);
      return;
    case "renounce":
      startFrom(step, s.record);
      return;
    case "invalid":
      if (s.phase === "starting" && s.found === "replica")
        fenceFirst(step, "an earlier life of this agent had taken the VM over");
      else if (s.phase === "starting") runAlone(step);
      else if (s.goingAlone === "recording") leaveReplica(step);
      return;
    case "valid":
      if (s.phase === "protecting") becomeProtected(step);
      return;
    case "still_valid":
      s.protecting = undefined;
      step.actions.push({ type: "resume", generation: s.generation });
      return;
    case "take":
      fenceFirst(step, s.claim?.reason ?? "");
      return;
    default:
      return;
  }
}

function lostToPeer(step: Step, record: VmRecord): void {
  const { s } = step;
  s.goal = undefined;
  if (s.phase === "stopped") return;
  if (s.phase === "starting") {
    startFrom(step, record);
    return;
  }
  holderStops(step, `${record.holder} has taken the VM over (term ${record.term})`);
}

function noRecord(step: Step): void {
  const reason =
    "the arbiter has lost this VM's record; stop both agents, decide which host's VM is to go on, and start that one first";
  step.s.needsAdministrator = true;
  if (step.s.phase === "standby" || step.s.phase === "taking_over") {
    replicaUseless(step, reason);
    return;
  }
  holderStops(step, reason);
}

// --- small things --------------------------------------------------------------------------------------------------------

const HOLDER: ReadonlySet<Phase> = new Set([
  "alone",
  "protecting",
  "resuming",
  "protected",
  "going_alone",
  "handing_over",
]);

/** This host's QEMU has a VM, not a replica of one. */
function hasVm({ found }: State): boolean {
  return found === "running" || found === "protected";
}

/** Whether this agent's QEMU is the VM that the network sees. */
export function isHolder(s: Pick<State, "phase">): boolean {
  return HOLDER.has(s.phase);
}

function enter(step: Step, phase: Phase, reason?: string): void {
  step.s.phase = phase;
  step.s.sinceMs = step.now;
  step.s.reason = reason;
}

function retryProtectionLater(step: Step): void {
  step.s.protectAtMs = step.now + step.s.settings.protectRetryMs;
}
