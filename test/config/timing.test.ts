/** The inequalities between the times: each can be broken, and each sentence's advice mends it. */
import { describe, expect, test } from "bun:test";
import {
  marginMsMin,
  SCHEDULING_ALLOWANCE_MS,
  type Timing,
  timingMistakes,
} from "../../src/config/timing.ts";

const GOOD = {
  heartbeat: { interval_ms: 100, timeout_ms: 1_000, lease_ms: 1_000, margin_ms: 200, clock_drift_ppm: 500 },
  arbiter: { timeout_ms: 500, endpoints: 3 },
  watchdog: { timeout_s: 10 },
} satisfies Timing;

/** Does what a sentence says: "set [TABLE.]KEY to at least|at most N". */
function follow(timing: Timing, sentence: string): Timing {
  const advice = /: set (?:(\w+)\.)?(\w+) to at (?:least|most) (-?\d+)/.exec(sentence);
  if (advice === null) throw new Error(`no advice in: ${sentence}`);
  const [, table = "heartbeat", key, number] = advice;
  const copy = structuredClone(timing) as unknown as Record<string, Record<string, number>>;
  expect(copy[table]).toHaveProperty(key!);
  copy[table]![key!] = Number(number);
  return copy as unknown as Timing;
}

/** A small generator with a fixed seed (Park and Miller). */
function random(seed: number): (below: number) => number {
  let state = seed;
  return (below) => {
    state = (state * 48_271) % 2_147_483_647;
    return state % below;
  };
}

describe("timing", () => {
  test("the defaults hold", () => expect(timingMistakes(GOOD)).toEqual([]));

  test.each<[string, Timing]>([
    [
      "margin_ms to at least 52",
      { ...GOOD, heartbeat: { ...GOOD.heartbeat, margin_ms: 50, lease_ms: 1_100 } },
    ],
    ["margin_ms to at least 273", { ...GOOD, heartbeat: { ...GOOD.heartbeat, clock_drift_ppm: 100_000 } }],
    ["timeout_ms to at least 200", { ...GOOD, heartbeat: { ...GOOD.heartbeat, timeout_ms: 199 } }],
    ["lease_ms to at least 300", { heartbeat: { ...GOOD.heartbeat, lease_ms: 299, timeout_ms: 300 } }],
    ["timeout_ms to at most 1100", { ...GOOD, heartbeat: { ...GOOD.heartbeat, timeout_ms: 1_101 } }],
    ["arbiter.timeout_ms to at most 1200", { ...GOOD, arbiter: { timeout_ms: 1_201, endpoints: 1 } }],
    ["arbiter.timeout_ms to at least 150", { ...GOOD, arbiter: { timeout_ms: 149, endpoints: 3 } }],
    [
      "watchdog.timeout_s to at least 3",
      { ...GOOD, heartbeat: { ...GOOD.heartbeat, lease_ms: 2_001 }, watchdog: { timeout_s: 2 } },
    ],
  ])("broken: set %s", (advice, timing) => {
    const mistakes = timingMistakes(timing);
    expect(mistakes.some((sentence) => sentence.includes(`set ${advice}`))).toBe(true);
  });

  test("the margin covers two clocks that drift apart, and not much more", () => {
    for (const driftPpm of [0, 1, 500, 5_000, 100_000]) {
      for (const leaseMs of [50, 1_000, 60_000]) {
        const drift = driftPpm / 1e6;
        // Real time: the holder's clock is slow, the other one's fast.
        const leaseEndsMs = leaseMs / (1 - drift);
        const takeoverMs = (margin: number) => (leaseMs + margin) / (1 + drift);
        const margin = marginMsMin(leaseMs, driftPpm) - SCHEDULING_ALLOWANCE_MS;
        expect(takeoverMs(margin)).toBeGreaterThanOrEqual(leaseEndsMs - 1e-9);
        expect(takeoverMs(margin - 1)).toBeLessThan(leaseEndsMs);
      }
    }
  });

  test("following the advice mends any set of times", () => {
    const pick = random(20_261_123);
    let broken = 0;
    for (let round = 0; round < 2_000; round++) {
      let timing: Timing = {
        heartbeat: {
          interval_ms: 10 + pick(2_000),
          timeout_ms: 50 + pick(8_000),
          lease_ms: 50 + pick(8_000),
          margin_ms: pick(1_000),
          clock_drift_ppm: pick(100_001),
        },
        arbiter: { timeout_ms: 50 + pick(10_000), endpoints: 1 + pick(9) },
        watchdog: { timeout_s: 1 + pick(10) },
      };
      const first = timingMistakes(timing);
      if (first.length > 0) broken++;
      for (let step = 0; step < 12; step++) {
        const mistakes = timingMistakes(timing);
        if (mistakes.length === 0) break;
        timing = follow(timing, mistakes[0]!);
        expect(timingMistakes(timing)).not.toContain(mistakes[0]!);
      }
      // Lowering timeout_ms and raising it again can only go round where the interval is too long for the
      // lease.
      expect([round, timingMistakes(timing)]).toEqual([round, []]);
    }
    expect(broken).toBeGreaterThan(1_000);
  });
});
