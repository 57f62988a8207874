import { afterAll, beforeAll, expect, test } from "bun:test";
import { count, given } from "../variables.ts";
import { DIFFERENCES, type DifferenceName } from "./differences.ts";
import { Generator } from "./generator.ts";
import { QemuCompare } from "./qemu_compare.ts";
import { runSideBySide } from "./side_by_side.ts";

/**
 * COLO_DIFF_SEED=n runs that one sequence only; COLO_DIFF_SEQUENCES=n runs more or fewer of them;
 * COLO_DIFF_FIRST=n begins with another seed than 1.
 */
const single = given("COLO_DIFF_SEED") !== undefined;
const sequences = single ? 1 : count("COLO_DIFF_SEQUENCES");
const first = count(single ? "COLO_DIFF_SEED" : "COLO_DIFF_FIRST");

/** QEMU forgets everything at 16 384 connections; a sequence has at most three. */
const SEQUENCES_PER_QEMU = 4000;

let qemu: QemuCompare | undefined;

beforeAll(async () => {
  qemu = await QemuCompare.start();
}, 60_000);

afterAll(async () => {
  await qemu?.stop();
});

test("every difference between the two comparers is a documented one", async () => {
  const seen = new Map<DifferenceName, number>();
  const totals = { steps: 0, releasedTogether: 0, askedTogether: 0, agreed: 0, cutShort: 0 };
  for (let i = 0; i < sequences; i++) {
    if (i > 0 && i % SEQUENCES_PER_QEMU === 0) {
      await qemu?.stop();
      qemu = await QemuCompare.start();
    }
    const seed = first + i;
    const generator = new Generator(seed);
    const steps = generator.run();
    try {
      const result = await runSideBySide(steps, qemu!);
      totals.steps += result.steps;
      totals.releasedTogether += result.releasedTogether;
      totals.askedTogether += result.askedTogether;
      if (result.differences.size === 0) totals.agreed++;
      if (result.unpredictable) totals.cutShort++;
      for (const name of result.differences.keys()) seen.set(name, (seen.get(name) ?? 0) + 1);
    } catch (cause) {
      const message = `Run it again with COLO_DIFF_SEED=${seed} (${generator.features}):`;
      throw new Error(`${message}\n${(cause as Error).message}`, { cause });
    }
  }
  if (given("COLO_DIFF_VERBOSE") !== undefined) console.log(totals, seen);
  if (sequences < 2000) return;
  // The sequences must have been where it matters: agreement and every documented difference.
  expect(totals.steps).toBeGreaterThan(20 * sequences);
  expect(totals.agreed).toBeGreaterThan(0.15 * sequences);
  expect(totals.releasedTogether).toBeGreaterThan(3 * sequences);
  expect(totals.askedTogether).toBeGreaterThan(0.05 * sequences);
  expect(totals.cutShort).toBeLessThan(0.1 * sequences);
  expect([...seen.keys()].toSorted()).toEqual((Object.keys(DIFFERENCES) as DifferenceName[]).toSorted());
}, 3_600_000);
