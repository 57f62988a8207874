/**
 * Real TCP stacks on both sides of the whole data path, at random: connections are opened either way, bytes
 * flow both ways, the two guests cut, pace and read them differently, frames are lost; at some moment the
 * primary's host dies and the secondary goes on. Every byte of every connection has to be right to the end.
 *
 * The two guests share no state that a checkpoint could make equal again. A run in which the comparer asks
 * for one cannot go on: it counts as such, never as passed, and there must be few.
 *
 *   COLO_STACK_RUNS=2000   more runs
 *   COLO_STACK_FIRST=1000  other seeds, from this one on
 *   COLO_STACK_SEED=7      only the run with this seed
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { removeNamespaces } from "../bpf/network.ts";
import { count, text } from "../variables.ts";
import { Lane, PREFIX } from "./lane.ts";
import { compileLoss } from "./loss.ts";
import { drawScenario } from "./scenario.ts";

const SEED = text("COLO_STACK_SEED");
const RUNS = count("COLO_STACK_RUNS");
/** Runs at a time. They mostly wait. */
const LANES = SEED === undefined ? 4 : 1;
const CHECKPOINTS_SHARE_MAX = 0.1;
/** So many runs see all that can happen. */
const COVERING_RUNS = 100;

const directory = mkdtempSync(join(tmpdir(), "colo-test-stacks-"));
const lanes: Lane[] = [];

beforeAll(async () => {
  removeNamespaces(PREFIX);
  const object = join(directory, "loss.bpf.o");
  compileLoss(object);
  for (let i = 0; i < LANES; i++) lanes.push(new Lane(i, object));
  for (const lane of lanes) await lane.ready();
}, 60_000);

afterAll(async () => {
  for (const lane of lanes) await lane.close();
  removeNamespaces(PREFIX);
  rmSync(directory, { recursive: true, force: true });
}, 60_000);

test("connections outlive the primary's host, byte for byte", async () => {
  const first = SEED === undefined ? count("COLO_STACK_FIRST") : count("COLO_STACK_SEED");
  const runs = SEED === undefined ? RUNS : 1;
  const checkpoints: string[] = [];
  let next = 0;
  let passed = 0;
  let underWay = 0;

  const work = async (lane: Lane) => {
    while (next < runs) {
      const seed = first + next++;
      try {
        const outcome = await lane.run(drawScenario(seed, lane.runs));
        if (outcome.kind === "checkpoint") {
          checkpoints.push(`COLO_STACK_SEED=${seed}: ${outcome.why}`);
        } else {
          passed++;
          if (outcome.underWay) underWay++;
        }
      } catch (error) {
        next = runs;
        throw new Error(`COLO_STACK_SEED=${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
  };
  // All of them, for a lane must not be taken down in the middle of a run.
  for (const result of await Promise.allSettled(lanes.map(work))) {
    if (result.status === "rejected") throw result.reason;
  }

  const sum = (of: (lane: Lane) => number) => lanes.reduce((total, lane) => total + of(lane), 0);
  console.log(
    `${passed} runs from seed ${first} on went on to the end (${underWay} of them with a failover under ` +
      `way), ${checkpoints.length} needed a checkpoint; ${sum((lane) => lane.stat("windows_clamped"))} ` +
      `windows clamped, ${sum((lane) => lane.stat("parts_sent"))} parts sent`,
  );
  expect(passed + checkpoints.length).toBe(runs);
  if (runs >= COVERING_RUNS) {
    if (checkpoints.length > runs * CHECKPOINTS_SHARE_MAX) {
      throw new Error(`${checkpoints.length} runs needed a checkpoint:\n${checkpoints.join("\n")}`);
    }
    // What this test is about did happen.
    expect(underWay).toBeGreaterThan(runs / 2);
    expect(sum((lane) => lane.stat("windows_clamped"))).toBeGreaterThan(0);
    expect(sum((lane) => lane.stat("parts_sent"))).toBeGreaterThan(0);
    for (const place of ["to_guest", "to_client", "tunnel_a", "tunnel_b"] as const) {
      expect(sum((lane) => lane.dropped(place))).toBeGreaterThan(0);
    }
    expect(sum((lane) => lane.checksums.right)).toBeGreaterThan(runs);
  }
  expect(sum((lane) => lane.checksumErrors())).toBe(0);
  expect(lanes.flatMap((lane) => lane.checksums.wrong)).toEqual([]);
}, 600_000);
