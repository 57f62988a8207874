/** What breaks beside the peer's silence: QEMU, its disks, the connection to the peer's agent. */

import type { Event } from "./events.ts";
import { couldBeValid, goAlone, handOver, holderGivesUp, holderStops } from "./holder.ts";
import { claim, replicaUseless } from "./replica.ts";
import { isHolder } from "./state.ts";
import { type Step, want } from "./step.ts";
import { peerVerdict } from "./verdict.ts";

/** `QEMU gone`: a VM that was shut down stays down; one that was lost continues as its replica. */
export function qemuGone(step: Step, reason: string): void {
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
  if (s.settings.arbiter) want(step, "invalid");
}

/** `QEMU silent`: it may come back, so a VM that has nobody to take over is left as it is. */
export function qemuSilent(step: Step, reason: string): void {
  const { s } = step;
  if (s.phase === "standby" || s.phase === "incoming") {
    replicaUseless(step, reason);
    return;
  }
  if (isHolder(s) && couldBeValid(s)) holderGivesUp(step, reason);
}

export function diskError(step: Step, event: Extract<Event, { type: "disk_error" }>): void {
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

export function controlClosed(step: Step): void {
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
