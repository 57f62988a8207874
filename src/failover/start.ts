/**
 * The begin of an agent: the record says what this host is to the VM; without a record, the configuration
 * does.
 */
import { takeoverRefusal } from "./goal.ts";
import { runAlone } from "./holder.ts";
import { enter, hasVm, type Step, want } from "./step.ts";
import type { VmRecord } from "./vm_record.ts";

/** `start` where there is no arbiter. With one, the pump reads the record and calls {@link startFrom}. */
export function startWithoutArbiter(step: Step): void {
  const { s } = step;
  if (hasVm(s) && s.settings.configuredRole === "primary") {
    runAlone(step);
    return;
  }
  dropReplica(step);
  startAsOther(step, "there is no arbiter, so only the configured primary runs the VM");
}

/** `start`: from the record as it is now. */
export function startFrom(step: Step, record: VmRecord | undefined): void {
  const { s } = step;
  const follows = s.found === "following" && s.unsuitable === undefined;
  if (follows && record !== undefined && takeoverRefusal(s, record) === undefined) {
    followAgain(step);
    return;
  }
  dropReplica(step);
  if (record === undefined) {
    if (hasVm(s) && s.settings.configuredRole === "primary") {
      want(step, "first");
      return;
    }
    startAsOther(step, "no host has held this VM yet");
    return;
  }
  s.generation = record.generation;
  if (record.holder === s.settings.self) {
    startAsHolder(step, record);
    return;
  }
  // An earlier agent's takeover may still be on its way to the arbiter. Its replica is gone, so it must fail.
  if (record.replicaValid) want(step, "renounce");
  else startAsOther(step, `${record.holder} runs the VM`);
}

/** Only a QEMU that has the VM may continue as the VM, and only one that has not may wait for it. */
function startAsHolder(step: Step, record: VmRecord): void {
  const { s } = step;
  if (s.found === "protected" && record.replicaValid && s.unsuitable === undefined) {
    resume(step, record);
    return;
  }
  if (s.found !== "incoming") {
    // Written again even if it says so already: an earlier agent's write may still be on its way, and must
    // fail.
    want(step, "invalid");
    return;
  }
  if (!record.replicaValid) {
    enter(step, "stopped", vmLost("this host ran it without a replica, and its QEMU is gone"));
    return;
  }
  // The replica is the last copy. It takes over when a lease that an earlier agent may have left has run out.
  enter(step, "waiting", `the VM's QEMU on this host is gone; ${s.settings.peer} is to take it over`);
}

/**
 * `resume`: this host's agent had protected the VM before it was restarted, and the record is unchanged. The
 * secondary's agent says whether the replica still stands by. Only its answers prolong the lease, as before.
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
 * `follow again`: this host's agent ended as announced, with no takeover begun, and the primary has made no
 * checkpoint since. No heartbeat of the primary was answered later than now.
 */
function followAgain(step: Step): void {
  const { s, now, actions } = step;
  s.lastAnswerMs = now;
  s.heardMs.control = now;
  enter(step, "standby");
  actions.push({ type: "follow_again", generation: s.generation });
}

/**
 * The replica that an earlier agent left in good order is not the one that the record calls valid: it is of
 * no use.
 */
function dropReplica(step: Step): void {
  const { s, actions } = step;
  if (s.found !== "following") return;
  s.found = "replica";
  const reason = "it is not the replica that the record calls valid";
  // The primary may be waiting for this agent.
  actions.push(
    { type: "block", reason },
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
  if (found === "protected") step.actions.push({ type: "block", reason });
  const has = hasVm(step.s) ? "a VM" : "the replica of an earlier protection";
  enter(step, "stopped", `${reason}, and this host's QEMU has ${has}; start it again with -incoming`);
}

/** No copy of the VM's memory is left: only its disks. */
export function vmLost(why: string): string {
  return `the VM is lost: ${why}; start its QEMU without -incoming to boot it from its disk`;
}
