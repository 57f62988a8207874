import { expect, test } from "bun:test";
import { Tuning } from "../../src/agent/tuning.ts";

const configured = () =>
  new Tuning({
    checkpoint: {
      period_ms: 5000,
      max_wait_ms: 250,
      min_interval_ms: 20,
      input_drain_ms: 20,
      stop_timeout_ms: 1500,
      load_timeout_ms: 30_000,
    },
    resync: { bytes_per_second: 0 },
  });

test("begins as configured, tells listeners of a change until they end", () => {
  const tuning = configured();
  expect(tuning.values).toEqual({ periodMs: 5000, resyncBytesPerSecond: 0 });
  const seen: number[] = [];
  const end = tuning.onChange(() => seen.push(tuning.periodMs));
  tuning.change({ periodMs: 100 });
  tuning.change({ resyncBytesPerSecond: 1_000_000 });
  end();
  tuning.change({ periodMs: 200 });
  expect(seen).toEqual([100, 100]);
  expect(tuning.values).toEqual({ periodMs: 200, resyncBytesPerSecond: 1_000_000 });
});

test.each([
  [{}, /no setting to change/],
  [{ periodMs: 99 }, /the period must be a whole number from 100 to 3600000 ms/],
  [{ periodMs: 1000.5 }, /whole number/],
  [{ periodMs: Number.NaN }, /whole number/],
  [{ resyncBytesPerSecond: -1 }, /limit of a resync/],
] as const)("%p is refused, and nothing is changed", (wanted, message) => {
  const tuning = configured();
  expect(() => tuning.change({ ...wanted })).toThrow(message);
  expect(() => tuning.change({ periodMs: 300, ...wanted, resyncBytesPerSecond: -1 })).toThrow();
  expect(tuning.values).toEqual({ periodMs: 5000, resyncBytesPerSecond: 0 });
});
