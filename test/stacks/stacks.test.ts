/**
 * Real TCP stacks on both sides of the whole data path, at random: connections are opened either way, bytes flow both
 * ways, the two guests cut, pace and read them differently, frames are lost; at some moment the primary's host dies and
 * the secondary goes on. Every byte of every connection has to be right to the end.
 *
 * The two guests share no state that a checkpoint could make equal again. A run in which the comparer asks for one
 * cannot go on: it counts as such, never as passed, and there must be few.
 *
 *   COLO_STACK_RUNS=2000   more runs
 *   COLO_STACK_SEED=7      only the run with this seed
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { removeNamespaces } from "../bpf/network.ts";
import { Lane, PREFIX } from "./lane.ts";
import { compileLoss } from "./loss.ts";
import { drawScenario } from "./scenario.ts";

const SEED = process.env.COLO_STACK_SEED;
const RUNS = Number(process.env.COLO_STACK_RUNS ?? 200);
const LANES = SEED === undefined ? Number(process.env.COLO_STACK_LANES ?? 4) : 1;
const CHECKPOINTS_SHARE_MAX = 0.1;

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
  const first = SEED === undefined ? (Math.random() * 2 ** 31) | 0 : Number(SEED);
  const count = SEED === undefined ? RUNS : 1;
  let next = 0;
  let passed = 0;
  const checkpoints: string[] = [];
  const work = async (lane: Lane) => {
    while (next < count) {
      const seed = first + next++;
      const scenario = drawScenario(seed, lane.runs);
      const begun = performance.now();
      try {
        const outcome = await lane.run(scenario);
        if (outcome.kind === "passed") passed++;
        else checkpoints.push(`COLO_STACK_SEED=${seed}: ${outcome.detail}`);
        if (process.env.COLO_STACK_VERBOSE)
          console.log(
            seed,
            outcome.kind,
            outcome.detail,
            Math.round(performance.now() - begun),
            JSON.stringify(scenario.loss),
          );
      } catch (error) {
        next = count;
        console.log(seed, (error as Error).message);
        throw new Error(`COLO_STACK_SEED=${seed}: ${(error as Error).message}`, { cause: error });
      }
    }
  };
  // All of them, for a lane must not be taken down in the middle of a run.
  for (const { reason } of (await Promise.allSettled(lanes.map(work))) as PromiseRejectedResult[]) {
    if (reason !== undefined) throw reason;
  }
  expect(passed + checkpoints.length).toBe(count);
  if (SEED === undefined && checkpoints.length > count * CHECKPOINTS_SHARE_MAX) {
    throw new Error(`${checkpoints.length} of ${count} runs needed a checkpoint:\n${checkpoints.join("\n")}`);
  }
  for (const lane of lanes) {
    for (const errors of Object.values(lane.checksumErrors())) expect(errors).toBe(0);
  }
}, 600_000);
