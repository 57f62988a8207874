/**
 * `colo-agent bench`: measures this machine, each figure beside its peer, or this commit beside an older one.
 */
import { Argument, Command, InvalidArgumentError } from "commander";
import pc from "picocolors";
import { BENCHES } from "../bench/benches.ts";
import { benchMachine, machineLine } from "../bench/machine.ts";
import type { BenchContext, BenchName, BenchResult, BenchSkipped } from "../bench/result.ts";
import { renderResults } from "../bench/table.ts";
import { requireRoot } from "../host/root.ts";
import { decimal, JSON_HELP, wholeNumber } from "./arguments.ts";
import { benchAgainst } from "./bench_against.ts";
import { type BenchOptions, wantedBy } from "./bench_options.ts";
import { clearLine, progressLine } from "./bench_progress.ts";

const RUNS_DEFAULT = 5;
const RUNS_QUICK = 2;
const RUNS_MAX = 100;
const REPETITIONS_MAX = 20;
const WORSE_BY_DEFAULT = 5;
const WORSE_BY_MAX = 1_000;

function pattern(text: string): RegExp {
  try {
    return new RegExp(text, "i");
  } catch (error) {
    throw new InvalidArgumentError((error as Error).message);
  }
}

export function benchCommand(): Command {
  const names = Object.keys(BENCHES) as BenchName[];
  const title = (name: BenchName) =>
    `  ${name.padEnd(12)}${BENCHES[name].title} (${BENCHES[name].minutes} min)`;
  return new Command("bench")
    .description("measure speed and delay beside QEMU's own proxy and this machine's limits (as root)")
    .addArgument(new Argument("[names...]", "benchmarks to run").choices([...names, "all"]).default(["all"]))
    .option("--json", JSON_HELP)
    .option("--quick", "test the benchmarks: fewer cases and repetitions, no figures to quote")
    .option(
      "--runs <n>",
      `repetitions (default: ${RUNS_DEFAULT}, with --quick ${RUNS_QUICK}; fewer for benchmarks with VMs)`,
      wholeNumber(1, RUNS_MAX),
    )
    .option("--only <pattern>", "cases whose name matches this regular expression", pattern)
    .option("--against <commit>", "run an older commit's benchmark in turn with this one and print ratios")
    .option(
      "--repetitions <n>",
      "with --against: number of runs of old, new, new, old",
      wholeNumber(1, REPETITIONS_MAX),
      1,
    )
    .option(
      "--worse-by <percent>",
      "with --against: fail if a median is slower by more than this percentage",
      decimal(0, WORSE_BY_MAX, "percent"),
      WORSE_BY_DEFAULT,
    )
    .option("--uncommitted", "with --against: measure this checkout with its uncommitted changes")
    .addHelpText(
      "after",
      `\n${names.map(title).join("\n")}
\nWith --against each benchmark takes four times as long for each repetition. The older commit is built first.
Exit status with --against: 1 if a median is worse or missing, else 0.
Leave the machine alone during a run. docs/performance.md describes the method.`,
    )
    .action(async (given: (BenchName | "all")[], options: BenchOptions) => {
      requireRoot("run the benchmarks");
      const chosen = names.filter((name) => given.includes("all") || given.includes(name));
      if (options.against === undefined) await run(chosen, options);
      else process.exitCode = await benchAgainst(options.against, chosen, options);
    });
}

async function run(names: readonly BenchName[], options: BenchOptions): Promise<void> {
  const machine = machineLine(benchMachine());
  process.stderr.write(`${machine}\n`);
  const collected: (BenchResult | BenchSkipped)[] = [];
  for (const name of names) {
    const skipped: BenchSkipped[] = [];
    const context: BenchContext = {
      quick: options.quick === true,
      runs: options.runs ?? defaultRuns(name, options.quick === true),
      wanted: wantedBy(options),
      progress: progressLine(name),
      skipped: (subject, why) => skipped.push({ bench: name, subject, skipped: why }),
    };
    const bench = await BENCHES[name].load();
    const results = await bench(context);
    clearLine();
    collected.push(...results, ...skipped);
    for (const { subject, skipped: why } of skipped) {
      process.stderr.write(`${pc.yellow(`without ${subject}`)}: ${why}\n`);
    }
    if (!options.json) process.stdout.write(`\n${pc.bold(BENCHES[name].title)}\n${renderResults(results)}`);
  }
  if (collected.length === 0)
    throw new Error(`no case of ${names.join(", ")} matches ${options.only?.source}`);
  if (options.json) process.stdout.write(`${JSON.stringify(collected, undefined, 2)}\n`);
  else process.stdout.write(`\nmedian (smallest–largest); ${machine}\n`);
}

function defaultRuns(name: BenchName, quick: boolean): number {
  const { usual, quick: few } = BENCHES[name].runs ?? { usual: RUNS_DEFAULT, quick: RUNS_QUICK };
  return quick ? few : usual;
}
