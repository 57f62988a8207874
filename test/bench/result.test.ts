import { expect, test } from "bun:test";
import { median, ResultSet } from "../../src/bench/result.ts";
import { figure, renderResults } from "../../src/bench/table.ts";

test("the middle value, or the mean of the two in the middle", () => {
  expect(median([3, 1, 2])).toBe(2);
  expect(median([4, 1, 3, 2])).toBe(2.5);
  expect(median([7])).toBe(7);
  expect(median([])).toBeNaN();
});

test("runs of a figure become its median and spread, in the order of first appearance", () => {
  const results = new ResultSet("path");
  const key = { case: "a", subject: "colo-agent", metric: "delay", unit: "us" };
  for (const value of [5, 1, 3]) {
    results.add(key, value);
    results.add({ ...key, subject: "none" }, value * 2);
  }
  expect(results.toJson()).toEqual([
    { bench: "path", ...key, median: 3, min: 1, max: 5, runs: 3 },
    { bench: "path", ...key, subject: "none", median: 6, min: 2, max: 10, runs: 3 },
  ]);
});

test("a value that is no number is an error that names its figure", () => {
  const key = { case: "a", subject: "qemu", metric: "delay", unit: "us" };
  expect(() => new ResultSet("path").add(key, Number.NaN)).toThrow("path, a: delay of qemu came out as NaN");
});

test("figures have three digits that count", () => {
  expect([0.012345, 1.23456, 1234, 12_345, 1_234_567].map(figure)).toEqual([
    "0.0123",
    "1.23",
    "1230",
    "12.3 k",
    "1.23 M",
  ]);
});

test("the table has subjects side by side, spreads, and the agent as a multiple of its peers", () => {
  const one = { bench: "compare", case: "64 B", metric: "packets", unit: "packets/s", runs: 3 } as const;
  const text = renderResults([
    { ...one, subject: "colo-agent", median: 200, min: 190, max: 220 },
    { ...one, subject: "qemu", median: 50, min: 40, max: 60 },
    { ...one, subject: "colo-agent", metric: "only here", median: 1, min: 1, max: 1, runs: 1 },
  ]);
  const rows = text
    .split("\n")
    .filter((line) => line.startsWith("│"))
    .map((line) => line.split("│").map((cell) => cell.trim()))
    .map((cells) => cells.slice(1, -1));
  expect(rows).toEqual([
    ["case", "metric", "colo-agent", "qemu", "ratio"],
    ["64 B", "packets, packets/s", "200 (190–220)", "50 (40–60)", "4 x qemu"],
    ["", "only here, packets/s", "1", "-", ""],
  ]);
});
