/**
 * `colo-agent compare`: the comparer on two captures. Exit status as diff(1): 0 same, 1 different, 2 error.
 */
import { Command } from "commander";
import {
  compareCaptures,
  DIVERGENCES_DEFAULT,
  WINDOW_MIB_DEFAULT,
  WINDOW_MIB_MAX,
} from "../capture/compare_captures.ts";
import { renderReport } from "../capture/render.ts";
import { collect, JSON_HELP, wholeNumber } from "./arguments.ts";
import { failureText } from "./failure.ts";

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

export function compareCommand(): Command {
  return new Command("compare")
    .description("compare two captures (pcap or pcapng) by the rules for live frames")
    .argument("<primary>", "capture of the primary VM's traffic")
    .argument("<secondary>", "capture of the secondary VM's traffic")
    .option("--guest <address>", "compare only frames from this IP address (repeatable)", collect)
    .option("--passthrough <rule>", "leave out flows, e.g. 'udp port 123' (repeatable)", collect)
    .option("--ignore <rule>", "leave out bytes, e.g. 'udp port 53 bytes 0-1' (repeatable)", collect)
    .option(
      "--window <MiB>",
      "memory for waiting frames of each side, in MiB",
      wholeNumber(1, WINDOW_MIB_MAX, "MiB"),
      WINDOW_MIB_DEFAULT,
    )
    .option("--limit <n>", "number of divergences shown", wholeNumber(0, LIMIT_MAX), DIVERGENCES_DEFAULT)
    .option("--json", JSON_HELP)
    .addHelpText("after", "\nExit status: 0 same, 1 different, 2 error.")
    .exitOverride((error) => process.exit(error.exitCode === 0 ? 0 : EXIT_ERROR))
    .action((primary: string, secondary: string, options: CompareOptions, command: Command) => {
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
        const { verbose = false } = command.optsWithGlobals<{ verbose?: boolean }>();
        process.stderr.write(failureText("colo-agent compare", error, { verbose }));
        process.exitCode = EXIT_ERROR;
      }
    });
}
