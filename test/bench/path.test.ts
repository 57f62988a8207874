/** `bench path` in its quick form: every figure has its peers and makes sense. How fast is not tested. */
import { expect, test } from "bun:test";
import { benchPath } from "../../src/bench/bench_path.ts";
import { expectFigures, figure } from "./figures.ts";

const TIMEOUT_MS = 240_000;
const SUBJECTS = ["colo-agent", "none", "qemu"];
const NEIGHBOURS = ["alone", "beside 2 busy threads", "beside a busy VM"];
const DELAYS = ["delay p50", "delay p90", "delay p99", "delay p99.9"];

test(
  "the delay of a frame through the agent, over a bare bridge and through colo-compare",
  async () => {
    const skipped: string[] = [];
    const results = await benchPath({
      quick: true,
      runs: 2,
      wanted: () => true,
      progress: () => {},
      skipped: (subject, why) => skipped.push(`${subject}: ${why}`),
    });
    expect(skipped).toEqual([]);
    expectFigures(results, "path");
    expect(new Set(results.map((one) => one.subject))).toEqual(new Set([...SUBJECTS, ...NEIGHBOURS]));

    const delays = results.filter((one) => one.unit === "us" && SUBJECTS.includes(one.subject));
    const cases = [...new Set(delays.map((one) => one.case))];
    expect(cases).toHaveLength(1);
    for (const subject of SUBJECTS) {
      const values = DELAYS.map((metric) => figure(results, cases[0], subject, metric).median);
      expect(values[0]).toBeGreaterThan(0);
      expect(values).toEqual([...values].sort((a, b) => a - b));
      const rate = figure(results, "frames of 1448 B", subject, "highest rate without loss");
      expect(rate.min).toBeGreaterThan(0);
    }
    // The agent's frame passes the bare bridge too, and much else.
    const fastest = (subject: string) => figure(results, cases[0], subject, "delay p50").min;
    expect(fastest("colo-agent")).toBeGreaterThan(fastest("none"));

    // A busy VM takes from a quiet one what busy threads take from anybody, no more.
    const quiet = "quiet VM, 500 frames/s of 1448 B";
    const [alone, besideThreads, besideVm] = NEIGHBOURS.map((subject) =>
      figure(results, quiet, subject, "delay p50"),
    );
    expect(figure(results, quiet, NEIGHBOURS[2], "the busy VM's").min).toBeGreaterThan(0);
    expect(besideVm.min).toBeLessThan(5 * Math.max(alone.max, besideThreads.max));
    for (const subject of NEIGHBOURS) expect(figure(results, quiet, subject, "lost").min).toBe(0);
  },
  TIMEOUT_MS,
);
