import { expect, test } from "bun:test";
import { count, given } from "../variables.ts";
import { Simulation } from "./simulation.ts";

/** COLO_COMPARE_SEED=n seeds.length that one only; COLO_COMPARE_RUNS=n seeds.length more of them. */
const seeds =
  given("COLO_COMPARE_SEED") === undefined
    ? Array.from({ length: count("COLO_COMPARE_RUNS") }, (_, i) => 1 + i)
    : [count("COLO_COMPARE_SEED")];

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

test("with losses, differences and checkpoints: nothing unverified leaves, all leave in the end", () => {
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
  if (given("COLO_COMPARE_SEED") !== undefined) return;
  // The simulation must have been where it hurts.
  expect(checkpoints).toBeGreaterThan(2 * seeds.length);
  expect(compared).toBeGreaterThan(50 * seeds.length);
  expect(fragments).toBeGreaterThan(50 * seeds.length);
  expect(parts).toBeGreaterThan(seeds.length);
  expect([...classes].toSorted()).toEqual(
    ["length", "missing_on_primary", "missing_on_secondary", "payload"].filter((name) => classes.has(name)),
  );
  expect(classes.has("payload")).toBe(true);
  expect(classes.has("missing_on_secondary")).toBe(true);
}, 600_000);
