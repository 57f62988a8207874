/** `colo-agent bench`: measures this machine, each figure beside its peer. */
import { Argument, Command, InvalidArgumentError } from "commander";
import pc from "picocolors";
import { BENCHES } from "../bench/benches.ts";
import { benchMachine, machineLine } from "../bench/machine.ts";
import type { BenchContext, BenchName, BenchResult, BenchSkipped } from "../bench/result.ts";
import { renderResults } from "../bench/table.ts";
import { requireRoot } from "../host/root.ts";

const RUNS_DEFAULT = 5;
const RUNS_QUICK = 2;
const RUNS_MAX = 100;

interface BenchOptions {
  json?: boolean;
  quick?: boolean;
  runs?: number;
}

function runs(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > RUNS_MAX) {
    throw new InvalidArgumentError(`give a whole number from 1 to ${RUNS_MAX}`);
  }
  return value;
}

export function benchCommand(): Command {
  const names = Object.keys(BENCHES) as BenchName[];
  return new Command("bench")
    .description("measure speed and delay on this machine, beside QEMU's own proxy and the machine's limits")
    .addArgument(new Argument("[name]", "what to measure").choices([...names, "all"]).default("all"))
    .option("--json", "the list of figures for machines")
    .option("--quick", "see that it works: fewer cases and repetitions, no figures to quote")
    .option(
      "--runs <n>",
      `repetitions (default ${RUNS_DEFAULT}, with --quick ${RUNS_QUICK}; fewer where VMs are started)`,
      runs,
    )
    .addHelpText(
      "after",
      `\n${names.map((name) => `  ${name.padEnd(12)}${BENCHES[name].title}`).join("\n")}
\nLeave the machine alone meanwhile. docs/performance.md says what is measured and how.`,
    )
    .action(async (name: BenchName | "all", options: BenchOptions) => {
      requireRoot("run the benchmarks");
      await run(name === "all" ? names : [name], options);
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
  if (options.json) process.stdout.write(`${JSON.stringify(collected, undefined, 2)}\n`);
  else process.stdout.write(`\nmedian (smallest–largest); ${machine}\n`);
}

function defaultRuns(name: BenchName, quick: boolean): number {
  const { usual, quick: few } = BENCHES[name].runs ?? { usual: RUNS_DEFAULT, quick: RUNS_QUICK };
  return quick ? few : usual;
}

const onTerminal = () => process.stderr.isTTY === true;

/** Rewritten in place on a terminal; elsewhere each step is a line. */
function progressLine(name: string): (text: string) => void {
  const started = performance.now();
  return (text) => {
    const at = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
    const line = `${pc.dim(`${at} s`)}  ${name}: ${text}`;
    if (onTerminal()) process.stderr.write(`\r\x1b[K${line}`);
    else process.stderr.write(`${line}\n`);
  };
}

function clearLine(): void {
  if (onTerminal()) process.stderr.write("\r\x1b[K");
}
