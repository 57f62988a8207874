/** `colo-agent bench --against COMMIT`: the same benchmark of two commits in turn, and how they compare. */
import pc from "picocolors";
import { hasBenchOption } from "../bench/against/bench_process.ts";
import { runInTurn, type Side } from "../bench/against/in_turn.ts";
import { builtFolder, CHECKOUT, findCommit, uncommitted } from "../bench/against/older_commit.ts";
import { compareRuns, type RatioRow, renderRatios, slowerRows } from "../bench/against/ratios.ts";
import { BENCHES } from "../bench/benches.ts";
import { benchMachine, machineLine } from "../bench/machine.ts";
import type { BenchName } from "../bench/result.ts";
import { type BenchOptions, wantedBy } from "./bench_options.ts";
import { clearLine, progressLine } from "./bench_progress.ts";

const EXIT_SAME = 0;
const EXIT_SLOWER = 1;
const HASH_DIGITS = 10;

/** @returns the exit status: 0, or 1 if a median is worse than allowed or missing */
export async function benchAgainst(
  commit: string,
  names: readonly BenchName[],
  options: BenchOptions,
): Promise<number> {
  const older = await findCommit(commit);
  const here = await findCommit("HEAD");
  const changes = await uncommitted();
  if (changes.length > 0 && options.uncommitted !== true) {
    throw new Error(
      `this checkout differs from its commit (${changes.length} files, first ${changes[0]?.trim()}): ` +
        "commit the changes, or measure them with --uncommitted",
    );
  }
  const step = progressLine("against");
  const folders = { older: await builtFolder(older, step), newer: CHECKOUT };
  const bothHaveOnly = await hasBenchOption(folders.older, "--only");
  clearLine();
  const label = (hash: string) => hash.slice(0, HASH_DIGITS);
  const labels = { older: label(older.hash), newer: label(here.hash) + (changes.length > 0 ? " +" : "") };
  const machine = machineLine(benchMachine());
  process.stderr.write(
    `${machine}\nold: ${labels.older} ${older.subject}\nnew: ${labels.newer} ${here.subject}\n`,
  );
  if (options.only !== undefined && !bothHaveOnly) {
    process.stderr.write(`${pc.yellow("all cases are run")}: the older commit does not know --only\n`);
  }

  const rows: RatioRow[] = [];
  await interruptible(async (signal) => {
    for (const name of names) {
      const { lists, skipped } = await runInTurn({
        name,
        folders,
        repetitions: options.repetitions,
        options: optionsOf(options, bothHaveOnly),
        wanted: wantedBy(options),
        signal,
        progress: progressLine(name),
      });
      clearLine();
      for (const side of ["older", "newer"] as const satisfies Side[]) {
        for (const { subject, skipped: why } of skipped[side]) {
          process.stderr.write(`${pc.yellow(`${side} without ${subject}`)}: ${why}\n`);
        }
      }
      const found = compareRuns(lists.older, lists.newer, options.worseBy);
      rows.push(...found);
      if (options.json || found.length === 0) continue;
      const table = renderRatios(found, labels.older, labels.newer);
      process.stdout.write(`\n${pc.bold(BENCHES[name].title)}\n${table}`);
    }
  });
  if (rows.length === 0) throw new Error(`no case of ${names.join(", ")} matches ${options.only?.source}`);
  if (options.json) process.stdout.write(`${JSON.stringify(rows, undefined, 2)}\n`);
  else process.stdout.write(conclusion(rows, options.worseBy, machine));
  return slowerRows(rows).length > 0 ? EXIT_SLOWER : EXIT_SAME;
}

function optionsOf({ quick, runs, only }: BenchOptions, bothHaveOnly: boolean): string[] {
  return [
    ...(quick === true ? ["--quick"] : []),
    ...(runs === undefined ? [] : ["--runs", `${runs}`]),
    ...(only === undefined || !bothHaveOnly ? [] : ["--only", only.source]),
  ];
}

function conclusion(rows: readonly RatioRow[], worseBy: number, machine: string): string {
  const slower = slowerRows(rows);
  const judged = rows.filter(({ verdict }) => verdict !== "shown").length;
  const result =
    slower.length === 0
      ? pc.green(`No median of ${judged} is worse by more than ${worseBy} %.`)
      : pc.red(`${slower.length} of ${judged} medians are worse by more than ${worseBy} %, or missing.`);
  return `\nmedian of the runs (smallest–largest); a ratio above 1 is slower; ${machine}\n${result}\n`;
}

/** SIGINT and SIGTERM end the run at hand, which takes down what it has started. */
async function interruptible(action: (signal: AbortSignal) => Promise<void>): Promise<void> {
  const controller = new AbortController();
  const interrupt = () => controller.abort(new Error("interrupted"));
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  try {
    await action(controller.signal);
  } finally {
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
  }
}
