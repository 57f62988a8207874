import { heapStats } from "bun:jsc";
import { afterAll, beforeAll, expect, test } from "bun:test";
import { Comparer } from "../../src/compare/comparer.ts";
import { RECORD, RECORD_HEADER_BYTES } from "../../src/ffi/layout.ts";
import { Mapping, memcmp } from "../../src/ffi/libc.ts";
import { ACK, fragments, tcp, udp, udpDatagram } from "./frames.ts";

/**
 * The way of a packet, on real memory with the C library's memcmp: rounds of what many flows send in steady
 * state. Frames are written once, and changed in place from round to round.
 */
const FLOWS = 64;
const STRIDE = 2048;
const PAYLOAD = 1000;
/** TCP data, TCP acknowledgement, UDP, UDP in two fragments. */
const RECORDS = 5;
const FRAMES_PER_ROUND = FLOWS * RECORDS * 2;

interface Side {
  mapping: Mapping;
  bytes: Uint8Array;
  view: DataView;
  address: number;
}

let sides: Side[] = [];

/** The datagrams in fragments are cut at `cut`. */
function sideOf(cut: number): Side {
  const mapping = new Mapping(FLOWS * RECORDS * STRIDE);
  const bytes = new Uint8Array(mapping.buffer);
  const view = new DataView(mapping.buffer);
  for (let flow = 0; flow < FLOWS; flow++) {
    const port = 1000 + flow;
    const version = flow % 2 === 0 ? 4 : 6;
    const frames = [
      tcp({ version, sourcePort: port, seq: 1, ack: 1, payload: new Uint8Array(PAYLOAD).fill(flow) }),
      tcp({ version, sourcePort: port, seq: 1, ack: 1 }),
      udp(new Uint8Array(PAYLOAD).fill(flow), { version, sourcePort: port }),
      ...fragments(17, udpDatagram(new Uint8Array(PAYLOAD), { sourcePort: port }), [cut], {
        version,
        identification: flow,
      }),
    ];
    for (const [i, frame] of frames.entries()) {
      const record = (flow * RECORDS + i) * STRIDE;
      view.setUint32(record + RECORD.frame_bytes, frame.length, true);
      bytes.set(frame, record + RECORD_HEADER_BYTES);
    }
  }
  return { mapping, bytes, view, address: mapping.address };
}

beforeAll(() => {
  sides = [sideOf(256), sideOf(504)];
});

afterAll(() => {
  for (const side of sides) side.mapping.close();
});

test("steady state allocates nothing for a packet", () => {
  const [primary, secondary] = sides;
  let released = 0;
  let finished = 0;
  let diverged = "";
  const comparer = new Comparer({
    primary,
    secondary,
    memcmp,
    sink: {
      permit: () => {
        released++;
      },
      finish: () => {
        finished++;
      },
      diverged: (divergence) => {
        diverged ||= JSON.stringify(divergence);
      },
    },
  });
  let slot = 0;
  let pairs = 0;
  let timeNs = 1;
  let sequence = 1;

  /** Sets time and TCP numbers of one record. */
  function touch(side: Side, record: number, tcpAt: number): void {
    side.view.setUint32(record, timeNs, true);
    if (tcpAt === 0) return;
    side.view.setUint32(record + tcpAt + 4, sequence >>> 0);
    side.view.setUint32(record + tcpAt + 8, sequence >>> 0);
    side.bytes[record + tcpAt + 13] = ACK;
  }

  function round(kept: object[] | undefined): void {
    timeNs += 1000;
    for (let flow = 0; flow < FLOWS; flow++) {
      const tcpAt = 64 + 14 + (flow % 2 === 0 ? 20 : 40);
      for (let i = 0; i < RECORDS; i++) {
        const record = (flow * RECORDS + i) * STRIDE;
        touch(primary, record, i < 2 ? tcpAt : 0);
        touch(secondary, record, i < 2 ? tcpAt : 0);
        // Now one side is first, now the other, now both come at once.
        if ((flow & 8) !== 0 && i < 2) {
          if (!comparer.addPair(slot, record, slot, record)) {
            comparer.addSecondary(slot, record);
            comparer.addPrimary(slot, record);
          } else pairs++;
        } else if ((flow & 4) === 0) {
          comparer.addPrimary(slot, record);
          comparer.addSecondary(slot, record);
        } else {
          comparer.addSecondary(slot, record);
          comparer.addPrimary(slot, record);
        }
        slot++;
        if (kept !== undefined) kept.push({ slot }, { slot });
      }
    }
    sequence += PAYLOAD;
    comparer.expire(timeNs);
    comparer.nextDeadlineNs();
  }

  /**
   * Bytes by which the heap's blocks grow for each frame. (What is in use is only counted at a collection;
   * blocks are taken as objects are made.)
   */
  function growth(rounds: number, kept?: object[]): number {
    Bun.gc(true);
    const before = heapStats().heapCapacity;
    for (let i = 0; i < rounds; i++) round(kept);
    return (heapStats().heapCapacity - before) / (rounds * FRAMES_PER_ROUND);
  }

  for (let i = 0; i < 300; i++) round(undefined);
  const steady = growth(1000);
  // The same with one small object for each frame: what the measurement shows when something is allocated.
  const kept: object[] = [];
  const control = growth(200, kept);
  expect(kept.length).toBe(200 * FRAMES_PER_ROUND);
  expect(diverged).toBe("");
  // All but the first of each flow.
  expect(pairs).toBe((1500 * 2 - 1) * (FLOWS / 2));
  expect(comparer.stats.heldFrames).toBe(0);
  expect(released).toBe(1500 * FLOWS * RECORDS);
  expect(finished).toBe(1500 * FLOWS * RECORDS);
  expect(comparer.stats.comparedBytes).toBe(1500 * FLOWS * 3 * PAYLOAD);
  expect(control).toBeGreaterThan(8);
  expect(steady).toBeLessThan(control / 20);
});
