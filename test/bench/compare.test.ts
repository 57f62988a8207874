/** `bench compare` in its quick form: every figure has its peers and makes sense. How fast is not tested. */
import { expect, test } from "bun:test";
import { existsSync, readdirSync } from "node:fs";
import { tmpdir } from "node:os";
import { benchCompare } from "../../src/bench/bench_compare.ts";
import type { BenchResult } from "../../src/bench/result.ts";
import { expectFigures, figure } from "./figures.ts";

const TIMEOUT_MS = 240_000;
const METRICS = ["packets", "throughput", "CPU per million packets"];

/** What this process would leave behind. */
function leftovers(): string[] {
  const mine = `colo-bench-${process.pid}-`;
  const [names, pins, folders] = ["/run/netns", "/sys/fs/bpf/colo-bench", tmpdir()].map((directory) =>
    existsSync(directory) ? readdirSync(directory) : [],
  );
  return [
    ...names.filter((name) => name.startsWith(mine)),
    ...pins.filter((name) => name.startsWith(`${process.pid}-`)),
    ...folders.filter((name) => name.startsWith(mine)),
  ];
}

test(
  "comparison beside memcmp, comparison and release beside QEMU and the kernel alone",
  async () => {
    const steps: string[] = [];
    const skipped: string[] = [];
    const results = await benchCompare({
      quick: true,
      runs: 2,
      wanted: () => true,
      progress: (text) => steps.push(text),
      skipped: (subject, why) => skipped.push(`${subject}: ${why}`),
    });
    expect(skipped).toEqual([]);
    expect(leftovers()).toEqual([]);
    expectFigures(results, "compare");

    const cases = [...new Set(results.map((one) => one.case))];
    expect(steps).toEqual(expect.arrayContaining(cases));
    expect(cases.filter((name) => name.startsWith("comparison, "))).toHaveLength(3);
    expect(cases.filter((name) => name.startsWith("comparison and release, "))).toHaveLength(4);
    for (const name of cases) {
      const alone = name.startsWith("comparison, ");
      for (const subject of alone ? ["colo-agent", "limit"] : ["colo-agent", "qemu", "limit"]) {
        for (const metric of METRICS) {
          const one: BenchResult = figure(results, name, subject, metric);
          expect(one.min).toBeGreaterThan(0);
          expect(one.runs).toBe(2);
        }
      }
      // A comparison cannot be done in less CPU time than its calls of memcmp. (Wall time may: others' work.)
      const cpu = (subject: string) => figure(results, name, subject, "CPU per million packets").min;
      expect(cpu("colo-agent")).toBeGreaterThan(cpu("limit") / 2);
    }
  },
  TIMEOUT_MS,
);
