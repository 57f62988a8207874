/**
 * Real faults in the lab, many in a row on one lab, each judged by a capture on the clients' switch
 * (single_sender.ts).
 *
 *   COLO_FAULT_CYCLES=300    so many cycles; by default each fault once
 *   COLO_FAULT_SEED=7        another order and other moments
 *   COLO_FAULT_ONLY=uplink   only faults whose names match this expression
 *   COLO_FAULT_FIGURES=PATH  the figures of all cycles as JSON
 */
import { afterAll, describe, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random } from "../random.ts";
import { count, text } from "../variables.ts";
import { FAULT_CASES } from "./fault_cases.ts";
import { faultTable } from "./fault_figures.ts";
import { FaultRig } from "./fault_rig.ts";

/** A cycle, and the start of a new lab before it if the one before went wrong. */
const CYCLE_TIMEOUT_MS = 400_000;
const CYCLES_MIN = 30;

const seed = count("COLO_FAULT_SEED");
const wanted = new RegExp(text("COLO_FAULT_ONLY") ?? "");
const cases = FAULT_CASES.filter(({ name }) => wanted.test(name));
const cycles = count("COLO_FAULT_CYCLES") || Math.max(CYCLES_MIN, cases.length);

/** Every fault once, in an order of the seed's, then any. */
function plan() {
  const random = new Random(seed);
  const deck = [...cases];
  const order = [];
  while (order.length < cycles) {
    if (deck.length === 0) deck.push(...cases);
    order.push(...deck.splice(random.integer(0, deck.length - 1), 1));
  }
  return order;
}

describe(`${cycles} faults in a row, seed ${seed}`, () => {
  const rig = new FaultRig(seed, join(tmpdir(), `colo-test-faults-${process.pid}`));

  for (const [index, fault] of plan().entries()) {
    const number = index + 1;
    test(
      `${number}. ${fault.name}`,
      async () => {
        const { gapMs } = await rig.cycle(number, fault);
        expect(gapMs).toBeGreaterThan(0);
      },
      CYCLE_TIMEOUT_MS,
    );
  }

  test(
    "the judge finds a frame that the other host sends with the VM's MAC",
    async () => {
      expect((await rig.forgery()).join()).toMatch(/changed ports [12] times with 0 takeover/);
    },
    CYCLE_TIMEOUT_MS,
  );

  test("every client got every byte", () => rig.close(), CYCLE_TIMEOUT_MS);

  afterAll(async () => {
    console.log(faultTable(rig.figures));
    const path = text("COLO_FAULT_FIGURES");
    if (path !== undefined)
      writeFileSync(path, `${JSON.stringify({ seed, cycles: rig.figures }, undefined, 2)}\n`);
    await rig.close();
  }, CYCLE_TIMEOUT_MS);
});
