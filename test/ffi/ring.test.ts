/** Reading a BPF ring in place: order, wrapping, room given back, positions beyond 4 GiB. */
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { RECORD, RECORD_HEADER_BYTES, ROLE } from "../../src/ffi/layout.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { grantLease, loadFresh, unload } from "../bpf/data_plane_under_test.ts";
import { segment } from "../bpf/frames.ts";

const NAME = "ring";
const RING_BYTES = 64 * 1024;
let plane: DataPlane;
let ring: Ring;

beforeAll(() => {
  plane = loadFresh(NAME, { ringBytes: RING_BYTES });
  plane.state.role = ROLE.PRIMARY;
  grantLease(plane);
});
afterAll(() => unload(NAME, plane));
beforeEach(() => {
  ring = open();
});
afterEach(() => {
  for (let slot = ring.next(); slot >= 0; slot = ring.next()) ring.done(slot);
  expect(ring.usedBytes()).toBe(0);
  ring.close();
});

const open = () => new Ring(plane.workers[0].primary);

function put(sequence: number, payloadBytes: number): boolean {
  const before = plane.counters().held;
  plane.testRun("from_vm", segment({ sequence, payload: payload(sequence, payloadBytes) }));
  return plane.counters().held === before + 1;
}

const payload = (sequence: number, bytes: number) => new Uint8Array(bytes).map((_, i) => i * 3 + sequence);

/** The frame's sequence number, after checking all of its bytes. */
function read(slot: number): number {
  const at = ring.offset(slot) + RECORD_HEADER_BYTES;
  const sequence = ring.view.getUint32(at + 38);
  const bytes = ring.view.getUint32(ring.offset(slot) + RECORD.frame_bytes, true);
  const right = segment({ sequence, payload: payload(sequence, bytes - 54) });
  expect(ring.bytes.slice(at, at + bytes)).toEqual(right);
  return sequence;
}

/** Bytes that a record with this much payload takes. */
const occupied = (payloadBytes: number) => Math.ceil((8 + RECORD_HEADER_BYTES + 54 + payloadBytes) / 8) * 8;

test("records are read in order, once each, and are where offset() says", () => {
  for (let i = 0; i < 20; i++) put(i, i * 10);
  for (let i = 0; i < 20; i++) {
    const slot = ring.next();
    expect(read(slot)).toBe(i);
    ring.done(slot);
  }
  expect(ring.next()).toBe(-1);
});

test("what is unread and what is not given back is known in bytes", () => {
  put(1, 100);
  put(2, 301);
  expect(ring.unreadBytes()).toBe(occupied(100) + occupied(301));
  const first = ring.next();
  expect(ring.unreadBytes()).toBe(occupied(301));
  const second = ring.next();
  expect(ring.unreadBytes()).toBe(0);
  expect(ring.pending()).toBe(2);
  ring.done(second);
  expect(ring.pending()).toBe(1);
  expect(ring.usedBytes()).toBe(occupied(100) + occupied(301));
  ring.done(first);
  expect(ring.pending()).toBe(0);
  expect(ring.usedBytes()).toBe(0);
});

test("records across the end of the ring are in one piece", () => {
  let wrapped = 0;
  for (let i = 0; i < 500; i++) {
    expect(put(i, (i * 397) % 3000)).toBe(true);
    const slot = ring.next();
    expect(read(slot)).toBe(i);
    const at = ring.offset(slot);
    if (at + RECORD_HEADER_BYTES + ring.view.getUint32(at + RECORD.frame_bytes, true) > RING_BYTES) wrapped++;
    ring.done(slot);
  }
  expect(wrapped).toBeGreaterThan(3);
});

test("records done in any order leave the others as they are, and their room is used again", () => {
  const waiting: { slot: number; sequence: number }[] = [];
  let seed = 7;
  const random = (limit: number) => {
    seed = (Math.imul(seed, 1103515245) + 12345) >>> 0;
    return (seed >>> 8) % limit;
  };
  let sequence = 0;
  let refused = 0;
  for (let i = 0; i < 6000; i++) {
    if (random(5) < 3) {
      if (put(sequence, random(2500))) {
        const slot = ring.next();
        expect(slot).toBeGreaterThanOrEqual(0);
        waiting.push({ slot, sequence });
      } else refused++;
      sequence++;
    } else if (waiting.length > 0) {
      // Half of the time the oldest, or the ring would be full most of the time.
      const [{ slot, sequence }] = waiting.splice(random(2) === 0 ? 0 : random(waiting.length), 1);
      expect(read(slot)).toBe(sequence);
      ring.done(slot);
    }
    expect(ring.pending()).toBe(waiting.length);
  }
  expect(refused).toBeGreaterThan(10);
  expect(sequence - refused).toBeGreaterThan(1000);
  for (const { slot, sequence } of waiting) {
    expect(read(slot)).toBe(sequence);
    ring.done(slot);
  }
});

test("a slot can be done only once, and only after it was read", () => {
  put(1, 1);
  const slot = ring.next();
  ring.done(slot);
  expect(() => ring.done(slot)).toThrow("done already");
  expect(() => ring.done((slot + 1) % ring.slots)).toThrow("has not been read");
});

test("what was not done is there for whoever opens the ring next", () => {
  for (let i = 0; i < 5; i++) put(i, 10);
  const [a, b, c] = [ring.next(), ring.next(), ring.next()];
  ring.done(a);
  ring.done(c);
  expect(read(b)).toBe(1);
  ring.close();
  ring = open();
  for (let i = 1; i < 5; i++) {
    const slot = ring.next();
    expect(read(slot)).toBe(i);
    ring.done(slot);
  }
});

test("a wrong size is refused", () => {
  expect(() => new Ring({ ...plane.workers[0].primary, bytes: 100_000 })).toThrow("power of two");
  expect(() => new Ring({ ...plane.workers[0].primary, bytes: 2 * RING_BYTES })).toThrow("Cannot map");
});

describe("beyond 4 GiB", () => {
  test("positions go on, and the kernel gets its room back", () => {
    const frame = segment({ payload: new Uint8Array(3500) });
    const record = occupied(3500);
    const batch = Math.floor(RING_BYTES / record);
    let passed = 0;
    // From wherever the ring is now, 4.2 GiB take it over the edge of 32 bits.
    while (passed < 4.2 * 2 ** 30) {
      plane.testRun("from_vm", frame, { repeat: batch });
      for (let i = 0; i < batch; i++) {
        const slot = ring.next();
        if (slot < 0) throw new Error(`After ${passed} bytes there is no record.`);
        ring.done(slot);
      }
      passed += batch * record;
    }
    expect(plane.counters().hold_ring_full).toBe(full);
    ring.close();
    ring = open();
    expect(put(77, 10)).toBe(true);
    expect(read(ring.next())).toBe(77);
    ring.close();
    ring = open();
  }, 120_000);

  let full: number;
  beforeEach(() => {
    full = plane.counters().hold_ring_full;
  });
});
