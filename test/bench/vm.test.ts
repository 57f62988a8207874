/**
 * `bench vm` in its quick form: four ways side by side, each figure with its peers. How fast is not tested.
 */
import { expect, test } from "bun:test";
import { existsSync } from "node:fs";
import { benchVm } from "../../src/bench/bench_vm.ts";
import { namespacePath, namespacesOf } from "../../src/lab/network.ts";
import { expectFigures, figure } from "./figures.ts";

const TIMEOUT_MS = 300_000;
const WAYS = ["none", "two-vms", "qemu", "colo-agent"];

test(
  "the same traffic to a guest in four ways",
  async () => {
    const skipped: { subject: string; why: string }[] = [];
    const results = await benchVm({
      quick: true,
      runs: 1,
      wanted: () => true,
      progress: () => undefined,
      skipped: (subject, why) => skipped.push({ subject, why }),
    });
    expectFigures(results, "vm");
    // What QEMU's proxy does not carry is said; nobody else may fail.
    expect(skipped.filter(({ subject }) => subject !== "qemu")).toEqual([]);

    const cases = [...new Set(results.map((one) => one.case))];
    expect(cases).toHaveLength(5);
    for (const name of cases) {
      for (const subject of WAYS) {
        if (skipped.some((one) => one.subject === subject && one.why.startsWith(`${name}: `))) continue;
        const work = name.startsWith("TCP") ? "throughput" : name.startsWith("UDP") ? "echoes" : "requests";
        expect(figure(results, name, subject, work).median).toBeGreaterThan(0);
        expect(figure(results, name, subject, "CPU of primary's QEMU").median).toBeGreaterThan(0);
      }
      for (const subject of ["none", "two-vms"]) {
        expect(figure(results, name, subject, "checkpoints").max).toBe(0);
      }
      expect(figure(results, name, "colo-agent", "CPU of agents").median).toBeGreaterThan(0);
      expect(figure(results, name, "two-vms", "CPU of secondary's QEMU").median).toBeGreaterThan(0);
    }
    // Two copies of a guest never agree on the time: an answer with it leaves only after a checkpoint.
    const clock = figure(results, "HTTP, the guest's clock", "colo-agent", "checkpoints");
    expect(clock.median).toBeGreaterThan(0);

    for (const lab of ["bench-vm", "bench-vm2"]) {
      for (const name of Object.values(namespacesOf(lab))) {
        expect(existsSync(namespacePath(name))).toBe(false);
      }
    }
  },
  TIMEOUT_MS,
);
