/**
 * The same benchmark of two commits in turn: old, new, new, old, and so on. What changes on the machine
 * meanwhile, steadily or not, then meets both alike.
 */
import type { BenchName, BenchResult, BenchSkipped } from "../result.ts";
import { type BenchOutput, runBenchOf } from "./bench_process.ts";

export type Side = "older" | "newer";

/** The order of the runs of one repetition. */
const ORDER: readonly Side[] = ["older", "newer", "newer", "older"];

/** Time and name, which each line of a run's progress begins with. */
const OWN_PREFIX = /^\s*[\d.]+ s\s+\w+: /;

interface InTurnOptions {
  name: BenchName;
  /** Checkouts that are built. */
  folders: Readonly<Record<Side, string>>;
  /** How often ORDER is gone through. */
  repetitions: number;
  /** Of the command line, the same for both. */
  options: readonly string[];
  /** Results of other cases are left out. */
  wanted: (caseName: string) => boolean;
  signal: AbortSignal;
  progress: (text: string) => void;
  /** Runs one; the real one unless a test gives another. */
  run?: typeof runBenchOf;
}

interface InTurnResults {
  /** One list for each run, in the order of the runs. */
  lists: Record<Side, BenchResult[][]>;
  skipped: Record<Side, BenchSkipped[]>;
}

const runsOf = (repetitions: number): Side[] => Array.from({ length: repetitions }, () => ORDER).flat();

/** Throws the Error of the first run that fails. */
export async function runInTurn(options: InTurnOptions): Promise<InTurnResults> {
  const { name, folders, repetitions, signal, wanted, progress, run = runBenchOf } = options;
  const found: InTurnResults = { lists: { older: [], newer: [] }, skipped: { older: [], newer: [] } };
  const order = runsOf(repetitions);
  const begun = performance.now();
  for (const [index, side] of order.entries()) {
    const left = remaining(begun, index, order.length);
    const where = `${side} commit, run ${index + 1} of ${order.length}${left}`;
    progress(where);
    const output: BenchOutput = await run(folders[side], {
      name,
      options: options.options,
      signal,
      progress: (text) => progress(`${where}: ${text.replace(OWN_PREFIX, "")}`),
    });
    found.lists[side].push(output.results.filter((one) => wanted(one.case)));
    found.skipped[side].push(...output.skipped);
  }
  return found;
}

/** From what the runs so far have taken; nothing before the first has ended. */
function remaining(begunMs: number, done: number, all: number): string {
  if (done === 0) return "";
  const minutes = (((performance.now() - begunMs) / done) * (all - done)) / 60_000;
  return `, about ${Math.max(1, Math.round(minutes))} min left`;
}
