/** `colo-agent doctor`: tests whether this machine can protect VMs. */
import { Command, InvalidArgumentError } from "commander";
import pc from "picocolors";
import { loadConfig } from "../config/load.ts";
import { examine, GROUPS } from "../doctor/doctor.ts";
import { count, renderResults } from "../doctor/render.ts";
import { requireRoot } from "../host/root.ts";
import { VERSION } from "../host/version.ts";
import { JSON_HELP } from "./arguments.ts";

interface DoctorCommandOptions {
  config?: string;
  qemu?: string;
  json?: boolean;
  skip?: string[];
}

function group(name: string, before: string[] = []): string[] {
  if (!GROUPS.some((one) => one.name === name))
    throw new InvalidArgumentError(`the groups are ${GROUPS.map((one) => one.name).join(", ")}`);
  return [...before, name];
}

export function doctorCommand(): Command {
  return new Command("doctor")
    .description("test whether this machine can protect VMs, and say how to mend it (as root)")
    .option("-c, --config <file>", "also test everything in this configuration, e.g. /etc/colo-agent.toml")
    .option(
      "--qemu <program>",
      "the qemu-system-x86_64 to test (default: the first [vm.qemu] of the configuration, else the " +
        "machine's own)",
    )
    .option("--json", JSON_HELP)
    .option("--skip <group...>", "skip these groups", group)
    .addHelpText(
      "after",
      `\nGroups: ${GROUPS.map(({ name }) => name).join(", ")}.\nExit status: 1 if a check fails, else 0, ` +
        "also with warnings.",
    )
    .action(async (options: DoctorCommandOptions) => {
      requireRoot("run the doctor");
      const config = options.config === undefined ? undefined : await loadConfig(options.config);
      const onTerminal = process.stderr.isTTY === true && !options.json;
      const results = await examine({
        config,
        qemu: options.qemu,
        skip: options.skip ?? [],
        onResult: ({ title, subject }) => {
          if (onTerminal) process.stderr.write(`\r\x1b[K${pc.dim(subject ? `${title}: ${subject}` : title)}`);
        },
      });
      if (onTerminal) process.stderr.write("\r\x1b[K");
      const failed = count(results, "fail");
      if (options.json) {
        const summary = Object.fromEntries(
          (["ok", "warn", "fail", "not_asked"] as const).map((status) => [status, count(results, status)]),
        );
        process.stdout.write(
          `${JSON.stringify({ version: VERSION, summary, checks: results }, undefined, 2)}\n`,
        );
      } else process.stdout.write(renderResults(results));
      process.exitCode = failed > 0 ? 1 : 0;
    });
}
