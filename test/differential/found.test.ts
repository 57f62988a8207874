/** What the differential test has found in our comparer, each as small as it gets. */
import { expect, test } from "bun:test";
import { tcp } from "../compare/frames.ts";
import { Bench } from "../compare/harness.ts";

const data = (seq: number, payload: string) => tcp({ seq, ack: 5, payload });

test("a verified segment does not wait for a repetition that begins before it and ends behind it", () => {
  const bench = new Bench();
  bench.p(data(1, "abcd"));
  bench.s(data(1, "abcd"));
  const verified = bench.p(data(5, "efgh"));
  const repetition = bench.p(data(3, "cdefghij"));
  bench.s(data(5, "efgh"));
  expect(bench.isReleased(verified)).toBe(true);
  expect(bench.isReleased(repetition)).toBe(false);
  bench.s(data(9, "ij"));
  expect(bench.isReleased(repetition)).toBe(true);
});
