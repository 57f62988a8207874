/** What holds of every state. */
import { describe, expect, test } from "bun:test";
import { brokenInvariant, INVARIANT_COUNT } from "../../src/failover/invariants.ts";
import type { State } from "../../src/failover/state.ts";
import { alone, asked, copying, held, NOW, recording, standby, taking, without } from "./states.ts";

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
