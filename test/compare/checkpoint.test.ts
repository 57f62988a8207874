import { describe, expect, test } from "bun:test";
import { FIN, RST, SYN, tcp, udp } from "./frames.ts";
import { Bench, MS } from "./harness.ts";

const data = (seq: number, payload: string, ack = 500) => tcp({ seq, ack, payload });
const pure = (seq: number, ack: number) => tcp({ seq, ack });

describe("checkpoint", () => {
  test("old frames are released in order of arrival over all flows, newer ones stay", () => {
    const bench = new Bench();
    const old = [
      bench.p(udp("a")),
      bench.p(data(1, "stream")),
      bench.p(udp("b", { sourcePort: 9 })),
      bench.p(pure(7, 900)),
      bench.p(udp("c")),
    ];
    const boundary = bench.nowNs;
    const young = [bench.p(udp("d")), bench.p(data(7, "new"))];
    bench.s(udp("not the same"));
    expect(bench.classes).toEqual(["length"]);
    expect(bench.checkpoint(boundary)).toEqual({ released: 5, dropped: 0 });
    expect(bench.released).toEqual(old);
    bench.s(udp("d"));
    bench.s(data(7, "new"));
    expect(bench.released).toEqual([...old, ...young]);
  });

  test("waiting secondary records of the old epoch are dropped", () => {
    const bench = new Bench();
    const slots = [bench.s(udp("x")), bench.s(data(1, "y")), bench.s(tcp({ seq: 5, flags: SYN }))];
    slots.push(bench.s(pure(9, 9)));
    expect(bench.checkpoint()).toEqual({ released: 0, dropped: 4 });
    expect(bench.finished.toSorted()).toEqual(slots);
    expect(bench.p(udp("x"))).toBe(0);
    expect(bench.released).toEqual([]);
  });

  test("an old frame that is added after the checkpoint is released at once", () => {
    const bench = new Bench();
    const boundary = bench.nowNs + 50 * MS;
    bench.checkpoint(boundary);
    const late = bench.p(data(100, "late", 700), { timeNs: boundary });
    expect(bench.isReleased(late)).toBe(true);
    // It says how far the connection had come: its retransmission and its acknowledgement are covered ...
    const again = bench.p(data(100, "late", 700), { timeNs: boundary + 1 });
    expect(bench.isReleased(again)).toBe(true);
    // ... but nothing beyond.
    const next = bench.p(data(104, "next", 700), { timeNs: boundary + 2 });
    expect(bench.isReleased(next)).toBe(false);
    bench.s(data(104, "next", 700));
    expect(bench.isReleased(next)).toBe(true);
  });

  test("an old frame added late frees newer ones that its state covers", () => {
    const bench = new Bench();
    bench.p(data(1, "x", 500));
    const boundary = bench.nowNs;
    bench.checkpoint(boundary);
    const newer = bench.p(pure(2, 800));
    expect(bench.isReleased(newer)).toBe(false);
    const late = bench.p(pure(2, 800), { timeNs: boundary });
    expect(bench.released.slice(-2)).toEqual([late, newer]);
  });

  test("the state after it is the primary's: highest sequence end and acknowledgement it had sent", () => {
    const bench = new Bench();
    bench.p(data(1, "0123456789", 600));
    bench.s(data(1, "012", 550));
    bench.checkpoint();
    // The secondary now continues behind the primary's last byte.
    const again = bench.p(data(1, "0123456789", 600));
    expect(bench.isReleased(again)).toBe(true);
    const ahead = bench.p(data(11, "ab", 601));
    bench.s(data(11, "ab", 600));
    expect(bench.isReleased(ahead)).toBe(false);
    bench.s(pure(13, 601));
    expect(bench.isReleased(ahead)).toBe(true);
    expect(bench.divergences).toEqual([]);
  });

  test("bytes verified before it do not count for a frame after it", () => {
    const bench = new Bench();
    bench.p(data(1, "abc", 500));
    bench.s(data(1, "abc", 500));
    const boundary = bench.nowNs;
    bench.comparer.beginCheckpoint(boundary);
    // The secondary ran ahead; the primary sends the same after it was stopped and resumed.
    bench.s(data(4, "def", 500));
    const after = bench.p(data(4, "def", 500));
    expect(bench.isReleased(after)).toBe(false);
    bench.checkpoint(boundary);
    expect(bench.isReleased(after)).toBe(false);
    // The restored secondary says something else this time.
    bench.s(data(4, "dXf", 500));
    expect(bench.classes).toEqual(["payload"]);
    expect(bench.isReleased(after)).toBe(false);
  });

  test("without beginCheckpoint() the same is noticed, and costs another checkpoint", () => {
    const bench = new Bench();
    const boundary = bench.nowNs;
    bench.s(udp("ahead"));
    const after = bench.p(udp("ahead"));
    expect(bench.isReleased(after)).toBe(true);
    bench.checkpoint(boundary);
    expect(bench.classes).toEqual(["boundary"]);
    bench.checkpoint();
    expect(bench.classes).toEqual(["boundary"]);
  });

  test("bytes verified but not yet released are verified again after it", () => {
    const bench = new Bench();
    const boundary = bench.nowNs;
    const a = bench.p(data(1, "abc", 600));
    bench.s(data(1, "abc", 500));
    bench.checkpoint(boundary);
    bench.s(data(1, "aXc", 600));
    expect(bench.classes).toEqual(["payload"]);
    expect(bench.isReleased(a)).toBe(false);
  });

  test("an acknowledgement of the secondary from before it does not count after it", () => {
    const bench = new Bench();
    bench.s(pure(1, 900));
    bench.checkpoint();
    const a = bench.p(pure(1, 900));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(1, 900));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("a second checkpoint without anything in between does no harm", () => {
    const bench = new Bench();
    bench.p(data(1, "abc"));
    bench.checkpoint();
    expect(bench.checkpoint()).toEqual({ released: 0, dropped: 0 });
    expect(bench.isReleased(bench.p(data(1, "abc")))).toBe(true);
  });

  test("an earlier boundary than before covers nothing less", () => {
    const bench = new Bench();
    const boundary = bench.nowNs + 10 * MS;
    bench.checkpoint(boundary);
    bench.checkpoint(boundary - 5 * MS);
    expect(bench.isReleased(bench.p(udp("x"), { timeNs: boundary }))).toBe(true);
  });
});

describe("checkpoint about to come", () => {
  test("frames older than the horizon are compared on, newer ones are held until it moves", () => {
    const bench = new Bench();
    const a = bench.p(data(1, "abc"));
    bench.comparer.beginCheckpoint(bench.nowNs);
    const b = bench.p(data(4, "def"));
    const c = bench.p(udp("x"));
    bench.s(data(1, "abcdef"));
    bench.s(udp("x"));
    expect(bench.released).toEqual([a]);
    // No timeouts meanwhile: a checkpoint is on its way.
    bench.wait(1000);
    expect(bench.divergences).toEqual([]);
    expect(bench.comparer.nextDeadlineNs()).toBe(Number.POSITIVE_INFINITY);
    bench.comparer.beginCheckpoint(bench.nowNs);
    expect(bench.released.toSorted()).toEqual([a, b, c]);
    expect(bench.comparer.nextDeadlineNs()).toBe(Number.POSITIVE_INFINITY);
  });

  test("the horizon can be raised to the time of STOP", () => {
    const bench = new Bench();
    bench.comparer.beginCheckpoint(bench.nowNs);
    const a = bench.p(data(1, "abc"));
    const syn = bench.p(tcp({ seq: 9000, ack: 5, flags: SYN }));
    bench.s(data(1, "abc"));
    expect(bench.released).toEqual([]);
    bench.comparer.beginCheckpoint(bench.nowNs);
    expect(bench.released).toEqual([a]);
    bench.s(tcp({ seq: 70, ack: 5, flags: SYN }));
    expect(bench.released).toEqual([a, syn]);
  });
});

describe("epochs", () => {
  test("records of an older epoch are finished at once", () => {
    const bench = new Bench({ epoch: 5 });
    const a = bench.p(udp("x"));
    const stale = bench.s(udp("x"), { epoch: 4 });
    expect(bench.isFinished(stale)).toBe(true);
    expect(bench.isReleased(a)).toBe(false);
    expect(bench.comparer.stats.staleFrames).toBe(1);
  });

  test("records of the next epoch wait for its checkpoint, in order", () => {
    const bench = new Bench({ epoch: 5 });
    bench.p(udp("old"));
    const boundary = bench.nowNs;
    bench.comparer.beginCheckpoint(boundary);
    const early = [
      bench.s(udp("a"), { epoch: 6 }),
      bench.s(udp("b"), { epoch: 6 }),
      bench.s(udp("c"), { epoch: 7 }),
    ];
    const young = [bench.p(udp("a")), bench.p(udp("b")), bench.p(udp("c"))];
    expect(bench.released).toEqual([]);
    expect(bench.comparer.stats.earlyFrames).toBe(3);
    bench.checkpoint(boundary);
    expect(bench.released).toEqual([0, ...young.slice(0, 2)]);
    expect(early.map((slot) => bench.isFinished(slot))).toEqual([true, true, false]);
    bench.checkpoint(boundary);
    expect(bench.released).toEqual([0, ...young]);
  });

  test("an early record whose epoch was skipped is finished", () => {
    const bench = new Bench({ epoch: 5 });
    const early = bench.s(udp("x"), { epoch: 6 });
    bench.comparer.checkpoint(bench.nowNs, 7);
    expect(bench.isFinished(early)).toBe(true);
    expect(bench.comparer.stats.staleFrames).toBe(1);
  });

  test("16-bit tags wrap around, whatever the width of the number that checkpoint() is given", () => {
    const bench = new Bench({ epoch: 0xffff });
    const early = bench.s(udp("x"), { epoch: 0 });
    expect(bench.isFinished(early)).toBe(false);
    bench.comparer.checkpoint(bench.nowNs, 0x10000);
    const a = bench.p(udp("x"));
    expect(bench.isReleased(a)).toBe(true);
    const stale = bench.s(udp("y"), { epoch: 0xffff });
    expect(bench.isFinished(stale)).toBe(true);
  });
});

describe("connections across a checkpoint", () => {
  test("a SYN before it: the secondary's retransmission carries the primary's number now", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: 1000, ack: 5, flags: SYN }));
    bench.s(tcp({ seq: 70_000, ack: 5, flags: SYN }));
    bench.checkpoint();
    const syn = bench.p(tcp({ seq: 1000, ack: 5, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(true);
    bench.s(tcp({ seq: 1000, ack: 5, flags: SYN }));
    const a = bench.p(data(1001, "x", 5));
    bench.s(data(1001, "x", 5));
    expect(bench.isReleased(a)).toBe(true);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });

  test("a SYN after it is compared with the secondary's own", () => {
    const bench = new Bench();
    bench.p(data(1, "older connection"));
    const boundary = bench.nowNs;
    const syn = bench.p(tcp({ seq: 9000, ack: 5, flags: SYN }));
    bench.checkpoint(boundary);
    expect(bench.isReleased(syn)).toBe(false);
    bench.s(tcp({ seq: 70_000, ack: 5, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(true);
  });

  test("a SYN that had become the current connection, but is newer than the boundary", () => {
    const bench = new Bench();
    const boundary = bench.nowNs;
    const syn = bench.p(tcp({ seq: 9000, ack: 50, flags: SYN }));
    const a = bench.p(tcp({ seq: 9001, ack: 50, payload: "x" }));
    bench.s(tcp({ seq: 70_000, ack: 40, flags: SYN }));
    bench.checkpoint(boundary);
    expect(bench.released).toEqual([]);
    bench.s(tcp({ seq: 80_000, ack: 50, flags: SYN }));
    bench.s(tcp({ seq: 9001, ack: 50, payload: "x" }));
    expect(bench.released).toEqual([syn, a]);
  });

  test("several connections on the same ports before it: the last one counts", () => {
    const bench = new Bench();
    bench.p(data(5_000_000, "first", 999_999));
    bench.p(tcp({ seq: 1000, ack: 50, flags: SYN }));
    bench.p(data(1001, "second", 60));
    bench.checkpoint();
    expect(bench.released).toEqual([0, 1, 2]);
    expect(bench.isReleased(bench.p(data(1001, "second", 60)))).toBe(true);
    const next = bench.p(data(1007, "third", 61));
    expect(bench.isReleased(next)).toBe(false);
    bench.s(data(1007, "third", 61));
    expect(bench.isReleased(next)).toBe(true);
  });

  test("a late SYN of the old epoch starts its connection over", () => {
    const bench = new Bench();
    bench.p(data(5_000_000, "first", 999_999));
    const boundary = bench.nowNs;
    bench.checkpoint(boundary);
    bench.p(tcp({ seq: 1000, ack: 50, flags: SYN }), { timeNs: boundary });
    const a = bench.p(data(1001, "x", 50));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(data(1001, "x", 50));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("an old frame behind a new SYN belongs to the connection before", () => {
    const bench = new Bench();
    const boundary = bench.nowNs;
    const syn = bench.p(tcp({ seq: 1000, ack: 50, flags: SYN }));
    const old = bench.p(tcp({ seq: 5000, ack: 100_000, payload: "older" }), { timeNs: boundary });
    expect(bench.checkpoint(boundary).released).toBe(1);
    expect(bench.released).toEqual([old]);
    bench.s(tcp({ seq: 70_000, ack: 50, flags: SYN }));
    expect(bench.released).toEqual([old, syn]);
    const a = bench.p(data(1001, "x", 60));
    bench.s(data(1001, "x", 50));
    expect(bench.isReleased(a)).toBe(false);
  });

  test("a late frame of an older connection does not disturb the newer one", () => {
    const bench = new Bench();
    const boundary = bench.nowNs + 10;
    bench.checkpoint(boundary);
    bench.p(tcp({ seq: 1000, ack: 50, flags: SYN }), { timeNs: boundary + 5 });
    bench.s(tcp({ seq: 7000, ack: 50, flags: SYN }));
    expect(bench.isReleased(bench.p(data(5_000_000, "first", 999_999), { timeNs: boundary }))).toBe(true);
    const a = bench.p(data(1001, "x", 50));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(data(1001, "x", 50));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("an RST that only a checkpoint released does not stand for a later one", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: 1000, ack: 50, flags: RST }));
    bench.checkpoint();
    const again = bench.p(tcp({ seq: 1000, ack: 50, flags: RST }));
    expect(bench.isReleased(again)).toBe(false);
  });

  test("mid-stream start, then a checkpoint: the floor is gone, what is below is covered", () => {
    const bench = new Bench();
    bench.p(data(100, "abc"));
    bench.s(data(100, "abc"));
    bench.checkpoint();
    expect(bench.isReleased(bench.p(data(50, "retransmitted")))).toBe(true);
  });
});

describe("timeouts", () => {
  test("deadlines, one report for each flow and wait, nothing released", () => {
    const bench = new Bench({ maxWaitNs: 100 * MS });
    expect(bench.comparer.nextDeadlineNs()).toBe(Number.POSITIVE_INFINITY);
    bench.p(udp("a"));
    const sent = bench.nowNs;
    bench.p(udp("b"));
    bench.p(udp("c", { sourcePort: 9 }));
    expect(bench.comparer.nextDeadlineNs()).toBe(sent + 100 * MS);
    bench.wait(99);
    expect(bench.divergences).toEqual([]);
    bench.wait(2);
    expect(bench.classes).toEqual(["missing_on_secondary", "missing_on_secondary"]);
    expect(bench.divergences[0].waitedNs).toBeGreaterThanOrEqual(100 * MS);
    const next = bench.comparer.nextDeadlineNs();
    expect(next).toBeGreaterThan(bench.nowNs);
    expect(next).toBeLessThanOrEqual(bench.nowNs + 100 * MS);
    bench.wait(50);
    expect(bench.divergences).toHaveLength(2);
    bench.wait(60);
    expect(bench.divergences).toHaveLength(4);
    expect(bench.released).toEqual([]);
    // A counterpart that comes late is still a counterpart.
    bench.s(udp("a"));
    bench.s(udp("b"));
    bench.s(udp("c", { sourcePort: 9 }));
    expect(bench.released).toEqual([0, 1, 2]);
    bench.wait(1000);
    expect(bench.divergences).toHaveLength(4);
    expect(bench.comparer.nextDeadlineNs()).toBe(Number.POSITIVE_INFINITY);
  });

  test("what only the secondary sent", () => {
    const bench = new Bench();
    bench.s(data(7, "unsaid"));
    bench.s(udp("unsaid"));
    bench.wait(250);
    expect(bench.classes).toEqual(["missing_on_primary", "missing_on_primary"]);
    expect(bench.divergences[0].detail).toContain("sequence 7 to 13");
    bench.checkpoint();
    bench.wait(1000);
    expect(bench.divergences).toHaveLength(2);
  });

  test("a held acknowledgement says what it waits for", () => {
    const bench = new Bench();
    bench.s(pure(1, 600));
    bench.p(pure(1, 700));
    bench.wait(250);
    expect(bench.classes).toEqual(["missing_on_secondary"]);
    expect(bench.divergences[0].detail).toContain("secondary acknowledged 600");
    expect(bench.divergences[0].detail).toContain("acknowledgement 700");
  });

  test("time spent in a checkpoint does not count", () => {
    const bench = new Bench();
    const boundary = bench.nowNs;
    bench.comparer.beginCheckpoint(boundary);
    bench.p(udp("young"));
    bench.wait(150);
    bench.checkpoint(boundary);
    bench.wait(100);
    expect(bench.divergences).toEqual([]);
    bench.wait(101);
    expect(bench.classes).toEqual(["missing_on_secondary"]);
  });
});

describe("VMs that wait for each other", () => {
  const from = (sourcePort: number, seq: number, payload: string) =>
    tcp({ seq, ack: 5, payload, sourcePort });
  const crossed = () => new Bench({ maxWaitNs: 250 * MS, crossedAfterNs: 50 * MS });

  test("each has sent in one flow what the other has not: reported long before one counts as late", () => {
    const bench = crossed();
    bench.p(from(1, 1, "lock is yours"));
    bench.wait(30);
    bench.s(from(2, 1, "lock is yours"));
    bench.wait(49);
    expect(bench.divergences).toEqual([]);
    bench.wait(2);
    expect(bench.classes).toEqual(["missing_on_secondary"]);
    expect(bench.divergences[0].flow).toContain(":1 >");
    expect(bench.divergences[0].detail).toContain("wait for each other");
    expect(bench.released).toEqual([]);
    // Once for each wait, and the next look is in the future.
    expect(bench.comparer.nextDeadlineNs()).toBeGreaterThan(bench.nowNs);
    bench.wait(100);
    expect(bench.divergences).toHaveLength(1);
    bench.checkpoint();
    expect(bench.released).toEqual([0]);
    bench.wait(1000);
    expect(bench.divergences).toHaveLength(1);
  });

  test("one that is only late is given its whole time", () => {
    const late = crossed();
    late.p(from(1, 1, "x"));
    late.p(from(2, 1, "y"));
    late.wait(249);
    expect(late.divergences).toEqual([]);
    const early = crossed();
    early.s(from(1, 1, "x"));
    early.s(from(2, 1, "y"));
    early.wait(249);
    expect(early.divergences).toEqual([]);
  });

  test("an order that mends itself costs nothing", () => {
    const bench = crossed();
    for (let round = 1; round <= 5; round++) {
      bench.p(from(1, round, "x"));
      bench.s(from(2, round, "y"));
      bench.wait(40);
      bench.s(from(1, round, "x"));
      bench.p(from(2, round, "y"));
      bench.wait(20);
    }
    expect(bench.divergences).toEqual([]);
    expect(bench.released).toHaveLength(10);
  });
});

describe("running alone", () => {
  test("everything held is released in order of arrival and everything is forgotten", () => {
    const bench = new Bench({ limits: { heldFramesMax: 4 } });
    bench.p(data(1, "a"));
    bench.p(udp("b"));
    bench.p(data(2, "c", 700));
    bench.p(udp("d"));
    for (let i = 0; i < 3; i++) bench.p(udp(`overflow ${i}`));
    bench.s(udp("e", { sourcePort: 7 }));
    bench.s(udp("f"), { epoch: 1 });
    expect(bench.comparer.releaseAll()).toBe(7);
    bench.check();
    expect(bench.released).toEqual([0, 1, 2, 3, 4, 5, 6]);
    expect(bench.finished.toSorted()).toEqual([0, 1]);
    expect(bench.comparer.stats.flows).toBe(0);
    bench.p(tcp({ seq: 1, ack: 1, flags: FIN }));
    expect(bench.comparer.releaseAll()).toBe(1);
  });
});
