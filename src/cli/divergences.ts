/** `colo-agent divergences`: what an agent has kept of the divergences of its VMs. */
import { writeFileSync } from "node:fs";
import Table from "cli-table3";
import { Command, InvalidArgumentError, Option } from "commander";
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

const LIST_SHOWN_DEFAULT = 20;

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
    .option(
      "--api <url>",
      "the agent's HTTP interface: http://ADDRESS:PORT, or unix:/PATH",
      "http://127.0.0.1:7401",
    )
    .addOption(new Option("--database <file>", "read the agent's database instead").conflicts("api"))
    .option("--redact", "hide payload: show headers and lengths only")
    .option("--json", "for machines")
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
  const command = new Command("divergences").description(
    "list the divergences that an agent has kept (newest first)",
  );
  return withSourceOptions(command)
    .option("--vm <name>", "of this VM only")
    .option("--limit <n>", `how many [${LIST_SHOWN_DEFAULT}; --top: ${TOP_LIMIT_DEFAULT}]`, parseLimit)
    .addOption(
      new Option("--top <by>", "rank what diverges most, over all that is kept")
        .choices(TOP_BY)
        .conflicts("pcapng"),
    )
    .addHelpText("after", "\nOne of them in words: colo-agent explain ID")
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
  if (records.length === 0) return "no divergence is kept";
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
  return `${table.toString()}\n${crowdedOut} more came in the same seconds and were counted only`;
}

function topTable(by: TopBy, entries: readonly TopEntry[]): string {
  if (entries.length === 0) return "no divergence is kept";
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

function parseLimit(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > LIST_LIMIT_MAX) {
    throw new InvalidArgumentError(`give a whole number from 1 to ${LIST_LIMIT_MAX}`);
  }
  return value;
}
