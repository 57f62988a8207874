/**
 * Guards against a slow-down without a clock: what is allocated for a packet on its way from the rings to the
 * socket.
 */
import { heapStats } from "bun:jsc";
import { expect, test } from "bun:test";
import { removeLeftovers } from "../../src/bench/bench_namespace.ts";
import { ReleaseBench } from "../../src/bench/release.ts";
import { Traffic } from "../../src/bench/segments.ts";

const TIMEOUT_MS = 240_000;

test(
  "nothing is allocated for a packet on its way from the rings to the packet socket",
  async () => {
    removeLeftovers();
    let grown = 0;
    let kept: object[] | undefined;
    const options = { payloadBytes: 256, flows: 100, rounds: 200 };
    const traffic = new Traffic(options);
    const measure = (run: () => void) => {
      Bun.gc(true);
      const before = heapStats().heapCapacity;
      run();
      if (kept !== undefined) for (let i = 0; i < traffic.count; i++) kept.push({ i }, { i });
      grown += heapStats().heapCapacity - before;
      return { seconds: 0, cpuSeconds: 0 };
    };
    const bench = await ReleaseBench.create({ measure });
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
      // The same with two small objects for each frame: what the measurement shows when something is
      // allocated.
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
