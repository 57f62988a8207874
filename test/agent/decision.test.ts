/** The decisions of who may send, case by case. */
import { describe, expect, test } from "bun:test";
import {
  decideInitialRole,
  decideReplicaValid,
  decideTakeover,
  type TakeoverFacts,
} from "../../src/agent/decision.ts";

const facts: TakeoverFacts = {
  record: { revision: 7, term: 3, generation: 5, holder: "a", replicaValid: true },
  self: "b",
  nowMs: 10_000,
  lastAnswerMs: 8_000,
  leaseMs: 1_000,
  marginMs: 200,
  givenUp: false,
};

describe("takeover", () => {
  test("is written with a new term when the lease and the margin are over", () => {
    expect(decideTakeover(facts)).toEqual({
      action: "take",
      expectedRevision: 7,
      record: { term: 4, generation: 5, holder: "b", replicaValid: false },
    });
  });

  test("waits for the rest of lease and margin after the last answer", () => {
    expect(decideTakeover({ ...facts, lastAnswerMs: 9_500 })).toEqual({ action: "wait", ms: 700 });
    expect(decideTakeover({ ...facts, lastAnswerMs: 8_800 })).toMatchObject({ action: "take" });
    expect(decideTakeover({ ...facts, lastAnswerMs: 8_801 })).toEqual({ action: "wait", ms: 1 });
  });

  test("an agent that cannot know of an earlier answer waits the whole time", () => {
    expect(decideTakeover({ ...facts, lastAnswerMs: undefined })).toEqual({ action: "wait", ms: 1_200 });
  });

  test("does not wait for a holder that has given up", () => {
    expect(decideTakeover({ ...facts, lastAnswerMs: 9_999, givenUp: true })).toMatchObject({
      action: "take",
    });
  });

  test("is refused from a stale replica, even when the holder has given up", () => {
    const record = { ...facts.record!, replicaValid: false };
    expect(decideTakeover({ ...facts, record, givenUp: true })).toMatchObject({ action: "refuse" });
  });

  test("is refused without a record and by the holder itself", () => {
    expect(decideTakeover({ ...facts, record: undefined })).toMatchObject({ action: "refuse" });
    expect(decideTakeover({ ...facts, self: "a" })).toMatchObject({ action: "refuse" });
  });
});

describe("the holder's record", () => {
  test("is made when there is none", () => {
    expect(decideReplicaValid(undefined, "a", false)).toEqual({
      action: "write",
      expectedRevision: 0,
      record: { term: 1, generation: 0, holder: "a", replicaValid: false },
    });
  });

  test("'valid' is written once; 'invalid' always, so that a late 'valid' cannot undo it", () => {
    const record = facts.record!;
    expect(decideReplicaValid(record, "a", true)).toEqual({ action: "keep" });
    expect(decideReplicaValid(record, "a", false)).toMatchObject({ action: "write", expectedRevision: 7 });
    expect(decideReplicaValid({ ...record, replicaValid: false }, "a", false)).toMatchObject({
      action: "write",
    });
    expect(decideReplicaValid({ ...record, replicaValid: false }, "a", true)).toMatchObject({
      action: "write",
    });
  });

  test("of another holder means: stop", () => {
    expect(decideReplicaValid(facts.record, "b", false)).toMatchObject({ action: "stop" });
  });
});

test("the record decides the role, the configuration only while there is none", () => {
  expect(decideInitialRole(undefined, "a", "primary")).toBe("primary");
  expect(decideInitialRole(undefined, "b", "secondary")).toBe("secondary");
  expect(decideInitialRole(facts.record, "b", "primary")).toBe("secondary");
  expect(decideInitialRole(facts.record, "a", "secondary")).toBe("primary");
});
