/**
 * What a benchmark returns: one figure for each case, subject and metric, as the median of several runs with
 * their spread. Every figure has its peer (another subject) in the same run of the benchmark, the runs of all
 * subjects interleaved, so that a change of the machine's mood meets all of them.
 */

export type BenchName = "compare" | "path" | "vm" | "checkpoint";

/**
 * Who was measured. "none" is the same set-up without any proxy, "two-vms" two unsynchronised ones, "limit"
 * what the hardware or the kernel allows at best.
 */
export type Subject = "colo-agent" | "qemu" | "none" | "two-vms" | "limit" | (string & {});

export interface BenchResult {
  bench: BenchName;
  case: string;
  subject: Subject;
  metric: string;
  unit: string;
  median: number;
  min: number;
  max: number;
  runs: number;
}

/** What could not be measured, and why: behind a bench's results in the list for machines. */
export interface BenchSkipped {
  bench: BenchName;
  subject: Subject;
  skipped: string;
}

/** How thorough to be, and where to say what is going on. */
export interface BenchContext {
  /** Smaller cases and fewer repetitions: a check that the benchmark works, not figures to quote. */
  quick: boolean;
  /** Repetitions of each measurement, 1 to 100. */
  runs: number;
  /** Whether a case is asked for. Others are left out. */
  wanted(caseName: string): boolean;
  progress(text: string): void;
  /**
   * A peer or case that cannot be measured here: is said in the report, not hidden. Any number for a subject.
   */
  skipped(subject: Subject, why: string): void;
}

export type Bench = (context: BenchContext) => Promise<BenchResult[]>;

/** The middle value; of an even number of values the mean of the two in the middle. NaN for none. */
export function median(values: readonly number[]): number {
  if (values.length === 0) return Number.NaN;
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Which figure a value belongs to. */
export interface FigureKey {
  case: string;
  subject: Subject;
  metric: string;
  unit: string;
}

/** Collects one value per run and figure. Keeps the order in which figures were first seen. */
export class ResultSet {
  readonly #figures = new Map<string, FigureKey & { values: number[] }>();

  constructor(readonly bench: BenchName) {}

  /** Adds the value of one run. Throws RangeError if it is not a finite number. */
  add(key: FigureKey, value: number): void {
    const { case: name, subject, metric, unit } = key;
    if (!Number.isFinite(value)) {
      throw new RangeError(`The bench ${this.bench}, ${name}: ${metric} of ${subject} came out as ${value}.`);
    }
    const id = [name, subject, metric, unit].join("\0");
    const known = this.#figures.get(id);
    if (known === undefined) this.#figures.set(id, { case: name, subject, metric, unit, values: [value] });
    else known.values.push(value);
  }

  toJson(): BenchResult[] {
    return [...this.#figures.values()].map(({ case: name, subject, metric, unit, values }) => ({
      bench: this.bench,
      case: name,
      subject,
      metric,
      unit,
      median: median(values),
      min: Math.min(...values),
      max: Math.max(...values),
      runs: values.length,
    }));
  }
}

const PERCENTILES = [
  ["p50", 0.5],
  ["p90", 0.9],
  ["p99", 0.99],
  ["p99.9", 0.999],
] as const;

/** Adds one run's delays, which are sorted here. There must be some. */
export function addDelays(
  results: ResultSet,
  about: Pick<FigureKey, "case" | "subject">,
  delaysNs: Float64Array,
): void {
  const sorted = delaysNs.sort();
  for (const [percentile, share] of PERCENTILES) {
    const value = sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] / 1000;
    results.add({ ...about, metric: `delay ${percentile}`, unit: "us" }, value);
  }
}
