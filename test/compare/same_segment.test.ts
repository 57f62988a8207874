/**
 * What SameSegment finds in two headers a word at a time has to be what the parser finds in each of them:
 * every bit of the headers is turned, on one side, on the other and on both, and lengths are cut.
 */
import { describe, expect, test } from "bun:test";
import { KIND_TCP } from "../../src/compare/flow_key.ts";
import { parseRecord } from "../../src/compare/parse.ts";
import { ParsedFrame } from "../../src/compare/parsed_frame.ts";
import { SameSegment } from "../../src/compare/same_segment.ts";
import { RECORD_HEADER_BYTES } from "../../src/ffi/layout.ts";
import { ACK, FIN, RST, SYN, tcp, timestamps, URG } from "./frames.ts";
import { Records } from "./harness.ts";

const EPOCH = 7;
const RECORD = 8; // not at 0, so that a wrong sign is noticed

function recordsOf(frame: Uint8Array, epoch: number): Records {
  const records = new Records(RECORD + RECORD_HEADER_BYTES + ((frame.length + 7) & ~7), 0);
  records.bytes.set(frame, RECORD + RECORD_HEADER_BYTES);
  records.view.setUint32(RECORD + 8, frame.length, true);
  records.view.setUint32(RECORD + 12, epoch, true);
  return records;
}

interface Pair {
  primary: Records;
  secondary: Records;
  same: SameSegment;
}

function pairOf(own: Uint8Array, theirs: Uint8Array = own): Pair {
  const primary = recordsOf(own, 0);
  const secondary = recordsOf(theirs, EPOCH);
  return { primary, secondary, same: new SameSegment(primary, secondary) };
}

/** What the parser says, if it is a plain segment. */
function plainOf(records: Records) {
  const frame = new ParsedFrame();
  parseRecord(records.bytes, RECORD, frame);
  const { kind, flags, window, sequence, end, data, dataBytes, key } = frame;
  if (kind !== KIND_TCP || (flags & (FIN | SYN | RST | ACK | URG)) !== ACK || window < 0) return undefined;
  return { key: [...key], sequence, end, payload: data - RECORD, payloadBytes: dataBytes };
}

/** Whether it matched; throws if the parser does not agree with a match. */
function agreed({ primary, secondary, same }: Pair): boolean {
  if (!same.match(RECORD, RECORD, EPOCH)) return false;
  const own = plainOf(primary);
  expect(own).toBeDefined();
  expect(plainOf(secondary)).toEqual(own);
  expect({ payload: same.payload, payloadBytes: same.payloadBytes }).toEqual({
    payload: own?.payload ?? -1,
    payloadBytes: own?.payloadBytes ?? -1,
  });
  expect(plainOf(secondary)).toEqual(plainOf(primary));
  return true;
}

for (const version of [4, 6] as const) {
  const headerBytes = 14 + (version === 4 ? 20 : 40) + 32;
  const base = { version, seq: 0x7fff_fffe, ack: 99, window: 500, options: timestamps(1, 2) };
  const data = tcp({ ...base, payload: new Uint8Array(40).fill(5) });

  describe(`the same segment, IPv${version}`, () => {
    test("is the same with and without bytes, options, padding", () => {
      for (const options of [
        {},
        { payload: new Uint8Array(1) },
        { options: new Uint8Array(0) },
        { padding: 6 },
      ]) {
        expect(agreed(pairOf(tcp({ ...base, ...options })))).toBe(true);
      }
    });

    test("may differ in what the VMs may differ in", () => {
      const payload = new Uint8Array(40).fill(5);
      for (const other of [
        { ack: 5 },
        { window: 1 },
        { flags: 0x08 },
        { identification: 9 },
        { options: timestamps(3, 4) },
      ]) {
        expect(agreed(pairOf(data, tcp({ ...base, payload, ...other })))).toBe(true);
      }
    });

    for (const side of ["primary", "secondary", "both"] as const) {
      test(`is none with a bit turned that counts: ${side}`, () => {
        const pair = pairOf(data);
        const sides = side === "both" ? [pair.primary, pair.secondary] : [pair[side]];
        let matches = 0;
        for (let bit = 0; bit < headerBytes * 8; bit++) {
          const at = RECORD + RECORD_HEADER_BYTES + (bit >> 3);
          for (const { bytes } of sides) bytes[at] ^= 1 << (bit & 7);
          if (agreed(pair)) matches++;
          for (const { bytes } of sides) bytes[at] ^= 1 << (bit & 7);
        }
        // MAC addresses (12), checksums, identification or flow label, acknowledgement, window ... at the
        // least.
        expect(matches).toBeGreaterThan(8 * 30);
        expect(agreed(pair)).toBe(true);
      });
    }

    test("has to be in the frame, and the frame in the memory", () => {
      for (let bytes = 0; bytes < data.length; bytes++) {
        const pair = pairOf(data);
        for (const { view } of [pair.primary, pair.secondary]) view.setUint32(RECORD + 8, bytes, true);
        expect(agreed(pair)).toBe(false);
        expect(agreed(pairOf(data.slice(0, bytes)))).toBe(false);
      }
      // The record says more than there is memory.
      for (const side of ["primary", "secondary"] as const) {
        const pair = pairOf(data);
        const short = recordsOf(data.slice(0, data.length - 16), side === "primary" ? 0 : EPOCH);
        short.view.setUint32(RECORD + 8, data.length, true);
        pair[side] = short;
        expect(new SameSegment(pair.primary, pair.secondary).match(RECORD, RECORD, EPOCH)).toBe(false);
      }
    });

    test("is of the epoch that is asked for", () => {
      const { same } = pairOf(data);
      expect(same.match(RECORD, RECORD, EPOCH + 1)).toBe(false);
    });
  });
}

test("records at odd places are left to the parser", () => {
  const { same } = pairOf(tcp({ seq: 1, ack: 1 }));
  expect(same.match(RECORD + 2, RECORD, EPOCH)).toBe(false);
  expect(same.match(RECORD, RECORD + 1, EPOCH)).toBe(false);
});
