/** `colo-agent divergences`: the divergences that an agent has stored. */
import { writeFileSync } from "node:fs";
import Table from "cli-table3";
import { Command, Option } from "commander";
import { type Divergences, divergencesOfAgent, divergencesOfDatabase } from "../divergence/client.ts";
import { milliseconds } from "../divergence/explain.ts";
import { recordToJson } from "../divergence/json.ts";
import { writePcapng } from "../divergence/pcapng.ts";
import {
  type DivergenceRecord,
  LIST_LIMIT_MAX,
  TOP_BY,
  TOP_LIMIT_DEFAULT,
  type TopBy,
  type TopEntry,
} from "../divergence/record.ts";
import { API_DEFAULT, API_HELP, JSON_HELP, wholeNumber } from "./arguments.ts";

const LIST_SHOWN_DEFAULT = 20;
const NONE_STORED = "no divergence is stored";

/** Options that `divergences` and `explain` share. */
export interface SourceOptions {
  api: string;
  database?: string;
  redact?: boolean;
  json?: boolean;
  pcapng?: string;
}

interface ListCommandOptions extends SourceOptions {
  vm?: string;
  limit?: number;
  top?: TopBy;
}

/** Adds them. */
export function withSourceOptions(command: Command): Command {
  return command
    .option("--api <url>", API_HELP, API_DEFAULT)
    .addOption(new Option("--database <file>", "read the agent's database file instead").conflicts("api"))
    .option("--redact", "hide payload: show headers and lengths only")
    .option("--json", JSON_HELP)
    .option("--pcapng <file>", "write the frames to a capture file for Wireshark or tcpdump");
}

export async function withDivergences<T>(
  options: SourceOptions,
  use: (divergences: Divergences) => Promise<T>,
): Promise<T> {
  const redacted = options.redact === true;
  const divergences =
    options.database === undefined
      ? divergencesOfAgent(options.api, redacted)
      : divergencesOfDatabase(options.database, redacted);
  try {
    return await use(divergences);
  } finally {
    divergences.close();
  }
}

/** Writes the capture file, for its owner only, and says so on standard error. */
export function exportPcapng(file: string, records: readonly DivergenceRecord[]): void {
  const frames = records.reduce(
    (sum, record) =>
      sum + Number(record.primaryFrame !== undefined) + Number(record.secondaryFrame !== undefined),
    0,
  );
  try {
    writeFileSync(file, writePcapng(records), { mode: 0o600 });
  } catch (error) {
    throw new Error(`${file} cannot be written: ${(error as Error).message}`, { cause: error });
  }
  process.stderr.write(`${file}: ${frames} frame${frames === 1 ? "" : "s"}\n`);
}

export function divergencesCommand(): Command {
  const command = new Command("divergences").description("list an agent's stored divergences, newest first");
  return withSourceOptions(command)
    .option("--vm <name>", "only this VM's")
    .option(
      "--limit <n>",
      `number shown (default: ${LIST_SHOWN_DEFAULT}, with --top ${TOP_LIMIT_DEFAULT})`,
      wholeNumber(1, LIST_LIMIT_MAX),
    )
    .addOption(
      new Option("--top <by>", "rank all stored divergences by frequency")
        .choices(TOP_BY)
        .conflicts("pcapng"),
    )
    .addHelpText("after", "\n`colo-agent explain ID` explains one of them.")
    .action((options: ListCommandOptions) => withDivergences(options, (source) => show(source, options)));
}

async function show(source: Divergences, options: ListCommandOptions): Promise<void> {
  const { vm, top, pcapng } = options;
  const ofVm = vm === undefined ? {} : { vm };
  if (top !== undefined) {
    const entries = await source.top({ by: top, limit: options.limit ?? TOP_LIMIT_DEFAULT, ...ofVm });
    print(options.json ? { top: entries } : topTable(top, entries));
    return;
  }
  const frames = pcapng !== undefined;
  const records = await source.list({ limit: options.limit ?? LIST_SHOWN_DEFAULT, frames, ...ofVm });
  if (pcapng !== undefined) exportPcapng(pcapng, records.toReversed());
  if (options.json) print({ divergences: records.map((record) => recordToJson(record, { frames })) });
  else print(listTable(records));
}

function print(output: string | object): void {
  process.stdout.write(
    typeof output === "string" ? `${output}\n` : `${JSON.stringify(output, undefined, 2)}\n`,
  );
}

function listTable(records: readonly DivergenceRecord[]): string {
  if (records.length === 0) return NONE_STORED;
  const table = new Table({
    head: ["id", "time (UTC)", "vm", "class", "flow", "seen", "waited", "VM stopped", "done"],
    style: { head: [], border: [] },
  });
  for (const record of records) {
    table.push([
      record.id,
      time(record.timeMs),
      record.vm,
      record.class,
      record.flow.text,
      1 + record.repeats,
      milliseconds(record.waitedMs),
      record.checkpoint === undefined ? "" : milliseconds(record.checkpoint.pauseMs),
      record.action,
    ]);
  }
  const crowdedOut = records.reduce((sum, record) => sum + record.crowdedOut, 0);
  if (crowdedOut === 0) return table.toString();
  return `${table.toString()}\n${crowdedOut} more in these seconds were counted but not stored`;
}

function topTable(by: TopBy, entries: readonly TopEntry[]): string {
  if (entries.length === 0) return NONE_STORED;
  const table = new Table({
    head: [by, "divergences", "checkpoints", "VM stopped", "newest (UTC)"],
    style: { head: [], border: [] },
  });
  for (const entry of entries) {
    table.push([
      entry.key,
      entry.divergences,
      entry.checkpoints,
      milliseconds(entry.pauseMs),
      time(entry.lastTimeMs),
    ]);
  }
  return table.toString();
}

function time(ms: number): string {
  return new Date(ms).toISOString().replace("T", " ").replace("Z", "");
}
