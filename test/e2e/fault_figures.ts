/** What the cycles measured, as a table: reported, not asserted. */
import Table from "cli-table3";
import type { CycleFigures } from "./fault_rig.ts";

/** Aims for the gap. */
const TARGETS: Readonly<Record<string, string>> = {
  "primary-qemu-kill": "< 300 ms",
  "primary-host-loses-power": "< lease + margin + 300 ms",
  "primary-qemu-freezes-then-goes-on": "< 2000 ms",
  "primary-qemu-freezes-then-dies": "< 2000 ms",
};

function spread(values: readonly (number | undefined)[]): string {
  const sorted = values.filter((value) => value !== undefined).toSorted((x, y) => x - y);
  if (sorted.length === 0) return "-";
  const middle = sorted[Math.floor(sorted.length / 2)]!;
  const text = Math.round(middle).toString();
  return sorted.length === 1 ? text : `${text} (${Math.round(sorted[0]!)}–${Math.round(sorted.at(-1)!)})`;
}

/** One row for each fault: medians, with the smallest and the largest value in parentheses. */
export function faultTable(figures: readonly CycleFigures[]): string {
  const table = new Table({
    head: ["fault", "cycles", "takeovers", "client's longest gap, ms", "target", "protected again, ms"],
    style: { head: [], border: [] },
  });
  for (const fault of [...new Set(figures.map((one) => one.fault))].toSorted()) {
    const cycles = figures.filter((one) => one.fault === fault);
    table.push([
      fault,
      cycles.length,
      cycles.reduce((sum, { takeovers }) => sum + takeovers, 0),
      spread(cycles.map(({ gapMs }) => gapMs)),
      TARGETS[fault] ?? "",
      spread(cycles.map(({ protectMs }) => protectMs)),
    ]);
  }
  const seconds = figures.reduce((sum, { cycleMs }) => sum + cycleMs, 0) / 1000;
  return `${figures.length} cycles passed in ${Math.round(seconds)} s\n${table.toString()}`;
}
