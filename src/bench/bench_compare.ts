/**
 * `bench compare`: how fast frames are compared, alone and together with their release to the bridge, against
 * QEMU's colo-compare and against what memory and kernel allow.
 */

import { VNET_BYTES } from "../ffi/layout.ts";
import { removeLeftovers } from "./bench_namespace.ts";
import { CompareAlone } from "./compare_alone.ts";
import { QemuColoCompare } from "./qemu_compare.ts";
import { ReleaseBench, roundsPerRing } from "./release.ts";
import { type Bench, type BenchContext, ResultSet, type Subject } from "./result.ts";
import {
  HEADER_BYTES,
  LARGE_PAYLOAD_BYTES,
  SEGMENT_BYTES,
  Traffic,
  type TrafficOptions,
} from "./segments.ts";
import { addRates, type Usage } from "./usage.ts";

interface CompareCase {
  payloadBytes: number;
  flows: number;
  resegmented: boolean;
  /** That share the flows; 1. */
  workers?: number;
}

const SAME = { resegmented: false };
const CUT = { resegmented: true };

/**
 * Every size with few and many flows; the large one with at most 100, or the working set would be gigabytes.
 */
const ALONE_CASES: readonly CompareCase[] = [
  ...[64, 256, SEGMENT_BYTES].flatMap((payloadBytes) =>
    [1, 100, 10_000].flatMap((flows) => [
      { payloadBytes, flows, ...SAME },
      { payloadBytes, flows, ...CUT },
    ]),
  ),
  ...[1, 100].flatMap((flows) => [
    { payloadBytes: LARGE_PAYLOAD_BYTES, flows, ...SAME },
    { payloadBytes: LARGE_PAYLOAD_BYTES, flows, ...CUT },
  ]),
];

const RELEASE_CASES: readonly CompareCase[] = [
  { payloadBytes: 64, flows: 100, ...SAME },
  { payloadBytes: 64, flows: 100, ...SAME, workers: 2 },
  { payloadBytes: 256, flows: 100, ...SAME },
  { payloadBytes: SEGMENT_BYTES, flows: 1, ...SAME },
  { payloadBytes: SEGMENT_BYTES, flows: 100, ...SAME },
  { payloadBytes: SEGMENT_BYTES, flows: 100, ...SAME, workers: 2 },
  { payloadBytes: SEGMENT_BYTES, flows: 100, ...CUT },
  { payloadBytes: SEGMENT_BYTES, flows: 10_000, ...SAME },
  { payloadBytes: LARGE_PAYLOAD_BYTES, flows: 100, ...SAME },
];

const QUICK_CASES: readonly CompareCase[] = [
  { payloadBytes: 64, flows: 100, ...SAME },
  { payloadBytes: SEGMENT_BYTES, flows: 100, ...CUT },
  { payloadBytes: LARGE_PAYLOAD_BYTES, flows: 100, ...SAME },
];

const QUICK_RELEASE_CASES: readonly CompareCase[] = [
  ...QUICK_CASES,
  { payloadBytes: 64, flows: 100, ...SAME, workers: 2 },
];

/** Several times any cache, so that every record is read from memory. */
const WORKING_SET_BYTES = 256 * 1024 * 1024;
const WORKING_SET_QUICK_BYTES = 128 * 1024 * 1024;
/** Frames in a run that goes through the kernel. */
const FRAMES_MAX = 100_000;
const FRAMES_MAX_QUICK = 20_000;
/**
 * Runs before the counted ones. Each thread compiles its own code, on cores that several workers keep busy.
 */
const WARM_UPS_OF_WORKERS = 8;

export const benchCompare: Bench = async (context) => {
  const results = new ResultSet("compare");
  for (const one of context.quick ? QUICK_CASES : ALONE_CASES) compareAlone(one, context, results);
  await compareAndRelease(context, results);
  return results.toJson();
};

function caseName(what: string, { payloadBytes, flows, resegmented, workers = 1 }: CompareCase): string {
  const size = payloadBytes >= 10_000 ? `${(payloadBytes / 1000).toFixed(0)} kB` : `${payloadBytes} B`;
  const many = flows === 1 ? "1 flow" : `${flows.toLocaleString("en").replace(",", " ")} flows`;
  const shared = workers > 1 ? `, ${workers} workers` : "";
  return `${what}, ${size}, ${many}${resegmented ? ", cut differently" : ""}${shared}`;
}

function compareAlone(one: CompareCase, context: BenchContext, results: ResultSet): void {
  const name = caseName("comparison", one);
  if (!context.wanted(name)) return;
  context.progress(name);
  const bench = new CompareAlone(one, context.quick ? WORKING_SET_QUICK_BYTES : WORKING_SET_BYTES);
  try {
    const { packets, frameBytes } = bench;
    bench.compare();
    for (let run = 0; run < context.runs; run++) {
      addRates(results, { case: name, subject: "colo-agent" }, bench.compare(), packets, frameBytes);
      addRates(results, { case: name, subject: "limit" }, bench.memcmp(), packets, frameBytes);
    }
  } catch (error) {
    context.skipped("colo-agent", `${name}: ${(error as Error).message}`);
  } finally {
    bench.close();
  }
}

/** A subject that fails is left out of the case, with the reason; the others continue. */
async function compareAndRelease(context: BenchContext, results: ResultSet): Promise<void> {
  removeLeftovers();
  for (const one of context.quick ? QUICK_RELEASE_CASES : RELEASE_CASES) {
    const name = caseName("comparison and release", one);
    if (!context.wanted(name)) continue;
    context.progress(name);
    const { payloadBytes, flows } = one;
    const framesMax = context.quick ? FRAMES_MAX_QUICK : FRAMES_MAX;
    const rounds = roundsPerRing(VNET_BYTES + HEADER_BYTES + payloadBytes, flows, framesMax);
    const options: TrafficOptions = { payloadBytes, flows, rounds };
    const shifted: TrafficOptions = { ...options, shifted: one.resegmented };
    const primary = new Traffic(options);
    const secondary = new Traffic(shifted);
    const streamBytes = rounds * payloadBytes;
    const frameBytes = HEADER_BYTES + payloadBytes;
    const subjects = new Map<Subject, CaseSubject>();
    const giveUp = async (subject: Subject, error: unknown): Promise<void> => {
      context.skipped(subject, `${name}: ${(error as Error).message}`);
      const failed = subjects.get(subject);
      subjects.delete(subject);
      await failed?.close();
    };
    // New ones for each case: QEMU's table of connections never shrinks, and a failure ends with its case.
    try {
      await addReleases(subjects, primary, secondary, streamBytes, one.workers ?? 1);
    } catch (error) {
      await giveUp("colo-agent", error);
    }
    await QemuColoCompare.start().then(
      (qemu) =>
        subjects.set("qemu", {
          run: () => qemu.compareAndRelease(options, shifted),
          close: () => qemu.stop(),
        }),
      (error) => giveUp("qemu", error),
    );
    try {
      const warmUps = one.workers === undefined ? 1 : WARM_UPS_OF_WORKERS;
      for (let run = -warmUps; run < context.runs; run++) {
        for (const [subject, { run: measure }] of subjects) {
          try {
            const usage = await measure();
            if (run >= 0) addRates(results, { case: name, subject }, usage, primary.count, frameBytes);
          } catch (error) {
            await giveUp(subject, error);
          }
        }
      }
    } finally {
      for (const { close } of subjects.values()) await close();
    }
  }
}

interface CaseSubject {
  run: () => Usage | Promise<Usage>;
  close: () => void | Promise<void>;
}

/** The agent, and its limit on the same devices: that one does not go without the other. */
async function addReleases(
  subjects: Map<Subject, CaseSubject>,
  primary: Traffic,
  secondary: Traffic,
  streamBytes: number,
  workers: number,
): Promise<void> {
  const ours = await ReleaseBench.create({ workers });
  subjects.set("colo-agent", {
    run: () => ours.compareAndRelease(primary, secondary, streamBytes),
    close: () => {
      subjects.delete("limit");
      ours.close();
    },
  });
  subjects.set("limit", { run: () => ours.release(primary, streamBytes), close: () => {} });
}
