/** Each transition of docs/failover.md by itself; test/simulation tries them together. */
import { describe, expect, test } from "bun:test";
import type { Action } from "../../src/failover/actions.ts";
import { nextDeadlineMs } from "../../src/failover/deadlines.ts";
import { decide, heartbeatGeneration } from "../../src/failover/decide.ts";
import type { Event, Request } from "../../src/failover/events.ts";
import { takeoverRefusal } from "../../src/failover/goal.ts";
import { brokenInvariant, INVARIANT_COUNT } from "../../src/failover/invariants.ts";
import { initialState, type Settings, type State } from "../../src/failover/state.ts";
import { goldenText } from "../golden.ts";
import { SETTINGS } from "./settings.ts";

const NOW = 10_000;
const own = { revision: 7, term: 3, generation: 5, holder: "a", replicaValid: true };
const theirs = { ...own, holder: "b" };

function state(changes: Partial<State>): State {
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

const alone = state({ phase: "alone", leaseFrom: "self", peerReady: true });
const copying = state({ phase: "protecting", leaseFrom: "self", protecting: "copying" });
const awaiting = state({
  phase: "protecting",
  leaseFrom: "peer",
  protecting: "answer",
  lastAnswerMs: NOW - 50,
  record: { ...own, generation: 4, replicaValid: false },
});
const held = state({ phase: "protected", leaseFrom: "peer" });
const probing = state({ phase: "going_alone", goingAlone: "probing" });
const recording = state({ phase: "going_alone", goingAlone: "recording", goal: "invalid", call: 4 });
const leaving = state({ phase: "going_alone", goingAlone: "leaving", leaseFrom: "self" });
const handing = state({ phase: "handing_over", leaseFrom: "peer" });
const retired = state({ phase: "handing_over", retiredMs: NOW - 600 });
const waiting = state({ phase: "waiting", term: undefined, record: undefined });
const incoming = state({ phase: "incoming", term: undefined, record: undefined });
const standby = state({ phase: "standby", term: undefined, record: undefined });
const claiming = state({
  ...standby,
  lastAnswerMs: NOW - 1_200,
  claim: { reason: "silence", sinceMs: NOW - 700, fence: "none" },
});
const taking = state({
  ...claiming,
  phase: "taking_over",
  committed: true,
  goal: "take",
  call: 4,
  record: theirs,
});
const promoting = state({ ...taking, goal: undefined, call: undefined, leaseFrom: "self", term: 4 });
const asked = state({ phase: "starting", record: undefined, term: undefined, call: 4 });
const left = state({ ...asked, found: "following", generation: 5 });
const found = state({ ...asked, found: "protected" });
const resuming = state({ phase: "resuming", leaseFrom: "peer", protecting: "answer" });
const recordingAgain = state({ ...resuming, goal: "still_valid", call: 4 });

function answer(record: State["record"], kind: "record" | "conflict" = "record"): Event {
  return { type: "arbiter", call: 4, result: { kind, record } };
}
const swapped = (record: NonNullable<State["record"]>): Event => ({
  type: "arbiter",
  call: 4,
  result: { kind: "swapped", record },
});
const unreachable: Event = { type: "arbiter", call: 4, result: { kind: "unreachable", reason: "" } };
const round: Event = { type: "round" };
const gone: Event = { type: "qemu_gone", reason: "" };

/** name, state, event, phase afterwards, types of the actions (tell_peer with what is told). */
type Case = [name: string, before: State, event: Event, phase: State["phase"], actions: string[]];

const without = (s: State, changes: Partial<Settings>): State => ({
  ...s,
  settings: { ...s.settings, ...changes },
});

/** The record names this host, whose VM is gone, and the peer's replica is to take over. */
const awaitsTakeover = state({ phase: "waiting", term: undefined, sinceMs: NOW - 20_000, record: own });
const booting = state({ ...awaitsTakeover, goal: "boot", call: 4 });
const restarting = state({ ...held, restarting: true });

const CASES: Case[] = [
  ["wait for takeover: asks again", awaitsTakeover, { type: "deadline" }, "waiting", ["read_record"]],
  ["wait for takeover: not yet", { ...awaitsTakeover, call: 4 }, answer(own), "waiting", []],
  ["wait for takeover: done", { ...awaitsTakeover, call: 4 }, answer(theirs), "waiting", []],
  [
    "replica gone: only the disks are left",
    { ...awaitsTakeover, call: 4 },
    answer({ ...own, replicaValid: false }),
    "stopped",
    [],
  ],
  ["boot", awaitsTakeover, { type: "boot_wanted", request: 1 }, "waiting", ["yes", "swap_record"]],
  [
    "boot: the peer gets its time",
    { ...awaitsTakeover, sinceMs: NOW - 9_000, call: 4 },
    { type: "boot_wanted", request: 1 },
    "waiting",
    ["no"],
  ],
  ["boot: nothing to start", alone, { type: "boot_wanted", request: 1 }, "alone", ["no"]],
  ["boot: written", booting, swapped({ ...own, replicaValid: false }), "stopped", []],
  ["boot: the peer has taken over first", booting, answer(theirs, "conflict"), "waiting", []],
  [
    "boot: another write came between",
    booting,
    answer({ ...own, revision: 8 }, "conflict"),
    "waiting",
    ["swap_record"],
  ],
  ["restart: alone", alone, { type: "restart_wanted", request: 1 }, "alone", ["extend_lease", "yes"]],
  ["restart: protected", held, { type: "restart_wanted", request: 1 }, "protected", ["pause_checkpoints"]],
  ["restart: standby", standby, { type: "restart_wanted", request: 1 }, "standby", ["ask_peer_to_wait"]],
  ["restart: not between two phases", copying, { type: "restart_wanted", request: 1 }, "protecting", ["no"]],
  [
    "restart: nothing is kept with QEMU's proxy",
    without(held, { adoptable: false }),
    { type: "restart_wanted", request: 1 },
    "protected",
    ["yes"],
  ],
  ["restart: one at a time", restarting, { type: "restart_wanted", request: 1 }, "protected", ["no"]],
  [
    "restart: no checkpoint is under way",
    restarting,
    { type: "checkpoints_paused", request: 1, whose: "own", generation: 5 },
    "protected",
    ["ask_peer_to_wait"],
  ],
  [
    "restart: a hand-over began meanwhile, and needs its last checkpoint",
    { ...handing, restarting: true },
    { type: "checkpoints_paused", request: 1, whose: "own", generation: 5 },
    "handing_over",
    ["catch_up", "no"],
  ],
  [
    "restart: the peer waits",
    restarting,
    { type: "peer_waits", request: 1, refusal: undefined, atRest: false },
    "protected",
    ["yes"],
  ],
  [
    "restart: the peer does not",
    restarting,
    { type: "peer_waits", request: 1, refusal: "it is away", atRest: false },
    "protected",
    ["no"],
  ],
  [
    "restart: a replica in a checkpoint",
    { ...standby, restarting: true },
    { type: "peer_waits", request: 1, refusal: undefined, atRest: false },
    "standby",
    ["no"],
  ],
  ["restart cancelled: protected", restarting, { type: "restart_cancelled" }, "protected", ["catch_up"]],
  [
    "restart cancelled: a hand-over waits for its last checkpoint",
    { ...handing, restarting: true },
    { type: "restart_cancelled" },
    "handing_over",
    ["catch_up"],
  ],
  [
    "restart cancelled: standby",
    { ...standby, restarting: true },
    { type: "restart_cancelled" },
    "standby",
    ["tell_peer back"],
  ],
  ["restart cancelled: nothing was begun", held, { type: "restart_cancelled" }, "protected", []],
  [
    "restart announced: not to one that restarts itself",
    restarting,
    { type: "peer_restarts", request: 1, generation: 5 },
    "protected",
    ["no"],
  ],
  ["succeed", standby, { type: "succeed", request: 1, generation: 5 }, "standby", ["yes"]],
  ["succeed: another replica", standby, { type: "succeed", request: 1, generation: 4 }, "standby", ["no"]],
  [
    "resume wanted: not after `succeed`",
    { ...standby, succeeding: true },
    { type: "resume_wanted", request: 1, generation: 5 },
    "standby",
    ["no"],
  ],
  [
    "end succession",
    { ...alone, peerReady: false, succeededAtMs: NOW },
    { type: "deadline" },
    "alone",
    ["end_succession"],
  ],
  [
    "start: asks",
    state({ phase: "starting", call: undefined }),
    { type: "started", vm: "running" },
    "starting",
    ["read_record"],
  ],
  ["start: first", { ...asked, found: "running" }, answer(undefined), "starting", ["swap_record"]],
  [
    "start: resume",
    { ...asked, found: "running" },
    answer({ ...own, replicaValid: false }),
    "starting",
    ["swap_record"],
  ],
  ["start: a fresh QEMU leaves the VM to its replica", asked, answer(own), "waiting", []],
  ["follow again", left, answer(theirs), "standby", ["follow_again"]],
  [
    "follow again: not what the record says no more",
    left,
    answer({ ...theirs, replicaValid: false }),
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  [
    "follow again: not another generation",
    left,
    answer({ ...theirs, generation: 6 }),
    "starting",
    ["block", "tell_peer replica_lost", "swap_record"],
  ],
  [
    "follow again: the primary needs it no more",
    standby,
    { type: "follow_failed", reason: "" },
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  ["resume: a replica that stands in the record", found, answer(own), "resuming", []],
  ["resume: not without one", found, answer({ ...own, replicaValid: false }), "starting", ["swap_record"]],
  [
    "resume: not with a QEMU that can be no part of a pair",
    { ...found, unsuitable: "too old" },
    answer(own),
    "starting",
    ["swap_record"],
  ],
  ["resume: the peer has the VM", found, answer({ ...theirs, replicaValid: false }), "stopped", ["block"]],
  ["resume: no lease by itself", resuming, round, "resuming", []],
  [
    "resume: the replica's agent answers",
    resuming,
    { type: "heartbeat_answered", path: "control", sentMs: NOW - 20, generation: 5, accepted: true },
    "resuming",
    ["extend_lease", "swap_record"],
  ],
  [
    "resume: it refuses",
    resuming,
    { type: "heartbeat_answered", path: "control", sentMs: NOW - 20, generation: 5, accepted: false },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "resume: it is silent",
    { ...resuming, lastAnswerMs: NOW - 600 },
    { type: "deadline" },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  ["resume: recorded again", recordingAgain, swapped(own), "resuming", ["resume"]],
  [
    "resume: given up in the record meanwhile",
    recordingAgain,
    answer({ ...own, replicaValid: false }, "conflict"),
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "resume: taken by the peer meanwhile",
    recordingAgain,
    answer(theirs, "conflict"),
    "stopped",
    ["block", "end_protection"],
  ],
  [
    "resume: done",
    { ...resuming, protecting: undefined },
    { type: "resumed", generation: 5 },
    "protected",
    ["begin_checkpoints"],
  ],
  ["resume: of another generation", resuming, { type: "resumed", generation: 4 }, "resuming", []],
  [
    "resume: the checkpoint fails",
    resuming,
    { type: "pair_broken", reason: "" },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  ["start: a fresh QEMU is not the VM", asked, answer({ ...own, replicaValid: false }), "stopped", []],
  ["start: somebody else's", asked, answer({ ...theirs, replicaValid: false }), "waiting", []],
  ["start: renounce", asked, answer(theirs), "starting", ["swap_record"]],
  [
    "start: an old copy",
    { ...asked, found: "running" },
    answer({ ...theirs, replicaValid: false }),
    "stopped",
    [],
  ],
  [
    "start: without an arbiter",
    without(state({ phase: "starting" }), { arbiter: false }),
    { type: "started", vm: "running" },
    "starting",
    ["extend_lease", "run_alone"],
  ],
  [
    "resume takeover",
    { ...asked, found: "replica", goal: "invalid" },
    swapped({ ...own, replicaValid: false }),
    "taking_over",
    ["extend_lease", "promote"],
  ],
  [
    "resume",
    { ...asked, found: "running", leaseFrom: "self", call: undefined, term: 3 },
    { type: "alone" },
    "alone",
    [],
  ],
  [
    "start: a QEMU that can keep no replica does not offer itself",
    { ...asked, unsuitable: "too old" },
    answer({ ...theirs, replicaValid: false }),
    "stopped",
    [],
  ],
  ["protect", alone, round, "protecting", ["extend_lease", "protect"]],
  [
    "protect: never on a QEMU that cannot",
    { ...alone, unsuitable: "too old" },
    round,
    "alone",
    ["extend_lease"],
  ],
  [
    "replica wanted: not of a QEMU that cannot",
    { ...waiting, unsuitable: "too old" },
    { type: "prepare", request: 1, generation: 6 },
    "waiting",
    ["no"],
  ],
  [
    "protect: not against the administrator",
    { ...alone, unprotectedUntilMs: Number.POSITIVE_INFINITY },
    round,
    "alone",
    ["extend_lease"],
  ],
  ["primed", copying, { type: "primed", generation: 5 }, "protecting", []],
  [
    "primed: when it was told to end, and nothing undoes itself any more",
    { ...copying, protecting: "undoing" },
    { type: "primed", generation: 5 },
    "going_alone",
    ["tell_peer abandon", "extend_lease", "run_alone"],
  ],
  ["primed: of another attempt", copying, { type: "primed", generation: 4 }, "protecting", []],
  [
    "protected: recorded first",
    awaiting,
    { type: "heartbeat_answered", path: "control", sentMs: NOW - 20, generation: 5, accepted: true },
    "protecting",
    ["extend_lease", "swap_record"],
  ],
  [
    "protected: an answer from before the replica was complete",
    awaiting,
    { type: "heartbeat_answered", path: "control", sentMs: NOW - 60, generation: 5, accepted: true },
    "protecting",
    [],
  ],
  ["protected", { ...awaiting, goal: "valid", call: 4 }, swapped(own), "protected", ["begin_checkpoints"]],
  [
    "protected: without an arbiter",
    without(awaiting, { arbiter: false }),
    { type: "heartbeat_answered", path: "client", sentMs: NOW, generation: 5, accepted: true },
    "protected",
    ["extend_lease", "begin_checkpoints"],
  ],
  [
    "protection failed",
    copying,
    { type: "protection_failed", generation: 5, entered: false, reason: "" },
    "alone",
    ["tell_peer abandon"],
  ],
  [
    "leave",
    copying,
    { type: "protection_failed", generation: 5, entered: true, reason: "" },
    "going_alone",
    ["tell_peer abandon", "extend_lease", "run_alone"],
  ],
  [
    "heartbeat answered",
    held,
    { type: "heartbeat_answered", path: "control", sentMs: NOW - 20, generation: 5, accepted: true },
    "protected",
    ["extend_lease"],
  ],
  [
    "heartbeat answered: overtaken",
    held,
    { type: "heartbeat_answered", path: "client", sentMs: NOW - 200, generation: 5, accepted: false },
    "protected",
    [],
  ],
  [
    "heartbeat answered: another generation",
    held,
    { type: "heartbeat_answered", path: "client", sentMs: NOW, generation: 4, accepted: false },
    "protected",
    [],
  ],
  [
    "go alone: refused",
    held,
    { type: "heartbeat_answered", path: "client", sentMs: NOW, generation: 5, accepted: false },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "go alone: silence",
    { ...held, lastAnswerMs: NOW - 501 },
    { type: "deadline" },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "go alone: silence of the replication link alone",
    { ...held, heardMs: { control: NOW - 501, client: NOW } },
    round,
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "go alone: connection closed",
    held,
    { type: "control_closed" },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "go alone: while copying only the procedure ends",
    copying,
    { type: "control_closed" },
    "protecting",
    ["end_protection"],
  ],
  [
    "go alone: replica lost",
    held,
    { type: "replica_lost", generation: 5, reason: "" },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  [
    "go alone: another replica was lost",
    held,
    { type: "replica_lost", generation: 4, reason: "" },
    "protected",
    [],
  ],
  [
    "go alone: retired and not relieved",
    retired,
    { type: "deadline" },
    "going_alone",
    ["end_protection", "probe_qemu"],
  ],
  ["record alone", probing, { type: "qemu_answers" }, "going_alone", ["swap_record"]],
  [
    "leave the replica",
    recording,
    swapped({ ...own, replicaValid: false }),
    "going_alone",
    ["tell_peer abandon", "extend_lease", "run_alone"],
  ],
  ["alone", leaving, { type: "alone" }, "alone", []],
  ["ask: later, when the arbiter is out of reach", recording, unreachable, "going_alone", []],
  ["ask: an older answer", { ...recording, call: 5 }, swapped(own), "going_alone", []],
  [
    "lost to the peer",
    recording,
    answer({ ...theirs, term: 4 }, "conflict"),
    "stopped",
    ["block", "end_protection"],
  ],
  [
    "lost to another machine of this name",
    recording,
    answer({ ...own, term: 5 }, "conflict"),
    "stopped",
    ["block", "end_protection"],
  ],
  ["QEMU gone", held, gone, "stopped", ["block", "end_protection", "tell_peer give_up"]],
  ["QEMU gone: nobody to tell", alone, gone, "stopped", ["block", "end_protection"]],
  [
    "QEMU gone: shut down",
    { ...held, shutdown: "the VM was shut down" },
    gone,
    "stopped",
    ["block", "end_protection", "tell_peer abandon", "swap_record"],
  ],
  [
    "QEMU silent",
    held,
    { type: "qemu_silent", reason: "" },
    "stopped",
    ["block", "end_protection", "tell_peer give_up"],
  ],
  ["QEMU silent: nobody to take over", alone, { type: "qemu_silent", reason: "" }, "alone", []],
  [
    "hand over",
    held,
    { type: "fail_over_wanted", request: 1, reason: "" },
    "handing_over",
    ["yes", "hand_over"],
  ],
  ["hand over: worse off", held, { type: "uplink", up: false }, "handing_over", ["hand_over"]],
  [
    "hand over: the peer is no better off",
    { ...held, peerUplink: false },
    { type: "uplink", up: false },
    "protected",
    [],
  ],
  [
    "hand over: not without an arbiter",
    without(held, { arbiter: false }),
    { type: "fail_over_wanted", request: 1, reason: "" },
    "protected",
    ["no"],
  ],
  [
    "retire",
    handing,
    { type: "handed_over" },
    "handing_over",
    ["retire", "end_protection", "tell_peer give_up"],
  ],
  ["prepare", waiting, { type: "prepare", request: 1, generation: 6 }, "incoming", ["yes"]],
  ["prepare: refused", standby, { type: "prepare", request: 1, generation: 6 }, "standby", ["no"]],
  ["follow", incoming, { type: "entered", request: 1, generation: 5 }, "standby", ["yes"]],
  ["follow: another attempt", incoming, { type: "entered", request: 1, generation: 4 }, "incoming", ["no"]],
  [
    "heartbeat",
    standby,
    { type: "heartbeat", request: 1, path: "client", generation: 5 },
    "standby",
    ["yes"],
  ],
  [
    "heartbeat: another generation",
    standby,
    { type: "heartbeat", request: 1, path: "client", generation: 4 },
    "standby",
    ["no"],
  ],
  [
    "heartbeat: after the takeover may be written",
    taking,
    { type: "heartbeat", request: 1, path: "client", generation: 5 },
    "taking_over",
    ["no"],
  ],
  [
    "heartbeat: after the primary gave up",
    { ...standby, givenUp: true },
    { type: "heartbeat", request: 1, path: "client", generation: 5 },
    "standby",
    ["no"],
  ],
  [
    "useless: nobody makes it any more",
    { ...incoming, lastAnswerMs: NOW - 501 },
    round,
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  [
    "useless: abandoned",
    standby,
    { type: "abandoned", generation: 5, reason: "" },
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  [
    "useless: its overlays are full",
    standby,
    { type: "overlays_full", reason: "" },
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  [
    "overlays full: not while it may be the last copy",
    claiming,
    { type: "overlays_full", reason: "" },
    "standby",
    [],
  ],
  [
    "overlays full: not once the primary gave up",
    { ...standby, givenUp: true },
    { type: "overlays_full", reason: "" },
    "standby",
    [],
  ],
  ["claim: waits for the lease", { ...claiming, lastAnswerMs: NOW - 1_199 }, round, "standby", []],
  ["claim: due", claiming, round, "standby", ["read_record"]],
  [
    "claim: at once, if the primary gave up",
    standby,
    { type: "peer_gave_up", generation: 5, reason: "" },
    "standby",
    ["read_record"],
  ],
  ["claim: never without an arbiter", without(claiming, { arbiter: false }), round, "standby", []],
  ["take", { ...claiming, goal: "take", call: 4 }, answer(theirs), "taking_over", ["swap_record"]],
  [
    "take: refused, out of date",
    { ...claiming, goal: "take", call: 4 },
    answer({ ...theirs, replicaValid: false }),
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  [
    "take: refused, another generation",
    { ...claiming, goal: "take", call: 4 },
    answer({ ...theirs, generation: 6 }),
    "stopped",
    ["block", "tell_peer replica_lost"],
  ],
  ["take: written", taking, swapped({ ...own, term: 4 }), "taking_over", ["extend_lease", "promote"]],
  [
    "take: its answer was lost",
    taking,
    answer({ ...own, term: 4 }),
    "taking_over",
    ["extend_lease", "promote"],
  ],
  [
    "fence: after the takeover is recorded",
    without(taking, { fence: "required" }),
    swapped({ ...own, term: 4 }),
    "taking_over",
    ["fence"],
  ],
  [
    "fence: not who gave up",
    without({ ...taking, givenUp: true }, { fence: "required" }),
    swapped({ ...own, term: 4 }),
    "taking_over",
    ["extend_lease", "promote"],
  ],
  [
    "promote by hand",
    without(standby, { arbiter: false }),
    { type: "promote_wanted", request: 1 },
    "taking_over",
    ["yes", "extend_lease", "promote"],
  ],
  [
    "promote by hand: not with an arbiter",
    standby,
    { type: "promote_wanted", request: 1 },
    "standby",
    ["no"],
  ],
  ["promoted", promoting, { type: "promoted" }, "alone", []],
  [
    "promotion failed",
    promoting,
    { type: "promotion_failed", reason: "" },
    "stopped",
    ["block", "end_protection"],
  ],
];

function told(action: Action): string {
  if (action.type === "tell_peer") return `tell_peer ${action.what}`;
  if (action.type === "answer") return action.refusal === undefined ? "yes" : "no";
  return action.type;
}

test("each case's actions, whole", async () => {
  const lines = CASES.map(([name, before, event]) => {
    const actions = decide(before, event, NOW).actions.map((action) => `  ${JSON.stringify(action)}`);
    return [name, ...actions].join("\n");
  });
  const text = `${lines.join("\n")}\n`;
  expect(text).toBe(await goldenText("decisions.txt", text));
});

test.each(CASES)("%s", (_, before, event, phase, actions) => {
  const copy = structuredClone(before);
  const decision = decide(before, event, NOW);
  expect(before).toEqual(copy); // pure
  expect([decision.state.phase, ...decision.actions.map(told)]).toEqual([phase, ...actions]);
  expect([brokenInvariant(before), brokenInvariant(decision.state)]).toEqual([undefined, undefined]);
});

describe("what is written", () => {
  const swap = (before: State, event: Event) =>
    decide(before, event, NOW).actions.find((action) => action.type === "swap_record");

  test("a takeover: next term, on the revision that was read", () => {
    expect(swap({ ...claiming, goal: "take", call: 4 }, answer(theirs))).toMatchObject({
      expectedRevision: 7,
      record: { term: 4, generation: 5, holder: "a", replicaValid: false },
    });
  });

  test("invalid, again even if it stands there", () => {
    expect(swap({ ...asked, found: "running" }, answer({ ...own, replicaValid: false }))).toMatchObject({
      expectedRevision: 7,
      record: { term: 3, generation: 5, holder: "a", replicaValid: false },
    });
  });

  test("renounced: the holder stays", () => {
    expect(swap(asked, answer(theirs))?.record).toEqual({
      term: 3,
      generation: 5,
      holder: "b",
      replicaValid: false,
    });
  });
});

describe("the lease", () => {
  const until = (before: State, event: Event, nowMs = NOW) =>
    decide(before, event, nowMs).actions.find((action) => action.type === "extend_lease")?.untilMs;

  test("counts from the sending of the heartbeat", () => {
    const event: Event = {
      type: "heartbeat_answered",
      path: "control",
      sentMs: NOW - 90,
      generation: 5,
      accepted: true,
    };
    expect(until(held, event)).toBe(NOW - 90 + SETTINGS.leaseMs);
    expect(until(held, event, NOW + 5_000)).toBe(NOW - 90 + SETTINGS.leaseMs);
  });

  test("is prolonged by a round only where the record says that there is no replica", () => {
    expect(until({ ...alone, peerReady: false }, round)).toBe(NOW + SETTINGS.leaseMs);
    for (const before of [held, awaiting, probing, recording, retired, standby, taking])
      expect(until(before, round)).toBeUndefined();
  });
});

test("a fence command that must succeed is asked again, and the VM waits", () => {
  const fencing = without(
    { ...taking, goal: undefined, claim: { ...taking.claim!, fence: "running" } },
    { fence: "required" },
  );
  const failed = decide(fencing, { type: "fenced", ok: false, output: "no answer" }, NOW);
  expect(failed.actions).toEqual([]);
  expect(decide(failed.state, round, NOW + 299).actions).toEqual([]);
  expect(decide(failed.state, round, NOW + 300).actions.map(told)).toEqual(["fence"]);
  const succeeded = decide(fencing, { type: "fenced", ok: true, output: "" }, NOW);
  expect(succeeded.actions.map(told)).toEqual(["extend_lease", "promote"]);
  const tried = decide(without(fencing, { fence: "try" }), { type: "fenced", ok: false, output: "" }, NOW);
  expect(tried.actions.map(told)).toEqual(["extend_lease", "promote"]);
});

test("heartbeats name the replica that is made or depended on", () => {
  expect([copying, awaiting, held, handing].map(heartbeatGeneration)).toEqual([5, 5, 5, 5]);
  expect([alone, probing, retired, standby, taking].map(heartbeatGeneration)).toEqual(
    Array(5).fill(undefined),
  );
});

test("a deadline never lies in the past for good: the event that comes then changes it", () => {
  for (const [name, before] of CASES) {
    // Now, and when nothing else happens for long: each deadline in turn, to the last one.
    let s = before;
    for (let nowMs = NOW; nowMs < NOW + 60_000; ) {
      const atMs = Math.max(nowMs, nextDeadlineMs(s));
      if (!Number.isFinite(atMs)) break;
      s = decide(s, { type: "deadline" }, atMs).state;
      expect([name, nextDeadlineMs(s) > atMs]).toEqual([name, true]);
      nowMs = atMs;
    }
  }
});

describe("what happens when nothing happens", () => {
  const dueIn = (before: State) => nextDeadlineMs(before) - NOW;

  test("is due as soon as it can be, in the phases that only wait for a message", () => {
    expect(dueIn({ ...copying, heardMs: { control: NOW - 100, client: NOW } })).toBe(400);
    expect(dueIn(incoming)).toBe(400);
    expect(dueIn(standby)).toBe(400);
    expect(dueIn({ ...alone, protectAtMs: NOW + 700 })).toBe(700);
    expect(dueIn({ ...alone, protectAtMs: NOW + 700, unprotectedUntilMs: NOW + 900 })).toBe(900);
    expect(dueIn({ ...alone, unprotectedUntilMs: Number.POSITIVE_INFINITY })).toBe(Number.POSITIVE_INFINITY);
    expect(dueIn({ ...alone, peerReady: false })).toBe(Number.POSITIVE_INFINITY);
  });

  test("happens at a deadline as at a round", () => {
    const at = (before: State) => decide(before, { type: "deadline" }, nextDeadlineMs(before));
    expect(at(incoming).state.phase).toBe("stopped");
    expect(at(standby).state.claim).toBeDefined();
    expect(at({ ...alone, protectAtMs: NOW + 700 }).state.phase).toBe("protecting");
  });

  test("an attempt to protect is told to end once", () => {
    const silent = { ...copying, heardMs: { control: NOW - 600, client: NOW } };
    const first = decide(silent, round, NOW);
    expect(first.actions.map(({ type }) => type)).toEqual(["extend_lease", "end_protection"]);
    const second = decide(first.state, round, NOW + 100);
    expect(second.actions.map(({ type }) => type)).toEqual(["extend_lease"]);
    expect(nextDeadlineMs(second.state)).toBe(Number.POSITIVE_INFINITY);
  });
});

test("a takeover is refused from whatever does not cover what was seen", () => {
  expect(takeoverRefusal(standby, theirs)).toBeUndefined();
  expect(takeoverRefusal(standby, { ...theirs, replicaValid: false })).toContain("out of date");
  expect(takeoverRefusal(standby, { ...theirs, generation: 4 })).toContain("generation 4");
  expect(takeoverRefusal(standby, own)).toContain("names this host");
});

describe("a secondary's agent that is restarted as announced", () => {
  const pausing = decide(held, { type: "peer_restarts", request: 1, generation: 5 }, NOW - 20);
  const paused: Event = { type: "checkpoints_paused", request: 1, whose: "peer", generation: 5 };
  const announced = decide(pausing.state, paused, NOW).state;
  const closed = decide(announced, { type: "control_closed" }, NOW + 10);
  const refused: Event = {
    type: "heartbeat_answered",
    path: "control",
    sentMs: NOW + 300,
    generation: 5,
    accepted: false,
  };

  test("is waited for, for as long as is configured, and prolongs no lease meanwhile", () => {
    expect(pausing.actions.map(told)).toEqual(["pause_checkpoints"]);
    expect(decide(pausing.state, paused, NOW).actions.map(told)).toEqual(["yes"]);
    expect(closed).toMatchObject({ state: { phase: "protected" }, actions: [] });
    expect(decide(closed.state, refused, NOW + 400)).toMatchObject({
      state: { phase: "protected" },
      actions: [],
    });
    const late = NOW + SETTINGS.restartMs;
    expect(nextDeadlineMs(closed.state)).toBe(late);
    expect(decide(closed.state, round, late - 1).state.phase).toBe("protected");
    expect(decide(closed.state, round, late).state.phase).toBe("going_alone");
  });

  test("goes on when it is back, and counts as heard", () => {
    const back = decide(closed.state, { type: "peer_is_back", request: 1, generation: 5 }, NOW + 2_000);
    expect(back.actions.map(told)).toEqual(["catch_up", "yes"]);
    expect(decide(back.state, round, NOW + 2_010).state.phase).toBe("protected");
    expect(decide(back.state, { ...refused, sentMs: NOW + 2_020 }, NOW + 2_030).state.phase).toBe(
      "going_alone",
    );
  });

  test("that does not end after all is not waited for any longer", () => {
    const answered: Event = { ...refused, sentMs: NOW + SETTINGS.restartMs, accepted: true };
    const { state: heard } = decide(announced, answered, NOW + SETTINGS.restartMs);
    const later = { ...heard, heardMs: { ...heard.heardMs, control: NOW + SETTINGS.restartMs } };
    const { state: on, actions } = decide(later, round, NOW + SETTINGS.restartMs + 1);
    expect(on.phase).toBe("protected");
    expect(actions.map(({ type }) => type)).toEqual(["catch_up"]);
  });

  test("is not waited for by a VM whose replica is lost otherwise", () => {
    const broken = decide(closed.state, { type: "pair_broken", reason: "" }, NOW + 20).state;
    expect(broken.phase).toBe("going_alone");
    expect(broken.peerBackByMs).toBe(Number.NEGATIVE_INFINITY);
  });
});

describe("a primary's agent that is restarted as announced", () => {
  const announced = decide(standby, { type: "peer_restarts", request: 1, generation: 5 }, NOW).state;
  const closed = decide(announced, { type: "control_closed" }, NOW + 10).state;

  test("is waited for, for as long as is configured", () => {
    expect(closed.claim).toBeUndefined();
    const late = NOW + SETTINGS.restartMs;
    expect(decide(closed, round, late - 1).state.claim).toBeUndefined();
    const { state: given, actions } = decide(closed, round, late);
    expect(given.claim).toBeDefined();
    // Its lease ran out long ago.
    expect(actions.map(({ type }) => type)).toEqual(["read_record"]);
  });

  test("is waited for no longer once it is back", () => {
    const back = decide(closed, { type: "resume_wanted", request: 1, generation: 5 }, NOW + 400).state;
    expect(decide(back, { type: "control_closed" }, NOW + 500).state.claim).toBeDefined();
  });

  test("gets the VM taken over at once if it gives up", () => {
    const { actions } = decide(closed, { type: "peer_gave_up", generation: 5, reason: "" }, NOW + 10);
    expect(actions.map(({ type }) => type)).toEqual(["read_record"]);
  });

  test("says so of its own generation only", () => {
    const other = decide(standby, { type: "peer_restarts", request: 1, generation: 4 }, NOW).state;
    expect(decide(other, { type: "control_closed" }, NOW + 10).state.claim).toBeDefined();
  });
});

describe("invariants", () => {
  const BROKEN: [string, State][] = [
    ["a replica with a lease", { ...standby, leaseFrom: "peer" }],
    ["a holder that is alone and depends on answers", { ...alone, leaseFrom: "peer" }],
    ["protected, and still being copied", { ...held, protecting: "copying" }],
    ["copying, and answers count", { ...copying, leaseFrom: "peer" }],
    ["going alone outside of going_alone", { ...held, goingAlone: "probing" }],
    ["a lease before the replica is invalid", { ...recording, leaseFrom: "self" }],
    ["a takeover wanted without a claim", { ...standby, goal: "take" }],
    ["a question without an arbiter", without({ ...asked, call: 4 }, { arbiter: false })],
    ["a claim of a holder", { ...held, claim: { reason: "", sinceMs: NOW, fence: "none" } }],
    ["a takeover that is not committed", { ...taking, committed: false }],
    ["retired outside of a hand-over", { ...alone, retiredMs: NOW }],
    ["a holder that succeeds", { ...alone, succeeding: true }],
    ["a holder of no term", { ...alone, term: undefined }],
  ];

  test.each(BROKEN)("%s", (_, broken) => {
    expect(brokenInvariant(broken)).toBeString();
  });

  test("each of them is broken by one of these", () => {
    const names = new Set(BROKEN.map(([, broken]) => brokenInvariant(broken)));
    expect(names.size).toBe(INVARIANT_COUNT);
  });
});

test("each request gets one answer, at once or after what it waits for, in every phase", () => {
  const requests: Request[] = [
    { type: "heartbeat", path: "control", generation: 5 },
    { type: "prepare", generation: 6 },
    { type: "entered", generation: 5 },
    { type: "succeed", generation: 5 },
    { type: "resume_wanted", generation: 5 },
    { type: "peer_restarts", generation: 5 },
    { type: "peer_is_back", generation: 5 },
    { type: "restart_wanted" },
    { type: "fail_over_wanted", reason: "" },
    { type: "unprotect_wanted", untilMs: NOW + 1_000 },
    { type: "protect_wanted" },
    { type: "promote_wanted" },
    { type: "boot_wanted" },
  ];
  for (const [name, before] of CASES) {
    for (const request of requests) {
      let { state: s, actions } = decide(before, { ...request, request: 9 }, NOW);
      const answers: Action[] = [];
      for (let step = 0; step < 4; step++) {
        answers.push(...actions.filter(({ type }) => type === "answer"));
        const next = actions.find(
          (action) => action.type === "pause_checkpoints" || action.type === "ask_peer_to_wait",
        );
        if (next === undefined) break;
        const event: Event =
          next.type === "pause_checkpoints"
            ? { ...next, type: "checkpoints_paused" }
            : { type: "peer_waits", request: 9, refusal: undefined, atRest: true };
        ({ state: s, actions } = decide(s, event, NOW + 1));
      }
      expect([name, request.type, answers.length]).toEqual([name, request.type, 1]);
    }
  }
});
