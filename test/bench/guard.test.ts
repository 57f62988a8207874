/**
 * Guards against a slow-down that no clock of a busy machine can hide or fake: what is allocated for a packet on its
 * way from the rings to the packet socket, and CPU time in proportion to that of memcmp on the same bytes in the same
 * run. The bounds have room to spare; docs/performance.md has the figures.
 */
import { heapStats } from "bun:jsc";
import { describe, expect, test } from "bun:test";
import { CompareAlone } from "../../src/bench/compare_alone.ts";
import { removeLeftovers } from "../../src/bench/network.ts";
import { ReleaseBench } from "../../src/bench/release.ts";
import { LARGE_PAYLOAD_BYTES, SEGMENT_BYTES, Traffic } from "../../src/bench/traffic.ts";

const TIMEOUT_MS = 240_000;
const WORKING_SET_BYTES = 96 * 1024 * 1024;
const RUNS = 7;

/** Smallest CPU time of several interleaved runs: what others do can only make it longer. */
function cpuRatio(payloadBytes: number): number {
  const bench = new CompareAlone({ payloadBytes, flows: 100, resegmented: false }, WORKING_SET_BYTES);
  try {
    bench.compare();
    let compare = Number.POSITIVE_INFINITY;
    let memcmp = Number.POSITIVE_INFINITY;
    for (let run = 0; run < RUNS; run++) {
      compare = Math.min(compare, bench.compare().cpuSeconds);
      memcmp = Math.min(memcmp, bench.memcmp().cpuSeconds);
    }
    return compare / memcmp;
  } finally {
    bench.close();
  }
}

describe("CPU time of a comparison, as a multiple of memcmp's on the same bytes", () => {
  test.each([
    ["full frames", SEGMENT_BYTES, 16],
    ["large segments", LARGE_PAYLOAD_BYTES, 3],
  ])(
    "%s",
    (_what, payloadBytes, most) => {
      expect(cpuRatio(payloadBytes)).toBeLessThan(most);
    },
    TIMEOUT_MS,
  );
});

test(
  "nothing is allocated for a packet on its way from the rings to the packet socket",
  () => {
    removeLeftovers();
    let grown = 0;
    let kept: object[] | undefined;
    const options = { payloadBytes: 256, flows: 100, rounds: 200 };
    const traffic = new Traffic(options);
    const bench = new ReleaseBench((run) => {
      Bun.gc(true);
      const before = heapStats().heapCapacity;
      run();
      if (kept !== undefined) for (let i = 0; i < traffic.count; i++) kept.push({ i }, { i });
      grown += heapStats().heapCapacity - before;
      return { seconds: 0, cpuSeconds: 0 };
    });
    /** Bytes by which the heap's blocks grow for each frame. */
    const growth = (runs: number): number => {
      grown = 0;
      for (let run = 0; run < runs; run++) {
        bench.compareAndRelease(traffic, traffic, options.rounds * options.payloadBytes);
      }
      return grown / (runs * traffic.count);
    };
    try {
      growth(5);
      const steady = growth(10);
      // The same with two small objects for each frame: what the measurement shows when something is allocated.
      kept = [];
      const control = growth(4);
      expect(kept).toHaveLength(4 * 2 * traffic.count);
      expect(control).toBeGreaterThan(8);
      expect(steady).toBeLessThan(control / 10);
    } finally {
      bench.close();
    }
  },
  TIMEOUT_MS,
);
