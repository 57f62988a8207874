/** What a frame looks like in the rings. */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { RECORD, RECORD_HEADER_BYTES, ROLE, SOURCE, VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNs } from "../../src/ffi/libc.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { grantLease, loadFresh, unload, VERDICT } from "./data_plane_under_test.ts";
import { ipv6Header, join, segment } from "./frames.ts";

const NAME = "records";
const data = segment({ payload: [1, 2, 3] });
const input = segment({ from: "client", payload: [4, 5, 6] });

/** Kernels before 6.15 copy in another way; both are tested wherever the better one is there. */
describe.each([
  ["bpf_dynptr_copy", false],
  ["chunks", true],
])("records, copied with %s", (_how, copyInChunks) => {
  let plane: DataPlane;

  beforeAll(() => {
    plane = loadFresh(NAME, { copyInChunks });
  });
  afterAll(() => unload(NAME, plane));
  beforeEach(() => {
    plane.state.role = ROLE.PRIMARY;
    plane.state.divertInput = false;
    grantLease(plane);
  });

  const FRAMES: [string, Uint8Array][] = [
    ["an Ethernet header and one byte", join(data.subarray(0, 12), [0x88, 0xb5, 1])],
    ["a short frame", data],
    ["an odd number of bytes", segment({ payload: new Uint8Array(1001).map((_, i) => i * 7) })],
    [
      "the longest frame that the kernel lets a test give",
      segment({ payload: new Uint8Array(3500).map((_, i) => i * 13) }),
    ],
    ["two VLAN tags in the bytes", segment({ vlans: [5, 6], payload: [1] })],
    ["something that is no IP at all", join(data.subarray(0, 12), [0x88, 0xb5], new Uint8Array(50).fill(9))],
    [
      "IPv6 with nothing behind its header",
      join(data.subarray(0, 12), [0x86, 0xdd], ipv6Header("guest", 0, 0)),
    ],
  ];

  test.each(FRAMES)("holds %s byte for byte", (_what, frame) => {
    const ring = new Ring(plane.workers[0].primary);
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) ring.done(slot);
    const before = bootTimeNs();
    expect(plane.testRun("from_vm", frame).verdict).toBe(VERDICT.SHOT);
    const after = bootTimeNs();

    const slot = ring.next();
    expect(slot).toBeGreaterThanOrEqual(0);
    expect(ring.next()).toBe(-1);
    const at = ring.offset(slot);
    const time = ring.view.getBigUint64(at + RECORD.time_ns, true);
    expect(time >= before && time <= after).toBe(true);
    expect(ring.view.getUint32(at + RECORD.frame_bytes, true)).toBe(frame.length);
    expect(ring.view.getUint32(at + RECORD.epoch, true)).toBe(0);
    expect(ring.view.getUint32(at + RECORD.source, true)).toBe(SOURCE.PRIMARY);
    expect(ring.bytes.slice(at + RECORD.vnet, at + RECORD.vnet + VNET_BYTES)).toEqual(
      new Uint8Array(VNET_BYTES),
    );
    const start = at + RECORD_HEADER_BYTES;
    expect(ring.bytes.slice(start, start + frame.length)).toEqual(Uint8Array.from(frame));
    ring.done(slot);
    ring.close();
  });

  test("frames of a flow have the same hash, those of another one a different hash", () => {
    const ring = new Ring(plane.workers[0].primary);
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) ring.done(slot);
    plane.testRun("from_vm", segment({ sequence: 1 }));
    plane.testRun("from_vm", segment({ sequence: 2, payload: [1] }));
    plane.testRun("from_vm", segment({ sequence: 1, clientPort: 40001 }));
    const hashes: number[] = [];
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) {
      hashes.push(ring.view.getUint32(ring.offset(slot) + RECORD.hash, true));
      ring.done(slot);
    }
    expect(hashes).toHaveLength(3);
    expect(hashes[1]).toBe(hashes[0]);
    expect(hashes[2]).not.toBe(hashes[0]);
    ring.close();
  });

  test("a diverted frame is in the input ring byte for byte", () => {
    plane.state.divertInput = true;
    const ring = new Ring(plane.input);
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) ring.done(slot);
    expect(plane.testRun("to_vm", input).verdict).toBe(VERDICT.SHOT);
    const at = ring.offset(ring.next());
    expect(ring.view.getUint32(at + RECORD.source, true)).toBe(SOURCE.INPUT);
    const start = at + RECORD_HEADER_BYTES;
    expect(ring.bytes.slice(start, start + input.length)).toEqual(Uint8Array.from(input));
    ring.close();
  });
});
