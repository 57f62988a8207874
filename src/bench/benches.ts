/** The benchmarks by name, each loaded when it is asked for. */
import type { Bench, BenchName } from "./result.ts";

interface BenchEntry {
  title: string;
  /** What it takes by default on two cores, about. */
  minutes: number;
  /** Repetitions where others have too many: each of these starts real VMs. */
  runs?: { usual: number; quick: number };
  load: () => Promise<Bench>;
}

export const BENCHES: Record<BenchName, BenchEntry> = {
  compare: {
    title: "comparing and releasing frames",
    minutes: 2,
    load: async () => (await import("./bench_compare.ts")).benchCompare,
  },
  path: {
    title: "delay of a frame on its way to the network",
    minutes: 5,
    load: async () => (await import("./bench_path.ts")).benchPath,
  },
  vm: {
    title: "a protected VM's traffic",
    minutes: 10,
    runs: { usual: 3, quick: 1 },
    load: async () => (await import("./bench_vm.ts")).benchVm,
  },
  checkpoint: {
    title: "the VM's pause for a checkpoint",
    minutes: 4,
    runs: { usual: 3, quick: 1 },
    load: async () => (await import("./bench_checkpoint.ts")).benchCheckpoint,
  },
};
