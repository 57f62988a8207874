/** The state in sentences, for `colo-agent status`. docs/operate.md has the action for each. */
import { isHolder, type State } from "./state.ts";
import { judgePeer } from "./verdict.ts";

export interface VmInWords {
  /** Who runs the VM, since when, and why. */
  now: string;
  /** What would happen if this host died now. */
  ifThisHostDies: string;
  /** What would happen if the peer's host died now. */
  ifPeerDies: string;
}

export function describe(s: State, nowMs: number): VmInWords {
  const since = `for ${duration(nowMs - s.sinceMs)}`;
  const why = s.reason === undefined ? "" : ` (${s.reason})`;
  return { now: `${sentenceNow(s, since, nowMs)}${why}`, ...prospects(s) };
}

function sentenceNow(s: State, since: string, nowMs: number): string {
  const { self, peer } = s.settings;
  const waits = s.goal === undefined || s.call !== undefined ? "" : "; the arbiter does not answer";
  switch (s.phase) {
    case "starting":
      return `${self} is reading who runs the VM, ${since}${waits}`;
    case "alone":
      return `${self} runs the VM, unprotected ${since}${pause(s, nowMs)}`;
    case "protecting":
      return `${self} runs the VM and is making a replica on ${peer}, ${since}`;
    case "resuming":
      return `${self} is the primary and is confirming its replica on ${peer}, ${since}${waits}`;
    case "protected":
      return `${self} is the primary, protected by ${peer} ${since}${restart(s, nowMs)}`;
    case "going_alone":
      return `${self} runs the VM and is giving up its replica, ${since}; output is held until then${waits}`;
    case "handing_over":
      return `${self} is handing the VM over to ${peer}, ${since}`;
    case "waiting":
      return `${self} does not run the VM; its QEMU has waited ${since} to become ${peer}'s replica`;
    case "incoming":
      return `${self} is receiving a replica from ${peer}, ${since}`;
    case "standby":
      return s.claim === undefined
        ? `${self} is the secondary of ${peer}, ${since}; the peer is ` +
            `${judgePeer(s, nowMs).replace("_", " ")}${restart(s, nowMs)}`
        : `${self} is the secondary and waits for the end of ${peer}'s lease`;
    case "taking_over":
      return `${self} is taking over the VM from ${peer}, ${since}${waits}`;
    case "stopped":
      return `${self} has stopped for this VM and blocks its output, ${since}`;
  }
}

function restart(s: State, nowMs: number): string {
  return s.peerBackByMs > nowMs ? `; ${s.settings.peer}'s agent is being restarted` : "";
}

function pause(s: State, nowMs: number): string {
  if (s.unsuitable !== undefined) return `, and cannot be protected: ${s.unsuitable.replace(/\.$/, "")}`;
  if (s.unprotectedUntilMs <= nowMs) return "";
  if (s.unprotectedUntilMs === Number.POSITIVE_INFINITY) return ", until `colo-agent protect`";
  return `, paused; protection resumes in ${duration(s.unprotectedUntilMs - nowMs)}`;
}

function prospects(s: State): Omit<VmInWords, "now"> {
  const { peer, arbiter, leaseMs, marginMs } = s.settings;
  const takeover = arbiter
    ? `would take over ${leaseMs + marginMs} ms after the last heartbeat, with disk, memory and connections`
    : "would not take over by itself, because there is no arbiter; use `colo-agent promote`";
  switch (s.phase) {
    case "resuming":
    case "protected":
    case "handing_over":
      return {
        ifThisHostDies: `${peer} ${takeover}`,
        ifPeerDies: "this host would continue alone at once",
      };
    case "standby":
      return {
        ifThisHostDies: `${peer} would continue alone at once`,
        ifPeerDies: `this host ${takeover}`,
      };
    case "going_alone":
      return {
        ifThisHostDies: `${peer} may take over, unless the arbiter has recorded that this host is alone`,
        ifPeerDies: "this host would continue alone",
      };
    case "taking_over":
      return { ifThisHostDies: "the VM would be lost", ifPeerDies: "nothing would change" };
    default:
      return isHolder(s)
        ? {
            ifThisHostDies: "the VM would be lost, because there is no replica",
            ifPeerDies: "nothing would change",
          }
        : { ifThisHostDies: "nothing would change", ifPeerDies: "the VM would be lost, if it runs there" };
  }
}

function duration(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 120) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  return minutes < 120 ? `${minutes} min` : `${Math.round(minutes / 60)} h`;
}
