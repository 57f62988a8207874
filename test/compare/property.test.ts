import { expect, test } from "bun:test";
import { Simulation } from "./simulation.ts";

/** COLO_COMPARE_SEED=n runs that one only; COLO_COMPARE_RUNS=n runs more of them. */
const only = process.env.COLO_COMPARE_SEED;
const runs = Number(process.env.COLO_COMPARE_RUNS ?? 200);
const seeds = only === undefined ? Array.from({ length: runs }, (_, i) => 1 + i) : [Number(only)];

function simulate(seed: number, hostile: boolean): Simulation {
  const simulation = new Simulation({ seed, steps: hostile ? 1500 : 600, hostile, parts: seed % 2 === 0 });
  try {
    simulation.run();
  } catch (cause) {
    throw new Error(`Run it again with COLO_COMPARE_SEED=${seed}: ${(cause as Error).message}`, { cause });
  }
  return simulation;
}

test("streams cut, repeated and reordered differently match without any divergence", () => {
  for (const seed of seeds) simulate(seed, false);
}, 600_000);

test("with losses, differences and checkpoints nothing unverified leaves, and everything leaves in the end", () => {
  let checkpoints = 0;
  let compared = 0;
  let fragments = 0;
  let parts = 0;
  const classes = new Set<string>();
  for (const seed of seeds) {
    const simulation = simulate(seed, true);
    checkpoints += simulation.checkpoints;
    compared += simulation.bench.comparer.stats.releasedByComparison;
    fragments += simulation.fragments;
    parts += simulation.parts;
    for (const name of simulation.bench.classes) classes.add(name);
  }
  if (only !== undefined) return;
  // The simulation must have been where it hurts.
  expect(checkpoints).toBeGreaterThan(2 * runs);
  expect(compared).toBeGreaterThan(50 * runs);
  expect(fragments).toBeGreaterThan(50 * runs);
  expect(parts).toBeGreaterThan(runs);
  expect([...classes].toSorted()).toEqual(
    ["length", "missing_on_primary", "missing_on_secondary", "payload"].filter((name) => classes.has(name)),
  );
  expect(classes.has("payload")).toBe(true);
  expect(classes.has("missing_on_secondary")).toBe(true);
}, 600_000);
