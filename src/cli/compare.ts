/**
 * `colo-agent compare`: the comparer on two captures. Exit status as diff(1): 0 same, 1 different, 2 error.
 */
import { Command, InvalidArgumentError } from "commander";
import {
  compareCaptures,
  DIVERGENCES_DEFAULT,
  WINDOW_MIB_DEFAULT,
  WINDOW_MIB_MAX,
} from "../capture/compare_captures.ts";
import { renderReport } from "../capture/render.ts";

const EXIT_DIFFERENT = 1;
const EXIT_ERROR = 2;
const LIMIT_MAX = 1_000_000;

interface CompareOptions {
  guest?: string[];
  passthrough?: string[];
  ignore?: string[];
  window: number;
  limit: number;
  json?: boolean;
}

function integer(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || value < min || value > max) {
      throw new InvalidArgumentError(`give a whole number from ${min} to ${max}`);
    }
    return value;
  };
}

export function compareCommand(): Command {
  return new Command("compare")
    .description(
      "compare what two captures (pcap or pcapng) have recorded, as the agent does with live frames",
    )
    .argument("<primary>", "capture of the primary VM's traffic")
    .argument("<secondary>", "capture of the secondary VM's")
    .option("--guest <address>", "compare only what this IP address sends (repeatable)", collect)
    .option("--passthrough <rule>", "leave out these flows, e.g. 'udp port 123' (repeatable)", collect)
    .option("--ignore <rule>", "leave out bytes, e.g. 'udp port 53 bytes 0-1' (repeatable)", collect)
    .option(
      "--window <MiB>",
      "memory for frames that wait, on each side",
      integer(1, WINDOW_MIB_MAX),
      WINDOW_MIB_DEFAULT,
    )
    .option("--limit <n>", "divergences shown", integer(0, LIMIT_MAX), DIVERGENCES_DEFAULT)
    .option("--json", "for machines")
    .addHelpText("after", "\nExit status: 0 same, 1 different, 2 error.")
    .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : EXIT_ERROR))
    .action((primary: string, secondary: string, options: CompareOptions) => {
      try {
        const report = compareCaptures({
          primary,
          secondary,
          guests: options.guest ?? [],
          rules: { passthrough: options.passthrough ?? [], ignore: options.ignore ?? [] },
          windowMib: options.window,
          limit: options.limit,
        });
        process.stdout.write(
          options.json ? `${JSON.stringify(report, undefined, 2)}\n` : renderReport(report),
        );
        process.exitCode = report.same ? 0 : EXIT_DIFFERENT;
      } catch (error) {
        process.stderr.write(`colo-agent compare: ${(error as Error).message}\n`);
        process.exitCode = EXIT_ERROR;
      }
    });
}

function collect(value: string, previous: string[] = []): string[] {
  return [...previous, value];
}
