/** Each transition of docs/failover.md by itself; test/simulation tries them together. */
import { describe, expect, test } from "bun:test";
import type { Action } from "../../src/failover/actions.ts";
import { nextDeadlineMs } from "../../src/failover/deadlines.ts";
import { decide, heartbeatGeneration } from "../../src/failover/decide.ts";
import type { Event, Request } from "../../src/failover/events.ts";
import { takeoverRefusal } from "../../src/failover/goal.ts";
import { brokenInvariant } from "../../src/failover/invariants.ts";
import type { State } from "../../src/failover/state.ts";
import { goldenText } from "../golden.ts";
import { CASES } from "./cases.ts";
import { SETTINGS } from "./settings.ts";
import {
  alone,
  answer,
  asked,
  awaiting,
  claiming,
  copying,
  handing,
  held,
  incoming,
  NOW,
  own,
  probing,
  recording,
  retired,
  round,
  standby,
  taking,
  theirs,
  told,
  without,
} from "./states.ts";

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
