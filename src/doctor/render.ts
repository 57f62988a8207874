/** Results for people. */
import Table from "cli-table3";
import pc from "picocolors";
import type { Result, Status } from "./check.ts";
import { GROUPS } from "./doctor.ts";

const WORDS: Record<Status, string> = {
  ok: pc.green("ok"),
  warn: pc.yellow("warn"),
  fail: pc.red("fail"),
  not_asked: pc.dim("-"),
};

const CHECK_COLUMNS = 28;
const STATUS_COLUMNS = 6;
const COLUMNS_DEFAULT = 120;
const COLUMNS_MIN = 80;
/** Borders and the blanks beside them. */
const FRAME_COLUMNS = 13;

/** What somebody has to do something about, with its heading; the rest follows by group. */
const FIRST = new Map<Status, string>([
  ["fail", "Failed"],
  ["warn", "Warnings"],
]);

/**
 * One table: the check, its status, what was found, what to do. Failures come first, then warnings, then the
 * rest by group.
 */
export function renderResults(results: readonly Result[], columns = process.stdout.columns): string {
  const width = Math.max(COLUMNS_MIN, columns ?? COLUMNS_DEFAULT);
  const rest = width - CHECK_COLUMNS - STATUS_COLUMNS - FRAME_COLUMNS;
  const found = Math.ceil(rest * 0.55);
  const table = new Table({
    head: ["check", "", "found", "what to do"],
    style: { head: [], border: [] },
    colWidths: [CHECK_COLUMNS + 2, STATUS_COLUMNS + 2, found + 2, rest - found + 2],
    wordWrap: true,
    // No lines between rows.
    chars: { mid: "", "left-mid": "", "mid-mid": "", "right-mid": "" },
  });
  const row = (label: string, { status, found: what, fix, subject }: Result) =>
    table.push([subject === undefined ? label : `${label}: ${subject}`, WORDS[status], what, fix ?? ""]);
  for (const [status, heading] of FIRST) {
    const own = results.filter((result) => result.status === status);
    if (own.length === 0) continue;
    table.push([pc.bold(heading), "", "", ""]);
    for (const result of own) row(`  ${result.title}`, result);
  }
  for (const { name, title } of GROUPS) {
    const own = results.filter(({ group, status }) => group === name && !FIRST.has(status));
    if (own.length === 0) continue;
    table.push([pc.bold(title), "", "", ""]);
    for (const result of own) row(`  ${result.title}`, result);
  }
  return `${table.toString()}\n${summary(results)}\n`;
}

export function count(results: readonly Result[], status: Status): number {
  return results.filter((result) => result.status === status).length;
}

function summary(results: readonly Result[]): string {
  const failed = count(results, "fail");
  const warned = count(results, "warn");
  const notAsked = count(results, "not_asked");
  const words = failed > 0 ? `${failed} failed` : warned > 0 ? "usable, with warnings" : "usable";
  return `${words}: ${count(results, "ok")} ok, ${warned} warnings, ${failed} failed, ${notAsked} not asked`;
}
