import { describe, expect, test } from "bun:test";
import { parseRules } from "../../src/compare/rules.ts";
import {
  CLIENT,
  concat,
  FIN,
  fragments,
  GUEST,
  icmp,
  ip,
  RST,
  SYN,
  tcp,
  tcpSegment,
  text,
  udp,
  udpDatagram,
} from "./frames.ts";
import { Bench } from "./harness.ts";

const body = (bytes: number, first = 0) =>
  Uint8Array.from({ length: bytes }, (_, i) => (first + i * 7) & 0xff);

/** Frames of one side, one after the other; returns the slots. */
function send(bench: Bench, side: "p" | "s", frames: Uint8Array[]): number[] {
  return frames.map((frame) => bench[side](frame));
}

for (const version of [4, 6] as const) {
  describe(`IPv${version} datagrams in fragments`, () => {
    const options = { version };
    const udpCut = (payload: Uint8Array, cuts: number[], identification = 1, checksum = 0) =>
      fragments(17, udpDatagram(payload, { checksum }), cuts, { version, identification });

    test("cut alike or differently, under other numbers: released as sent", () => {
      const bench = new Bench();
      const cuts = [[16], [16, 32, 48], [24], [8], [40, 96]];
      for (const mine of cuts) {
        for (const other of cuts) {
          const held = send(bench, "p", udpCut(body(100), mine, 7, 1));
          send(bench, "s", udpCut(body(100), other, 99, 2));
          expect(bench.released.slice(-held.length)).toEqual(held);
        }
      }
      expect(bench.divergences).toEqual([]);
      expect(bench.comparer.stats.heldFrames).toBe(0);
      expect(bench.comparer.stats.pendingFrames).toBe(0);
    });

    test("in fragments on one side only", () => {
      const bench = new Bench();
      const whole = (payload: Uint8Array) => udp(payload, options);
      const held = send(bench, "p", udpCut(body(50), [16, 32]));
      bench.s(whole(body(50)));
      expect(bench.released).toEqual(held);
      const slot = bench.p(whole(body(50)));
      send(bench, "s", udpCut(body(50), [16, 32]));
      expect(bench.isReleased(slot)).toBe(true);
      expect(bench.comparer.stats.pendingFrames).toBe(0);
    });

    test("keep their place among the other datagrams of their flow", () => {
      const bench = new Bench();
      const first = send(bench, "p", udpCut(body(50), [16]));
      const second = bench.p(udp("second", options));
      bench.s(udp(body(50), options));
      expect(bench.released).toEqual(first);
      send(bench, "s", udpCut(text("second"), [8], 5));
      expect(bench.released).toEqual([...first, second]);
    });

    test("several at a time, and fragments behind the first one in any order", () => {
      const bench = new Bench();
      const [a1, a2, a3] = udpCut(body(60), [16, 32], 1);
      const [b1, b2] = udpCut(body(60, 9), [24], 2);
      const held = send(bench, "p", [a1, b1, a3, b2, a2]);
      bench.s(udp(body(60, 9), options));
      expect(bench.released).toEqual([held[1], held[3]]);
      bench.s(udp(body(60), options));
      expect(bench.released).toEqual([held[1], held[3], held[0], held[2], held[4]]);
    });

    test("a difference is shown in the two fragments that hold it", () => {
      const bench = new Bench();
      const changed = body(100).with(70, 0);
      const primary = udpCut(body(100), [24, 64]);
      const secondary = udpCut(changed, [40]);
      send(bench, "p", primary);
      send(bench, "s", secondary);
      const [divergence] = bench.divergences;
      expect(divergence.class).toBe("payload");
      expect(divergence.protocol).toBe("udp");
      expect(divergence.sourcePort).toBe(53);
      expect(divergence.detail).toStartWith("byte 70 of 100 differs");
      expect(bench.evidence).toEqual([{ primary: primary[2], secondary: secondary[1] }]);
      expect(primary[2][divergence.primaryFrameOffset as number]).toBe(body(100)[70]);
      expect(secondary[1][divergence.secondaryFrameOffset as number]).toBe(0);
      expect(bench.released).toEqual([]);
      bench.checkpoint();
      expect(bench.released).toEqual([0, 1, 2]);
    });

    test("another length is told with the place where the shorter one ends", () => {
      const bench = new Bench();
      const primary = udpCut(body(100), [24, 64]);
      const secondary = udpCut(body(80), [24]);
      send(bench, "p", primary);
      send(bench, "s", secondary);
      const [divergence] = bench.divergences;
      expect(divergence.class).toBe("length");
      expect(bench.evidence).toEqual([{ primary: primary[2], secondary: secondary[1] }]);
      expect(primary[2][divergence.primaryFrameOffset as number]).toBe(body(100)[80]);
      expect(divergence.secondaryFrameOffset).toBe(secondary[1].length);
    });

    test("ICMP: type, code and identifier come from the first fragment, the checksum does not count", () => {
      const bench = new Bench();
      const message = (checksum: number) => {
        const frame = icmp(body(40), { ...options, checksum });
        return frame.slice(version === 4 ? 34 : 54);
      };
      const protocol = version === 4 ? 1 : 58;
      const held = send(bench, "p", fragments(protocol, message(1), [8, 16], options));
      bench.s(icmp(body(40), { ...options, checksum: 2 }));
      expect(bench.released).toEqual(held);
    });

    test("TCP: each fragment is a segment of the stream", () => {
      const bench = new Bench();
      const segment = (seq: number, payload: string, flags = 0) =>
        tcpSegment({ seq, ack: 5, payload, flags });
      const opened = send(
        bench,
        "p",
        fragments(6, tcpSegment({ seq: 9, ack: 5, flags: SYN, payload: "0123456789" }), [24], options),
      );
      bench.s(tcp({ ...options, seq: 77, ack: 5, flags: SYN, payload: "01234" }));
      expect(bench.released).toEqual([opened[0]]);
      bench.s(tcp({ ...options, seq: 15, ack: 5, payload: "56789abcdefgh" }));
      expect(bench.released).toEqual(opened);
      const more = bench.p(tcp({ ...options, seq: 20, ack: 5, payload: "abcdefgh" }));
      const end = send(bench, "p", fragments(6, segment(28, "the last bytes", FIN), [24, 32], options));
      expect(bench.isReleased(more)).toBe(true);
      expect(bench.isReleased(end[0])).toBe(false);
      send(bench, "s", fragments(6, segment(28, "the last bytes", FIN), [32], options));
      expect(bench.released.slice(-3)).toEqual(end);
      bench.p(tcp({ ...options, seq: 43, ack: 6 }));
      bench.s(tcp({ ...options, seq: 43, ack: 6 }));
      expect(bench.comparer.stats.heldFrames).toBe(0);
      expect(bench.divergences).toEqual([]);
    });

    test("TCP: bytes that differ in a fragment, and acknowledgements that the secondary lacks", () => {
      const bench = new Bench();
      const waits = send(
        bench,
        "p",
        fragments(6, tcpSegment({ seq: 1, ack: 9, payload: "0123456789" }), [24], options),
      );
      bench.s(tcp({ ...options, seq: 1, ack: 8, payload: "0123456789" }));
      expect(bench.released).toEqual([]);
      bench.s(tcp({ ...options, seq: 11, ack: 9 }));
      expect(bench.released).toEqual(waits);
      send(bench, "p", fragments(6, tcpSegment({ seq: 11, ack: 9, payload: "0123456789" }), [24], options));
      bench.s(tcp({ ...options, seq: 11, ack: 9, payload: "012345678x" }));
      expect(bench.classes).toEqual(["payload"]);
      expect(bench.divergences[0].flow).toStartWith("tcp ");
    });

    test("one that never becomes complete waits, is told and leaves with the checkpoint", () => {
      const bench = new Bench();
      const [first, second] = udpCut(body(60), [16, 32]);
      const held = send(bench, "p", [first, second]);
      bench.s(udp(body(60), options));
      bench.wait(300);
      expect(bench.released).toEqual([]);
      expect(bench.classes).toEqual(["missing_on_secondary", "missing_on_primary"]);
      expect(bench.divergences[0].detail).toEndWith("other fragments of its datagram have not come");
      expect(bench.evidence[0]).toEqual({ primary: first });
      bench.checkpoint();
      expect(bench.released).toEqual(held);

      send(bench, "s", [first, second]);
      bench.wait(300);
      expect(bench.classes.slice(2)).toEqual(["missing_on_primary"]);
      bench.checkpoint();
      expect(bench.comparer.stats.pendingFrames).toBe(0);
    });

    test("without a first fragment they are compared in order as they are", () => {
      const bench = new Bench();
      const [first, second, third] = udpCut(body(60), [16, 32], 1);
      const other = udpCut(body(60), [16, 32], 2);
      // A guest that sends the last one first.
      const held = send(bench, "p", [third, second, first]);
      send(bench, "s", other.toReversed());
      expect(bench.released).toEqual(held);
      bench.p(third);
      bench.s(udpCut(body(60, 1), [16, 32], 4)[2]);
      expect(bench.classes).toEqual(["payload"]);
      expect(bench.divergences[0].flow).toStartWith("udp fragments ");
    });

    test("what cannot be put together is compared in order as it is", () => {
      const piece = (offset: number, bytes: Uint8Array, moreFragments: boolean, identification: number) =>
        ip(17, bytes, { ...options, fragmentOffset: offset, moreFragments, identification });
      const hostile: [string, (id: number, mark: number) => Uint8Array[]][] = [
        ["overlap", (id, mark) => [piece(0, body(24, mark), true, id), piece(2, body(24), false, id)]],
        [
          "inside another (teardrop)",
          (id, mark) => [piece(0, body(32, mark), true, id), piece(1, body(8), false, id)],
        ],
        [
          "twice the same",
          (id, mark) => [piece(0, body(16, mark), true, id), piece(0, body(16, mark), true, id)],
        ],
        ["empty", (id, mark) => [piece(0, body(16, mark), true, id), piece(2, new Uint8Array(0), false, id)]],
        ["no multiple of 8", (id, mark) => [piece(0, body(16, mark), true, id), piece(2, body(9), true, id)]],
        [
          "behind the end",
          (id, mark) => [
            piece(0, body(16, mark), true, id),
            piece(2, body(8), false, id),
            piece(3, body(8), true, id),
          ],
        ],
        [
          "behind the end, before it",
          (id, mark) => [
            piece(0, body(16, mark), true, id),
            piece(3, body(8), true, id),
            piece(2, body(8), false, id),
          ],
        ],
        [
          "two ends",
          (id, mark) => [
            piece(0, body(16, mark), true, id),
            piece(3, body(8), false, id),
            piece(4, body(8), false, id),
          ],
        ],
        [
          "longer than a datagram",
          (id, mark) => [piece(0, body(16, mark), true, id), piece(8190, body(40), false, id)],
        ],
        [
          "headers cut off",
          (id, mark) => [
            piece(0, body(0), true, id),
            piece(0, body(8, mark), true, id),
            piece(1, body(9), false, id),
          ],
        ],
      ];
      for (const [name, make] of hostile) {
        const bench = new Bench();
        const held = send(bench, "p", make(1, 5));
        send(bench, "s", make(2, 5));
        expect([name, bench.released]).toEqual([name, held]);
        expect([name, bench.divergences]).toEqual([name, []]);
        const other = send(bench, "p", make(3, 5));
        send(bench, "s", make(4, 6));
        bench.wait(300);
        expect([name, bench.divergences.length > 0]).toEqual([name, true]);
        expect([name, bench.isReleased(other[0])]).toEqual([name, name === "headers cut off"]);
        bench.checkpoint();
        expect([name, bench.released.length]).toEqual([name, 2 * held.length]);
      }
    });

    test("a checkpoint through the middle of a datagram: the rest is compared as it is", () => {
      for (const complete of [false, true]) {
        const bench = new Bench();
        const frames = udpCut(body(60), [16, 32]);
        bench.p(frames[0]);
        const boundary = bench.nowNs;
        bench.p(frames[1]);
        if (complete) bench.p(frames[2]);
        bench.comparer.beginCheckpoint(boundary);
        bench.s(frames[1], { epoch: 1 });
        bench.checkpoint(boundary);
        expect(bench.released).toEqual([0, 1]);
        if (!complete) bench.p(frames[2]);
        expect(bench.released).toEqual([0, 1]);
        bench.s(frames[2]);
        expect(bench.released).toEqual([0, 1, 2]);
        bench.wait(300);
        expect(bench.divergences).toEqual([]);
      }
    });

    test("a checkpoint that covers none or all of a datagram", () => {
      const bench = new Bench();
      const all = send(bench, "p", udpCut(body(60), [16]));
      const boundary = bench.nowNs;
      const later = send(bench, "p", udpCut(body(60, 3), [24]));
      bench.checkpoint(boundary);
      expect(bench.released).toEqual(all);
      send(bench, "s", udpCut(body(60, 3), [16], 9));
      expect(bench.released).toEqual([...all, ...later]);
      expect(bench.divergences).toEqual([]);
    });

    test("newer than the horizon: not compared, also when only a part is", () => {
      const bench = new Bench();
      const [first, second] = udpCut(body(60), [16]);
      bench.p(first);
      bench.comparer.beginCheckpoint(bench.nowNs);
      bench.s(udp(body(60), options));
      bench.p(second);
      expect(bench.released).toEqual([]);
      bench.comparer.beginCheckpoint(bench.nowNs);
      expect(bench.released).toEqual([0, 1]);
    });

    test("released when the VM runs alone", () => {
      const bench = new Bench();
      send(bench, "p", [...udpCut(body(60), [16]), udpCut(body(60), [16], 2)[0]]);
      send(bench, "s", udpCut(body(60, 1), [16]).slice(0, 1));
      expect(bench.comparer.releaseAll()).toBe(3);
      expect(bench.finished).toEqual([0]);
    });

    test("rules with ports are applied to the datagram, others to the fragments", () => {
      const lines = { passthrough: ["udp port 53"], ignore: ["udp port 54 bytes 20-29"] };
      const bench = new Bench({ rules: parseRules(lines) });
      const passed = udpCut(body(60), [16]);
      bench.p(passed[0]);
      expect(bench.released).toEqual([]);
      bench.p(passed[1]);
      expect(bench.released).toEqual([0, 1]);
      send(bench, "s", udpCut(body(60, 9), [24]));
      expect(bench.finished).toEqual([0, 1]);
      const ignored = (mark: number) => udpDatagram(body(60).fill(mark, 20, 30), { sourcePort: 54 });
      send(bench, "p", fragments(17, ignored(1), [24], options));
      send(bench, "s", fragments(17, ignored(2), [32, 40], options));
      expect(bench.released).toEqual([0, 1, 2, 3]);
      expect(bench.divergences).toEqual([]);

      const all = new Bench({ rules: parseRules({ passthrough: ["udp"] }) });
      all.p(passed[0]);
      expect(all.released).toEqual([0]);
    });

    test("limits: fragments that wait, frames of the flow they belong to, flows", () => {
      const many = new Bench({ bytes: 4 << 20 });
      for (let i = 0; i <= 2048; i++) many.p(udpCut(body(60), [16], i)[0]);
      expect(many.classes).toEqual(["overflow"]);
      for (let i = 0; i <= 2048; i++) many.s(udpCut(body(60), [16], i)[0]);
      expect(many.comparer.stats.pendingFrames).toBe(0);
      many.checkpoint();
      expect(many.released).toHaveLength(2049);
      for (let i = 0; i <= 2048; i++) many.s(udpCut(body(60), [16], i)[0]);
      expect(many.classes).toEqual(["overflow", "overflow"]);
      expect(many.comparer.stats.pendingFrames).toBe(0);

      const few = new Bench({ limits: { heldFramesPerFlowMax: 3, pendingFramesPerFlowMax: 3 } });
      send(few, "p", udpCut(body(60), [16], 1));
      send(few, "p", udpCut(body(60), [16], 2));
      expect(few.classes).toEqual(["overflow"]);
      few.checkpoint();
      expect(few.released).toEqual([0, 1, 2, 3]);
      send(few, "s", udpCut(body(60), [16], 1));
      send(few, "s", udpCut(body(60), [16], 2));
      expect(few.classes).toEqual(["overflow", "overflow"]);
      expect(few.comparer.stats.pendingFrames).toBe(0);

      const narrow = new Bench({ limits: { flowsMax: 1 } });
      send(narrow, "p", udpCut(body(60), [16], 1));
      expect(narrow.classes).toEqual(["overflow"]);
      expect(narrow.divergences[0].detail).toBe("a datagram in fragments found the flow table full");
      narrow.checkpoint();
      expect(narrow.released).toEqual([0, 1]);
      send(narrow, "s", udpCut(body(60), [16], 1));
      expect(narrow.classes).toEqual(["overflow", "overflow"]);
      expect(narrow.comparer.stats.pendingFrames).toBe(0);
    });

    test("what was not tracked of their flow comes first", () => {
      const bench = new Bench({ limits: { heldFramesPerFlowMax: 2 } });
      const [a, b] = ["a", "b"].map((payload) => bench.p(udp(payload, options)));
      const boundary = bench.nowNs;
      const c = bench.p(udp("c", options));
      expect(bench.classes).toEqual(["overflow"]);
      bench.checkpoint(boundary);
      expect(bench.released).toEqual([a, b]);
      const later = send(bench, "p", udpCut(body(60), [16]));
      bench.s(udp("c", options));
      send(bench, "s", udpCut(body(60), [16]));
      expect(bench.classes).toEqual(["overflow", "overflow"]);
      bench.checkpoint();
      expect(bench.released).toEqual([a, b, c, ...later]);
    });

    test("cut through by a checkpoint, and no flow left for the rest: it waits for the next one", () => {
      const bench = new Bench({ limits: { flowsMax: 2 } });
      const frames = udpCut(body(60), [16, 32]);
      bench.p(frames[0]);
      const boundary = bench.nowNs;
      bench.p(frames[1]);
      bench.p(frames[2]);
      bench.checkpoint(boundary);
      expect(bench.released).toEqual([0]);
      bench.s(udp(body(60), options));
      bench.s(udp(body(60).slice(8), options));
      expect(bench.released).toEqual([0]);
      bench.wait(300);
      expect(bench.classes).toContain("missing_on_secondary");
      bench.checkpoint();
      expect(bench.released).toEqual([0, 1, 2]);
    });

    test("a flow that has diverged takes them until the checkpoint", () => {
      const bench = new Bench();
      bench.p(udp("a", options));
      bench.s(udp("b", options));
      send(bench, "p", udpCut(body(60), [16]));
      send(bench, "s", udpCut(body(60), [16]));
      expect(bench.comparer.stats.pendingFrames).toBe(0);
      expect(bench.divergences).toHaveLength(1);
      bench.checkpoint();
      expect(bench.released).toEqual([0, 1, 2]);
    });

    test("a reset in fragments is compared as it is", () => {
      const bench = new Bench();
      const reset = tcpSegment({ seq: 1, ack: 5, flags: RST, payload: "says why, at length" });
      const held = send(bench, "p", fragments(6, reset, [24], options));
      send(bench, "s", fragments(6, reset, [32], options));
      expect(bench.released).toEqual(held);
      expect(bench.comparer.stats.pendingFrames).toBe(0);
    });
  });
}

describe("IPv6 only", () => {
  test("headers behind the fragment header belong to the datagram", () => {
    const bench = new Bench();
    const destinationOptions = Uint8Array.from([17, 0, 1, 4, 0, 0, 0, 0]);
    const datagram = concat(destinationOptions, udpDatagram(body(40)));
    const held = send(bench, "p", fragments(60, datagram, [24], { version: 6 }));
    bench.s(udp(body(40), { version: 6 }));
    expect(bench.released).toEqual(held);
    // The chain of headers does not end in the first fragment (RFC 7112).
    const cut = send(bench, "p", fragments(60, datagram, [8], { version: 6 }));
    send(bench, "s", fragments(60, datagram, [16], { version: 6 }));
    expect(bench.isReleased(cut[0])).toBe(false);
    bench.wait(300);
    expect(bench.divergences.length).toBeGreaterThan(0);
  });

  test("an atomic fragment is a whole datagram", () => {
    const bench = new Bench();
    const slot = bench.p(ip(17, udpDatagram("x"), { version: 6, fragmentOffset: 0 }));
    bench.s(udp("x", { version: 6 }));
    expect(bench.isReleased(slot)).toBe(true);
  });
});

test("datagrams of other addresses, protocols, VLANs and versions do not mix", () => {
  const bench = new Bench();
  const datagram = udpDatagram(body(40));
  const variants = [
    {},
    { vlans: [7] },
    { destination4: GUEST, source4: CLIENT },
    { version: 6 as const },
    { identification: 2 },
  ];
  const cuts = variants.map((options) => fragments(17, datagram, [16], options));
  for (const [first] of cuts) bench.p(first);
  for (const [, second] of cuts) bench.p(second);
  expect(bench.comparer.stats.heldFrames).toBe(10);
  for (const frames of cuts) for (const frame of frames) bench.s(frame);
  expect(bench.comparer.stats.heldFrames).toBe(0);
  expect(bench.divergences).toEqual([]);
});
