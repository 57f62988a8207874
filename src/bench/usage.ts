/** What a run takes: wall time, and CPU time of the processes that do the work. */
import { readdirSync, readFileSync } from "node:fs";
import type { FigureKey, ResultSet } from "./result.ts";

export interface Usage {
  seconds: number;
  cpuSeconds: number;
}

/** Of this process: its kernel time and its helper threads (compiler, collector) included. */
export function measureUsage(run: () => void): Usage {
  const cpu = process.cpuUsage();
  const start = performance.now();
  run();
  const seconds = (performance.now() - start) / 1000;
  const { user, system } = process.cpuUsage(cpu);
  return { seconds, cpuSeconds: (user + system) / 1e6 };
}

const TICKS_PER_SECOND = 100; // USER_HZ, the same on every architecture that the agent runs on

/** CPU time that a process has used so far, all threads that live together. In seconds. */
export function processCpuSeconds(pid: number): number {
  let nanoseconds = 0;
  try {
    // The first number of schedstat is the time on a CPU in ns (Documentation/scheduler/sched-stats.rst).
    for (const task of readdirSync(`/proc/${pid}/task`)) {
      nanoseconds += Number(readFileSync(`/proc/${pid}/task/${task}/schedstat`, "latin1").split(" ")[0]);
    }
    return nanoseconds / 1e9;
  } catch {
    // It has ended, or the kernel has no schedstat: the coarser clock ticks.
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  }
}

/** The three figures of a run over so many packets. */
export function addRates(
  results: ResultSet,
  key: Pick<FigureKey, "case" | "subject">,
  { seconds, cpuSeconds }: Usage,
  packets: number,
  frameBytes: number,
): void {
  results.add({ ...key, metric: "packets", unit: "packets/s" }, packets / seconds);
  results.add({ ...key, metric: "throughput", unit: "Gb/s" }, (packets * frameBytes * 8) / seconds / 1e9);
  results.add({ ...key, metric: "CPU per million packets", unit: "s" }, (cpuSeconds / packets) * 1e6);
}
