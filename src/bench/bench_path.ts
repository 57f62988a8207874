/**
 * `bench path`: the delay that the agent adds to a frame, and the highest rate that it keeps up with. Two
 * hosts' namespaces with everything real but the VMs: bridge, taps, VXLAN between the hosts, injection pair,
 * BPF programs, the data-path worker. The same frames are written into both VMs' taps; the clock runs from
 * the moment before the primary's is written until it can be read at another port of the primary's bridge.
 * Beside it the same bridge, with nothing attached to it, and QEMU's colo-compare by itself. At last a quiet
 * VM beside a busy one (neighbours.ts).
 *
 * One thread writes, reads and takes both times; it spins, so the agent has one core less.
 */

import { removeLeftovers } from "./bench_namespace.ts";
import { benchNeighbours } from "./neighbours.ts";
import { PlainBridge, ProtectedBridge, QemuSockets, type Way } from "./path_ways.ts";
import { addDelays, type Bench, type BenchContext, ResultSet, type Subject } from "./result.ts";
import { SEGMENT_BYTES } from "./segments.ts";

const RATES = [1_000, 5_000, 20_000, 50_000];
const RATES_QUICK = [5_000];
const RUN_SECONDS = 2;
const RUN_SECONDS_QUICK = 0.5;
const WARM_UP_RATE = 5_000;
const WARM_UP_SECONDS = 0.5;
/** The search for the highest rate goes up by this factor. */
const RATE_STEP = 1.25;
const RATE_START = 10_000;
const RATE_MAX = 2_000_000;
const RATE_MAX_QUICK = 40_000;
const RAMP_SECONDS = 0.5;
/** The highest rate counts if the sender keeps up with it this far. */
const KEPT_UP = 0.95;

export const benchPath: Bench = async (context) => {
  const results = new ResultSet("path");
  removeLeftovers();
  context.progress("setting up");
  const ways: Ways = new Map();
  const makers: [Subject, () => ClosableWay | Promise<ClosableWay>][] = [
    ["colo-agent", () => ProtectedBridge.create()],
    ["none", () => new PlainBridge()],
    ["qemu", () => QemuSockets.create()],
  ];
  try {
    for (const [subject, make] of makers) {
      try {
        ways.set(subject, await make());
      } catch (error) {
        context.skipped(subject, (error as Error).message);
      }
    }
    await delays(ways, context, results);
    await highestRates(ways, context, results);
  } finally {
    for (const way of ways.values()) await way.close();
  }
  try {
    await benchNeighbours(context, results);
  } catch (error) {
    context.skipped("colo-agent", `a quiet VM beside a busy one: ${(error as Error).message}`);
  }
  return results.toJson();
};

type ClosableWay = Way & { close(): void | Promise<void> };
type Ways = Map<Subject, ClosableWay>;

/** `measure` with each way in turn. One that fails is left out from then on, and says why. */
async function each(
  ways: Ways,
  { skipped }: BenchContext,
  what: string,
  measure: (subject: Subject, way: Way) => Promise<void>,
): Promise<void> {
  for (const [subject, way] of ways) {
    try {
      await measure(subject, way);
    } catch (error) {
      skipped(subject, `${what}: ${(error as Error).message}`);
      ways.delete(subject);
      await way.close();
    }
  }
}

async function delays(ways: Ways, context: BenchContext, results: ResultSet): Promise<void> {
  const { quick, runs, progress } = context;
  await each(
    ways,
    context,
    "warming up",
    async (_, way) => void (await way.run(WARM_UP_RATE, WARM_UP_SECONDS)),
  );
  for (const rate of quick ? RATES_QUICK : RATES) {
    const name = `${rate} frames/s of ${SEGMENT_BYTES} B`;
    if (!context.wanted(name)) continue;
    for (let run = 0; run < runs; run++) {
      await each(ways, context, name, async (subject, way) => {
        progress(`${name}, ${subject}, run ${run + 1} of ${runs}`);
        const { delaysNs, lost } = await way.run(rate, quick ? RUN_SECONDS_QUICK : RUN_SECONDS);
        addDelays(results, { case: name, subject }, delaysNs);
        results.add({ case: name, subject, metric: "lost", unit: "frames" }, lost);
      });
    }
  }
}

async function highestRates(ways: Ways, context: BenchContext, results: ResultSet): Promise<void> {
  const { quick, runs, progress } = context;
  const metric = "highest rate without loss";
  const name = `frames of ${SEGMENT_BYTES} B`;
  if (!context.wanted(name)) return;
  for (let run = 0; run < runs; run++) {
    await each(ways, context, metric, async (subject, way) => {
      progress(`${metric}, ${subject}, run ${run + 1} of ${runs}`);
      const rate = await highestRate(way, quick ? RATE_MAX_QUICK : RATE_MAX);
      if (rate === 0) throw new Error(`even at ${RATE_START} frames/s it loses some`);
      results.add({ case: name, subject, metric, unit: "frames/s" }, rate);
    });
  }
}

/**
 * The highest rate that was really offered and lost nothing; the sender's own limit, should that come first.
 */
async function highestRate(way: Way, rateMax: number): Promise<number> {
  let highest = 0;
  for (let rate = RATE_START; rate <= rateMax; rate *= RATE_STEP) {
    const { lost, offered } = await way.run(rate, RAMP_SECONDS);
    if (lost > 0) break;
    highest = Math.max(highest, offered);
    if (offered < rate * KEPT_UP) break;
  }
  return highest;
}
