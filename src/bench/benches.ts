/** The benchmarks by name, each loaded when it is asked for. */
import type { Bench, BenchName } from "./result.ts";

export const BENCHES: Record<BenchName, { title: string; load: () => Promise<Bench> }> = {
  compare: {
    title: "comparing and releasing frames",
    load: async () => (await import("./compare.ts")).benchCompare,
  },
  path: {
    title: "delay of a frame on its way to the network",
    load: async () => (await import("./path.ts")).benchPath,
  },
  vm: {
    title: "a protected VM's traffic",
    load: async () => (await import("./vm.ts")).benchVm,
  },
  checkpoint: {
    title: "checkpoints and failover",
    load: async () => (await import("./checkpoint.ts")).benchCheckpoint,
  },
};
