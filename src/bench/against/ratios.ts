/**
 * The figures of two commits side by side.
 *
 * A ratio tells how much slower the newer commit is: 1.1 is 10 % slower, whether the figure is a rate or a
 * duration. Each run of a benchmark is a process of its own and reports a median. The medians of a commit's
 * runs vary by more than the values within one run, so a commit's figure is the median of them, and its
 * spread their range.
 */
import Table from "cli-table3";
import { type BenchName, type BenchResult, type FigureKey, median, type Subject } from "../result.ts";
import { figure } from "../table.ts";

/** A figure of one commit, over its runs. */
interface Spread {
  median: number;
  min: number;
  max: number;
  runs: number;
}

/**
 * "worse": slower by more than the limit. "missing": the newer commit has no such figure. "new": the older
 * one has none. "shown": printed, but neither good nor bad.
 */
type Verdict = "worse" | "missing" | "new" | "even" | "better" | "shown";

export interface RatioRow extends FigureKey {
  bench: BenchName;
  older: Spread | undefined;
  newer: Spread | undefined;
  /** Above 1: the newer commit is slower. Undefined without both figures, or if only the older one is 0. */
  ratio: number | undefined;
  verdict: Verdict;
  /** The ranges of both sides overlap: more repetitions may decide otherwise. */
  overlap: boolean;
}

/** More of them is faster. Of everything else less is faster. */
const RATES: ReadonlySet<string> = new Set([
  "packets",
  "throughput",
  "highest rate without loss",
  "requests",
  "echoes",
  "the busy VM's",
]);

/**
 * The same on both sides but for the machine's mood: they show how much the machine has changed meanwhile.
 */
const PEERS: ReadonlySet<Subject> = new Set(["qemu", "none", "limit", "two-vms"]);

/** Extreme values, which a few runs do not settle, and figures that only describe the run. */
const NOT_JUDGED = [/ p9\d/, /, longest$/, /^lost$/, /^primary runs in between$/, /^the busy VM's$/];

const isJudged = ({ subject, metric }: FigureKey): boolean =>
  !PEERS.has(subject) && !NOT_JUDGED.some((pattern) => pattern.test(metric));

const idOf = ({ bench, case: name, subject, metric, unit }: FigureKey & { bench: BenchName }): string =>
  JSON.stringify([bench, name, subject, metric, unit]);

/** How much slower `newer` is. */
function ratioOf(metric: string, older: number, newer: number): number | undefined {
  if (older === newer) return 1;
  const [above, below] = RATES.has(metric) ? [older, newer] : [newer, older];
  return below === 0 ? undefined : above / below;
}

function spreads(
  runs: readonly (readonly BenchResult[])[],
): Map<string, { key: BenchResult; spread: Spread }> {
  const values = new Map<string, { key: BenchResult; medians: number[] }>();
  for (const result of runs.flat()) {
    const known = values.get(idOf(result));
    if (known === undefined) values.set(idOf(result), { key: result, medians: [result.median] });
    else known.medians.push(result.median);
  }
  return new Map(
    [...values].map(([id, { key, medians }]) => [
      id,
      {
        key,
        spread: {
          median: median(medians),
          min: Math.min(...medians),
          max: Math.max(...medians),
          runs: medians.length,
        },
      },
    ]),
  );
}

/**
 * @param older the list of each run of the older commit
 * @param worseBy a judged figure that is slower by more than that many percent is "worse"
 */
export function compareRuns(
  older: readonly (readonly BenchResult[])[],
  newer: readonly (readonly BenchResult[])[],
  worseBy: number,
): RatioRow[] {
  const before = spreads(older);
  const after = spreads(newer);
  return [...new Map([...before, ...after])].map(([id, { key }]) => {
    const { bench, case: name, subject, metric, unit } = key;
    const about = { bench, case: name, subject, metric, unit };
    return { ...about, ...judge(about, before.get(id)?.spread, after.get(id)?.spread, worseBy) };
  });
}

function judge(
  key: FigureKey,
  older: Spread | undefined,
  newer: Spread | undefined,
  worseBy: number,
): Pick<RatioRow, "older" | "newer" | "ratio" | "verdict" | "overlap"> {
  const judged = isJudged(key);
  if (older === undefined || newer === undefined) {
    const verdict = !judged ? "shown" : newer === undefined ? "missing" : "new";
    return { older, newer, ratio: undefined, verdict, overlap: false };
  }
  const ratio = ratioOf(key.metric, older.median, newer.median);
  const overlap = older.min <= newer.max && newer.min <= older.max;
  const limit = 1 + worseBy / 100;
  // Without a ratio the newer one has a cost, or lacks a rate, that the older one has not.
  const slower = ratio === undefined || ratio > limit;
  const verdict = !judged ? "shown" : slower ? "worse" : ratio < 1 / limit ? "better" : "even";
  return { older, newer, ratio, verdict, overlap };
}

/** Rows that must not be there if nothing got slower. */
export function slowerRows(rows: readonly RatioRow[]): RatioRow[] {
  return rows.filter(({ verdict }) => verdict === "worse" || verdict === "missing");
}

const digits = (ratio: number | undefined): string => (ratio === undefined ? "-" : ratio.toFixed(2));

function cell(spread: Spread | undefined): string {
  if (spread === undefined) return "-";
  const { median: middle, min, max, runs } = spread;
  return runs === 1 ? figure(middle) : `${figure(middle)} (${figure(min)}–${figure(max)})`;
}

function verdictText({ verdict, overlap }: RatioRow): string {
  if (verdict === "shown" || verdict === "even") return "";
  return overlap ? `${verdict}, ranges overlap` : verdict;
}

/** The agent's rows of one benchmark, each with the ratios of its peers beside it. */
export function renderRatios(rows: readonly RatioRow[], older: string, newer: string): string {
  const table = new Table({
    head: ["case", "metric", older, newer, "ratio", "peers' ratio", ""],
    style: { head: [], border: [] },
  });
  let before = "";
  for (const row of rows) {
    if (PEERS.has(row.subject)) continue;
    const peers = rows
      .filter(
        ({ case: name, metric, subject, ratio }) =>
          name === row.case && metric === row.metric && PEERS.has(subject) && ratio !== undefined,
      )
      .map(({ subject, ratio }) => `${subject} ${digits(ratio)}`);
    const name = row.subject === "colo-agent" ? row.case : `${row.case}, ${row.subject}`;
    table.push([
      name === before ? "" : name,
      row.unit === "" ? row.metric : `${row.metric}, ${row.unit}`,
      cell(row.older),
      cell(row.newer),
      digits(row.ratio),
      peers.join(", "),
      verdictText(row),
    ]);
    before = name;
  }
  return `${table.toString()}\n`;
}
