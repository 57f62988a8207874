import { expect, test } from "bun:test";
import { ResyncProgress } from "../../src/storage/resync_progress.ts";

test("sums disks, and tells rate and rest from the last seconds", () => {
  let nowMs = 0;
  const progress = new ResyncProgress(new Map([["colo-disk0", "disk0"]]), () => nowMs);
  expect(progress.reading).toEqual({
    copiedBytes: 0,
    totalBytes: 0,
    bytesPerSecond: 0,
    remainingSeconds: undefined,
    disks: [],
  });
  const at = (ms: number, first: number, second: number) => {
    nowMs = ms;
    progress.update([
      { quorumNode: "colo-disk0", copiedBytes: first, totalBytes: 1000, follows: false },
      { quorumNode: "other", copiedBytes: second, totalBytes: 500, follows: second === 500 },
    ]);
  };
  at(0, 0, 0);
  at(1000, 0, 0);
  at(2500, 100, 50);
  expect(progress.reading.bytesPerSecond).toBeCloseTo(60, 5);
  at(3000, 200, 100);
  at(4500, 600, 300);
  const { copiedBytes, totalBytes, bytesPerSecond, remainingSeconds, disks } = progress.reading;
  expect([copiedBytes, totalBytes]).toEqual([900, 1500]);
  expect(bytesPerSecond).toBeCloseTo(900 / 3.5, 5); // the first sample is too old
  expect(remainingSeconds).toBeCloseTo(600 / (900 / 3.5), 5);
  expect(disks).toEqual([
    { disk: "disk0", copiedBytes: 600, totalBytes: 1000, follows: false },
    { disk: "other", copiedBytes: 300, totalBytes: 500, follows: false },
  ]);
});

test("nothing moves: no time is promised", () => {
  let nowMs = 0;
  const progress = new ResyncProgress(new Map(), () => nowMs);
  const one = { quorumNode: "q", copiedBytes: 10, totalBytes: 20, follows: false };
  progress.update([one]);
  nowMs = 1000;
  progress.update([one]);
  expect(progress.reading).toMatchObject({ bytesPerSecond: 0, remainingSeconds: undefined });
});
