/** The short way (src/compare/in_order.ts) must not be taken where the long one does something else. */
import { describe, expect, test } from "bun:test";
import { tcp } from "./frames.ts";
import { Bench } from "./harness.ts";

const data = (seq: number, payload: string, ack = 500) => tcp({ seq, ack, payload });
const pure = (seq: number, ack: number) => tcp({ seq, ack });

/** A connection of which both sides know up to 101, with everything acknowledged up to 500. */
function established(options: ConstructorParameters<typeof Bench>[0] = {}): Bench {
  const bench = new Bench(options);
  bench.p(data(100, "x"));
  bench.s(data(100, "x"));
  expect(bench.released).toHaveLength(1);
  return bench;
}

describe("segments in order", () => {
  test("are released when they come, if the secondary's are there", () => {
    const bench = established();
    const theirs = [bench.s(data(101, "ab")), bench.s(data(103, "cdef")), bench.s(data(107, "g"))];
    const first = bench.p(data(101, "abcd"));
    expect(bench.isReleased(first)).toBe(true);
    expect(theirs.map((slot) => bench.isFinished(slot))).toEqual([true, false, false]);
    const second = bench.p(data(105, "efg"));
    expect(bench.isReleased(second)).toBe(true);
    expect(theirs.map((slot) => bench.isFinished(slot))).toEqual([true, true, true]);
    expect(bench.divergences).toEqual([]);
    bench.check();
  });

  test("wait as far as they are not covered, and leave in order", () => {
    const bench = established();
    bench.s(data(101, "ab"));
    const first = bench.p(data(101, "abcd"));
    const second = bench.p(pure(105, 500));
    expect(bench.isReleased(first) || bench.isReleased(second)).toBe(false);
    bench.s(data(103, "cd"));
    expect(bench.released.slice(1)).toEqual([first, second]);
    bench.check();
  });

  test("diverge where the bytes differ, in whichever segment of the secondary", () => {
    const bench = established();
    bench.s(data(101, "ab"));
    bench.s(data(103, "cX"));
    const held = bench.p(data(101, "abcd"));
    expect(bench.isReleased(held)).toBe(false);
    expect(bench.classes).toEqual(["payload"]);
    bench.check();
  });

  test("of a flow that has diverged stay, even if nothing else of it is held", () => {
    const bench = established({ limits: { pendingFramesPerFlowMax: 2 } });
    for (const [i, byte] of ["a", "b", "c"].entries()) bench.s(data(101 + i, byte));
    expect(bench.classes).toEqual(["overflow"]);
    const acknowledgement = bench.p(pure(101, 500));
    expect(bench.isReleased(acknowledgement)).toBe(false);
    bench.checkpoint();
    expect(bench.isReleased(acknowledgement)).toBe(true);
    bench.check();
  });

  test("that a checkpoint covers are released by it, not by comparison", () => {
    const bench = established();
    const boundary = bench.nowNs + 1000;
    bench.checkpoint(boundary);
    const before = bench.comparer.stats.releasedByCheckpoint;
    bench.s(data(101, "a"));
    for (const frame of [pure(101, 500), data(101, "a")]) bench.p(frame, { timeNs: boundary });
    expect(bench.comparer.stats.releasedByCheckpoint).toBe(before + 2);
    bench.check();
  });
});
