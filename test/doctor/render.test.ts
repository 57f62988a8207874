/** The doctor's table: what somebody has to do something about comes first. */
import { expect, test } from "bun:test";
import { stripVTControlCharacters } from "node:util";
import type { Result, Status } from "../../src/doctor/check.ts";
import { renderResults } from "../../src/doctor/render.ts";

const result = (group: string, title: string, status: Status, subject?: string): Result => ({
  ...{ group, id: title, title, status, found: `${title} found` },
  ...(status === "ok" || status === "not_asked" ? {} : { fix: `${title} remedy` }),
  ...(subject === undefined ? {} : { subject }),
});

const RESULTS = [
  result("kernel", "Kernel", "ok"),
  result("kernel", "Locked memory", "warn"),
  result("qemu", "QEMU", "ok"),
  result("qemu", "A pair", "fail"),
  result("vms", "Taps", "fail", "vm1"),
];

/** The cells of each row that has any. */
function rows(results: readonly Result[]): string[][] {
  return stripVTControlCharacters(renderResults(results, 160))
    .split("\n")
    .filter((line) => line.includes("│"))
    .map((line) =>
      line
        .split("│")
        .map((cell) => cell.trim())
        .filter((cell) => cell !== ""),
    );
}

test("failures, then warnings, then the rest by group; nothing twice", () => {
  expect(rows(RESULTS).slice(1)).toEqual([
    ["Failed"],
    ["A pair", "fail", "A pair found", "A pair remedy"],
    ["Taps: vm1", "fail", "Taps found", "Taps remedy"],
    ["Warnings"],
    ["Locked memory", "warn", "Locked memory found", "Locked memory remedy"],
    ["Kernel and system"],
    ["Kernel", "ok", "Kernel found"],
    ["QEMU"],
    ["QEMU", "ok", "QEMU found"],
  ]);
});

test("where nothing is to do, there are the groups alone", () => {
  const first = rows(RESULTS.filter(({ status }) => status === "ok"));
  expect(first.slice(1).map(([cell]) => cell)).toEqual(["Kernel and system", "Kernel", "QEMU", "QEMU"]);
  expect(renderResults([])).toContain("0 ok, 0 warnings, 0 failed");
});
