/**
 * What holds of every state between two decisions. The driver checks it after each decision, in production
 * too: a state that breaks one is a fault of the decisions, and nothing that follows from it can be trusted.
 */
import type { Decision } from "./actions.ts";
import type { Event } from "./events.ts";
import { awaitsTakeover, isHolder, type Phase, type State } from "./state.ts";
import { answer, begin, stop } from "./step.ts";

type Lease = State["leaseFrom"];

/** What may prolong the lease in a phase. */
const LEASES: Readonly<Record<Phase, readonly Lease[]>> = {
  starting: ["none", "self"],
  alone: ["self"],
  protecting: ["self", "peer"],
  resuming: ["peer"],
  protected: ["peer"],
  going_alone: ["none", "self"],
  handing_over: ["none", "peer"],
  waiting: ["none"],
  incoming: ["none"],
  standby: ["none"],
  taking_over: ["none", "self"],
  stopped: ["none"],
};

const INVARIANTS: Readonly<Record<string, (s: State) => boolean>> = {
  "the lease is prolonged as the phase allows": (s) => LEASES[s.phase].includes(s.leaseFrom),
  "protecting has a step, and only protecting and resuming have one": (s) => {
    if (s.phase === "resuming") return s.protecting === "answer" || s.protecting === undefined;
    return (s.phase === "protecting") === (s.protecting !== undefined);
  },
  "answers prolong the lease of a replica that is complete": (s) =>
    s.phase !== "protecting" || (s.protecting === "answer") === (s.leaseFrom === "peer"),
  "going alone has a step, and only going alone has one": (s) =>
    (s.phase === "going_alone") === (s.goingAlone !== undefined),
  "nothing leaves before the replica is recorded as invalid": (s) =>
    s.phase !== "going_alone" || (s.goingAlone === "leaving") === (s.leaseFrom === "self"),
  "the goal fits the phase": goalFits,
  "the arbiter is asked only where there is one and something to ask": (s) =>
    s.call === undefined ||
    (s.settings.arbiter && (s.goal !== undefined || s.phase === "starting" || awaitsTakeover(s))),
  "only a replica claims the VM": (s) =>
    s.claim === undefined || s.phase === "standby" || s.phase === "taking_over",
  "a takeover is committed, and nothing else is": (s) =>
    s.phase === "taking_over" ? s.committed : !s.committed,
  "only a holder that hands the VM over is retired": (s) =>
    s.retiredMs === undefined || (s.phase === "handing_over" && s.leaseFrom === "none"),
  "only a replica succeeds a primary": (s) =>
    !s.succeeding || s.phase === "standby" || s.phase === "taking_over",
  "a holder knows its term": (s) => !isHolder(s) || !s.settings.arbiter || s.term !== undefined,
};

function goalFits(s: State): boolean {
  switch (s.goal) {
    case undefined:
      return true;
    case "first":
    case "renounce":
      return s.phase === "starting";
    case "invalid":
      return s.phase === "starting" || s.phase === "stopped" || s.goingAlone === "recording";
    case "valid":
      return s.phase === "protecting" && s.protecting === "answer";
    case "still_valid":
      return s.phase === "resuming" && s.protecting === "answer";
    case "take":
      return s.phase === "taking_over" || (s.phase === "standby" && s.claim !== undefined);
    case "boot":
      return s.phase === "waiting";
  }
}

const ENTRIES = Object.entries(INVARIANTS);
export const INVARIANT_COUNT = ENTRIES.length;

/** The name of an invariant that the state breaks; undefined: it breaks none. */
export function brokenInvariant(s: State): string | undefined {
  for (const [name, holds] of ENTRIES) if (!holds(s)) return name;
  return undefined;
}

/**
 * Instead of a decision that broke an invariant: this VM's output is blocked, and an administrator has to
 * look at it.
 */
export function stopBroken(broken: State, event: Event, name: string, nowMs: number): Decision {
  const step = begin(broken, nowMs);
  const reason = `invariant ${name}`;
  stop(step, reason);
  step.s.needsAdministrator = true;
  step.actions.push({ type: "end_protection", reason });
  if ("request" in event) answer(step, event.request, reason);
  return { state: step.s, actions: step.actions };
}
