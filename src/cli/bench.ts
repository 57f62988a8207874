/** `colo-agent bench`: measures this machine, each figure beside its peer, or this commit beside an older one. */
import { Argument, Command, InvalidArgumentError } from "commander";
import pc from "picocolors";
import { BENCHES } from "../bench/benches.ts";
import { benchMachine, machineLine } from "../bench/machine.ts";
import type { BenchContext, BenchName, BenchResult, BenchSkipped } from "../bench/result.ts";
import { renderResults } from "../bench/table.ts";
import { requireRoot } from "../host/root.ts";
import { benchAgainst } from "./bench_against.ts";
import { type BenchOptions, wantedBy } from "./bench_options.ts";
import { clearLine, progressLine } from "./bench_progress.ts";

const RUNS_DEFAULT = 5;
const RUNS_QUICK = 2;
const RUNS_MAX = 100;
const REPETITIONS_MAX = 20;
const WORSE_BY_DEFAULT = 5;
const WORSE_BY_MAX = 1_000;

function whole(max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < 1 || value > max) {
      throw new InvalidArgumentError(`give a whole number from 1 to ${max}`);
    }
    return value;
  };
}

function percent(text: string): number {
  const value = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || value > WORSE_BY_MAX) {
    throw new InvalidArgumentError(`give a number from 0 to ${WORSE_BY_MAX}`);
  }
  return value;
}

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
    .description("measure speed and delay on this machine, beside QEMU's own proxy and the machine's limits")
    .addArgument(new Argument("[names...]", "what to measure").choices([...names, "all"]).default(["all"]))
    .option("--json", "the list of figures for machines")
    .option("--quick", "see that it works: fewer cases and repetitions, no figures to quote")
    .option(
      "--runs <n>",
      `repetitions (default ${RUNS_DEFAULT}, with --quick ${RUNS_QUICK}; fewer where VMs are started)`,
      whole(RUNS_MAX),
    )
    .option("--only <pattern>", "cases whose name matches this regular expression", pattern)
    .option("--against <commit>", "run an older commit's benchmark in turn with this one and print ratios")
    .option(
      "--repetitions <n>",
      "with --against: how often to run old, new, new, old",
      whole(REPETITIONS_MAX),
      1,
    )
    .option(
      "--worse-by <percent>",
      "with --against: fail if a median is slower by more than that",
      percent,
      WORSE_BY_DEFAULT,
    )
    .option("--uncommitted", "with --against: measure this checkout with its uncommitted changes")
    .addHelpText(
      "after",
      `\n${names.map(title).join("\n")}
\nWith --against each of them takes four times as long for each repetition, and the older commit is built first.
Exit status with --against: 0, or 1 if a median is worse or missing.
Leave the machine alone meanwhile. docs/performance.md says what is measured and how.`,
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
