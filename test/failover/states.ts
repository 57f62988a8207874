/** States of host a, and events, for tests of the decisions. All times are relative to {@link NOW}. */
import type { Action } from "../../src/failover/actions.ts";
import type { Event } from "../../src/failover/events.ts";
import { initialState, type Settings, type State } from "../../src/failover/state.ts";
import { SETTINGS } from "./settings.ts";

export const NOW = 10_000;
export const own = { revision: 7, term: 3, generation: 5, holder: "a", replicaValid: true };
export const theirs = { ...own, holder: "b" };

export function state(changes: Partial<State>): State {
  const base = initialState(SETTINGS, 9_000);
  return {
    ...base,
    found: "incoming",
    generation: 5,
    term: 3,
    record: own,
    lastAnswerMs: NOW - 100,
    heardMs: { control: NOW - 100, client: NOW - 100 },
    ...changes,
  };
}

export const alone = state({ phase: "alone", leaseFrom: "self", peerReady: true });
export const copying = state({ phase: "protecting", leaseFrom: "self", protecting: "copying" });
export const awaiting = state({
  phase: "protecting",
  leaseFrom: "peer",
  protecting: "answer",
  lastAnswerMs: NOW - 50,
  record: { ...own, generation: 4, replicaValid: false },
});
export const held = state({ phase: "protected", leaseFrom: "peer" });
export const probing = state({ phase: "going_alone", goingAlone: "probing" });
export const recording = state({ phase: "going_alone", goingAlone: "recording", goal: "invalid", call: 4 });
export const leaving = state({ phase: "going_alone", goingAlone: "leaving", leaseFrom: "self" });
export const handing = state({ phase: "handing_over", leaseFrom: "peer" });
export const retired = state({ phase: "handing_over", retiredMs: NOW - 600 });
export const waiting = state({ phase: "waiting", term: undefined, record: undefined });
export const incoming = state({ phase: "incoming", term: undefined, record: undefined });
export const standby = state({ phase: "standby", term: undefined, record: undefined });
export const claiming = state({
  ...standby,
  lastAnswerMs: NOW - 1_200,
  claim: { reason: "silence", sinceMs: NOW - 700, fence: "none" },
});
export const taking = state({
  ...claiming,
  phase: "taking_over",
  committed: true,
  goal: "take",
  call: 4,
  record: theirs,
});
export const promoting = state({ ...taking, goal: undefined, call: undefined, leaseFrom: "self", term: 4 });
export const asked = state({ phase: "starting", record: undefined, term: undefined, call: 4 });
export const left = state({ ...asked, found: "following", generation: 5 });
export const found = state({ ...asked, found: "protected" });
export const resuming = state({ phase: "resuming", leaseFrom: "peer", protecting: "answer" });
export const recordingAgain = state({ ...resuming, goal: "still_valid", call: 4 });

export function answer(record: State["record"], kind: "record" | "conflict" = "record"): Event {
  return { type: "arbiter", call: 4, result: { kind, record } };
}
export const swapped = (record: NonNullable<State["record"]>): Event => ({
  type: "arbiter",
  call: 4,
  result: { kind: "swapped", record },
});
export const unreachable: Event = { type: "arbiter", call: 4, result: { kind: "unreachable", reason: "" } };
export const round: Event = { type: "round" };
export const gone: Event = { type: "qemu_gone", reason: "" };

/** name, state, event, phase afterwards, types of the actions (tell_peer with what is told). */
export type Case = [name: string, before: State, event: Event, phase: State["phase"], actions: string[]];

export const without = (s: State, changes: Partial<Settings>): State => ({
  ...s,
  settings: { ...s.settings, ...changes },
});

/** The record names this host, whose VM is gone, and the peer's replica is to take over. */
export const awaitsTakeover = state({
  phase: "waiting",
  term: undefined,
  sinceMs: NOW - 20_000,
  record: own,
});
export const booting = state({ ...awaitsTakeover, goal: "boot", call: 4 });
export const restarting = state({ ...held, restarting: true });

export function told(action: Action): string {
  if (action.type === "tell_peer") return `tell_peer ${action.what}`;
  if (action.type === "answer") return action.refusal === undefined ? "yes" : "no";
  return action.type;
}
