/**
 * `bench checkpoint` in its quick form: every figure has its peer and makes sense. How fast is not tested.
 */
import { expect, test } from "bun:test";
import { benchCheckpoint } from "../../src/bench/bench_checkpoint.ts";
import { expectFigures, figure } from "./figures.ts";

const TIMEOUT_MS = 240_000;
const SIDES = ["primary stopped", "secondary stopped"];

test(
  "pauses on both hosts, QEMU's own way beside the agents', idle and with memory being changed",
  async () => {
    const steps: string[] = [];
    const skipped: string[] = [];
    const results = await benchCheckpoint({
      quick: true,
      runs: 1,
      wanted: () => true,
      progress: (text) => steps.push(text),
      skipped: (subject, why) => skipped.push(`${subject}: ${why}`),
    });
    expect(skipped).toEqual([]);
    expectFigures(results, "checkpoint");
    expect(steps.some((step) => step.includes("qemu"))).toBe(true);
    expect(steps.some((step) => step.includes("colo-agent"))).toBe(true);

    const cases = [...new Set(results.map((one) => one.case))];
    expect(cases).toEqual(["idle", "16 MiB/s changed", "64 MiB/s changed"]);
    for (const subject of ["qemu", "colo-agent"]) {
      for (const name of cases) {
        for (const side of SIDES) {
          const middle = figure(results, name, subject, side).median;
          expect(middle).toBeGreaterThan(0);
          expect(figure(results, name, subject, `${side}, longest`).median).toBeGreaterThanOrEqual(middle);
        }
        expect(figure(results, name, subject, "primary runs in between").median).toBeGreaterThan(0);
      }
      // The guest did change its memory, and that is what the checkpoints carried.
      const sent = (name: string) =>
        figure(results, name, subject, "sent to the secondary per checkpoint").median;
      expect(sent("64 MiB/s changed")).toBeGreaterThan(2 * sent("idle"));
    }
    for (const name of cases) {
      // Input is withheld from before the STOP until after the RESUME.
      const withheld = figure(results, name, "colo-agent", "primary's input withheld, mean").median;
      expect(withheld).toBeGreaterThan(0);
    }
  },
  TIMEOUT_MS,
);
