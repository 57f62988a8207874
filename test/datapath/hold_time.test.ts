/** The histogram of hold times that a worker counts. */
import { expect, test } from "bun:test";
import { HOLD_BUCKETS_SECONDS, SharedBlock } from "../../src/datapath/shared.ts";

test("a hold time counts in the first bucket whose bound it does not exceed", () => {
  const shared = new SharedBlock();
  const expected: number[] = new Array(HOLD_BUCKETS_SECONDS.length + 1).fill(0);
  let sum = 0;
  const observe = (seconds: number, bucket: number) => {
    shared.observeHold(seconds);
    expected[bucket]! += 1;
    sum += seconds;
    expect(shared.holdBuckets()).toEqual(expected);
  };
  observe(0, 0);
  for (const [bucket, bound] of HOLD_BUCKETS_SECONDS.entries()) {
    observe(bound, bucket);
    observe(bound * 1.000_001, bucket + 1);
  }
  observe(3600, HOLD_BUCKETS_SECONDS.length);
  expect(shared.stat("hold_seconds_sum")).toBeCloseTo(sum, 9);
  expect(shared.stat("hold_count")).toBe(expected.reduce((total, count) => total + count));
});
