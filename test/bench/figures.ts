/** What every list of benchmark figures has to be. */
import { expect } from "bun:test";
import type { BenchName, BenchResult } from "../../src/bench/result.ts";

const KEYS = ["bench", "case", "subject", "metric", "unit", "median", "min", "max", "runs"];

/** Shape and sanity: exactly the keys of the contract, finite and ordered numbers, each figure once. */
export function expectFigures(results: readonly BenchResult[], bench: BenchName): void {
  expect(results.length).toBeGreaterThan(0);
  const seen = new Set<string>();
  for (const one of results) {
    expect(Object.keys(one)).toEqual(KEYS);
    expect(one.bench).toBe(bench);
    for (const text of [one.case, one.subject, one.metric, one.unit]) expect(text).not.toBe("");
    for (const value of [one.median, one.min, one.max]) {
      expect(Number.isFinite(value)).toBe(true);
      expect(value).toBeGreaterThanOrEqual(0);
    }
    expect(one.min).toBeLessThanOrEqual(one.median);
    expect(one.median).toBeLessThanOrEqual(one.max);
    expect(one.runs).toBeGreaterThan(0);
    const key = [one.case, one.subject, one.metric].join("|");
    expect(seen.has(key)).toBe(false);
    seen.add(key);
  }
}

/** One figure; fails the test if it is missing. */
export function figure(
  results: readonly BenchResult[],
  name: string,
  subject: string,
  metric: string,
): BenchResult {
  const found = results.find((one) => one.case === name && one.subject === subject && one.metric === metric);
  if (found === undefined) throw new Error(`there is no "${metric}" of ${subject} for "${name}"`);
  return found;
}
