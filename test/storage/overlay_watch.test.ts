import { expect, test } from "bun:test";
import { OverlayWatch } from "../../src/storage/overlay_watch.ts";

const MIB = 2 ** 20;
const limits = { sizeBytes: 100 * MIB, softPart: 0.5, hardPart: 0.8 };
const used = (mib: number, freeMib = 1000) => ({ usedBytes: mib * MIB, freeBytes: freeMib * MIB });

test("a checkpoint is asked for once a second until it has made room", () => {
  const watch = new OverlayWatch(limits);
  expect(watch.judge(used(50), 1, 0)).toEqual({ want: "nothing" });
  expect(watch.judge(used(51), 1, 100)).toEqual({
    want: "checkpoint",
    reason: "the overlays take 51.0 of 100.0 MiB",
  });
  expect(watch.judge(used(60), 1, 200)).toEqual({ want: "nothing" });
  expect(watch.judge(used(60), 1, 1100)).toMatchObject({ want: "checkpoint" });
  expect(watch.judge(used(1), 2, 1200)).toEqual({ want: "nothing" });
  expect(watch.judge(used(60), 2, 1300)).toMatchObject({ want: "checkpoint" });
});

test("above the hard limit the replica is given up only after a checkpoint that did not help", () => {
  const watch = new OverlayWatch(limits);
  expect(watch.judge(used(90), 7, 0)).toMatchObject({ want: "checkpoint" });
  expect(watch.judge(used(95), 7, 500)).toEqual({ want: "nothing" });
  expect(watch.judge(used(70), 8, 600)).toEqual({ want: "nothing" }); // above the soft one only
  expect(watch.judge(used(81), 8, 700)).toEqual({
    want: "give_up",
    reason: "the overlays take 81.0 of 100.0 MiB, and a checkpoint did not free enough",
  });
});

test("a file system that has less than the size counts", () => {
  const watch = new OverlayWatch(limits);
  expect(watch.judge(used(10, 5), 1, 0)).toMatchObject({ reason: "the overlays take 10.0 of 15.0 MiB" });
  expect(new OverlayWatch({ ...limits, sizeBytes: 0 }).judge(used(10, 10), 1, 0)).toEqual({
    want: "nothing",
  });
});
