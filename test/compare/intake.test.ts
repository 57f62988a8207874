/**
 * The order in which records of two rings are taken (src/compare/intake.ts): nothing is left, nothing
 * overtakes, no more than asked for.
 */
import { beforeEach, expect, test } from "bun:test";
import { Comparer } from "../../src/compare/comparer.ts";
import { Intake, type RecordSource } from "../../src/compare/intake.ts";
import { tcp, udp } from "./frames.ts";
import { memcmpOf, Records } from "./harness.ts";

const RING_BYTES = 1 << 18;

/** Records that are there to be read, as in a ring. */
class Source extends Records implements RecordSource {
  private readonly offsets: number[] = [];
  private read = 0;

  add(...frames: Uint8Array[]): void {
    for (const frame of frames) this.offsets.push(this.put(frame, 1000 + this.offsets.length, 0));
  }

  next(): number {
    return this.read < this.offsets.length ? this.read++ : -1;
  }

  offset(slot: number): number {
    return this.offsets[slot];
  }
}

let primary: Source;
let secondary: Source;
let comparer: Comparer;
let intake: Intake;
let released: number[];
let finished: number[];
let diverged: string[];

beforeEach(() => {
  primary = new Source(RING_BYTES, 0x7f00_0000_0000);
  secondary = new Source(RING_BYTES, 0x7e00_0000_0000);
  released = [];
  finished = [];
  diverged = [];
  comparer = new Comparer({
    primary,
    secondary,
    memcmp: memcmpOf(primary, secondary),
    sink: {
      permit: (slot) => released.push(slot),
      finish: (slot) => finished.push(slot),
      diverged: (divergence) => diverged.push(divergence.class),
    },
  });
  intake = new Intake(comparer, primary, secondary);
});

const upTo = (count: number) => Array.from({ length: count }, (_, i) => i);

/** A connection's bytes [from, to) as one segment. */
function segment(port: number, from: number, to: number): Uint8Array {
  const payload = Uint8Array.from({ length: to - from }, (_, i) => (from + i) & 0xff);
  return tcp({ sourcePort: port, seq: 1 + from, ack: 1, payload });
}

const stream = (port: number, cuts: number[]) => cuts.slice(1).map((to, i) => segment(port, cuts[i], to));

function takeAll(limit: number): void {
  while (intake.take(limit) > 0);
}

test("streams side by side are taken together, no more than the limit of each at once", () => {
  const both = stream(80, [0, 10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
  primary.add(...both);
  secondary.add(...both);
  // The first segment makes the connection known; the two ways together take one more.
  expect(intake.take(4)).toBe(10);
  expect(released).toEqual(upTo(5));
  expect(intake.take(4)).toBe(8);
  expect(intake.take(4)).toBe(2);
  expect(intake.take(4)).toBe(0);
  expect([intake.primaryFrames, intake.secondaryFrames]).toEqual([10, 10]);
  expect(released).toEqual(upTo(10));
  expect(finished).toEqual(upTo(10));
  expect(diverged).toEqual([]);
});

for (const limit of [1, 2, 3, 100]) {
  test(`streams that are cut or ordered differently end up the same, ${limit} at a time`, () => {
    const even = upTo(21).map((i) => i * 10);
    const odd = [0, 5, ...upTo(20).map((i) => 15 + i * 10), 200].filter((cut) => cut <= 200);
    const [a, b] = [stream(80, even), stream(81, even)];
    const [c, d] = [stream(80, odd), stream(81, even)];
    primary.add(...a.flatMap((one, i) => [one, b[i]]), udp(new Uint8Array(9)));
    // One connection first, then the other.
    secondary.add(udp(new Uint8Array(9)), ...d, ...c);
    takeAll(limit);
    expect(released.toSorted((x, y) => x - y)).toEqual(upTo(41));
    // In order within each connection.
    for (const which of [0, 1]) {
      const own = released.filter((slot) => slot < 40 && slot % 2 === which);
      expect(own).toEqual(own.toSorted((x, y) => x - y));
    }
    expect(finished.toSorted((x, y) => x - y)).toEqual(upTo(1 + c.length + d.length));
    expect([intake.primaryFrames, intake.secondaryFrames]).toEqual([41, 1 + c.length + d.length]);
    expect(diverged).toEqual([]);
    expect(comparer.stats.heldFrames + comparer.stats.pendingFrames).toBe(0);
  });
}

test("one side alone is taken, and waits for the other", () => {
  const [first, second] = stream(80, [0, 10, 20]);
  primary.add(first);
  expect(intake.take(8)).toBe(1);
  expect(released).toEqual([]);
  secondary.add(first, second);
  expect(intake.take(8)).toBe(2);
  expect(released).toEqual([0]);
  primary.add(second);
  expect(intake.take(8)).toBe(1);
  expect(released).toEqual([0, 1]);
  expect(finished).toEqual([0, 1]);
});

test("a difference is found, and nothing behind it leaves", () => {
  const same = stream(80, [0, 10, 20]);
  primary.add(...same, segment(80, 20, 30), segment(80, 30, 40));
  secondary.add(...same, segment(80, 20, 30).fill(0xee, -4), segment(80, 30, 40));
  takeAll(8);
  expect(diverged).toEqual(["payload"]);
  expect(released).toEqual([0, 1]);
});

test("takePrimary() leaves the secondary's where they are", () => {
  const both = stream(80, [0, 10, 20]);
  primary.add(...both);
  secondary.add(...both);
  expect(intake.takePrimary(1)).toBe(1);
  expect([intake.primaryFrames, intake.secondaryFrames]).toEqual([1, 0]);
  expect(released).toEqual([]);
});
