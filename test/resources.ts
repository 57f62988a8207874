/** What this process has in use of the kernel, for tests that something is given back. */
import { readdirSync, readFileSync } from "node:fs";

export interface Resources {
  descriptors: number;
  /** Mappings of BPF maps. */
  mappings: number;
  threads: number;
}

export function resourcesInUse(): Resources {
  const maps = readFileSync("/proc/self/maps", "latin1").split("\n");
  return {
    descriptors: readdirSync("/proc/self/fd").length,
    mappings: maps.filter((line) => line.includes("bpf-map")).length,
    threads: readdirSync("/proc/self/task").length,
  };
}
