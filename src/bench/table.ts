/** Results for people: one table for each benchmark, its subjects side by side. */
import Table from "cli-table3";
import type { BenchResult, Subject } from "./result.ts";

const AGENT = "colo-agent";

/**
 * Three significant digits, with an SI prefix only where it saves reading (packets/s in the thousands and
 * up).
 */
export function figure(value: number): string {
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))} M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))} k`;
  return `${Number(value.toPrecision(3))}`;
}

function cell(result: BenchResult | undefined): string {
  if (result === undefined) return "-";
  const { median, min, max, runs } = result;
  return runs === 1 ? figure(median) : `${figure(median)} (${figure(min)}–${figure(max)})`;
}

/** "4.1 x qemu, 0.9 x limit": the agent's median as a multiple of each peer's. */
function ratios(row: ReadonlyMap<Subject, BenchResult>): string {
  const agent = row.get(AGENT);
  if (agent === undefined) return "";
  const parts: string[] = [];
  for (const [subject, { median }] of row) {
    if (subject === AGENT || median === 0) continue;
    parts.push(`${Number((agent.median / median).toPrecision(2))} x ${subject}`);
  }
  return parts.join(", ");
}

/** Medians, with the smallest and the largest value in parentheses. */
export function renderResults(results: readonly BenchResult[]): string {
  const subjects = [...new Set(results.map((result) => result.subject))];
  const rows = new Map<string, Map<Subject, BenchResult>>();
  for (const result of results) {
    const id = JSON.stringify([result.case, result.metric, result.unit]);
    const row = rows.get(id) ?? new Map<Subject, BenchResult>();
    row.set(result.subject, result);
    rows.set(id, row);
  }
  const table = new Table({
    head: ["case", "metric", ...subjects, "ratio"],
    style: { head: [], border: [] },
  });
  let before = "";
  for (const [id, row] of rows) {
    const [name, metric, unit] = JSON.parse(id) as [string, string, string];
    const label = unit === "" ? metric : `${metric}, ${unit}`;
    table.push([
      name === before ? "" : name,
      label,
      ...subjects.map((subject) => cell(row.get(subject))),
      ratios(row),
    ]);
    before = name;
  }
  return `${table.toString()}\n`;
}
