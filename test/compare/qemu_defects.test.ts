/**
 * What QEMU's colo-compare lets through, holds up or loses (tried with 7.2, 10.0 and 11.1), done right. Each
 * test sends the traffic that shows the defect there.
 */
import { describe, expect, test } from "bun:test";
import { ethernet, FIN, ip, RST, SYN, tcp, text, udp } from "./frames.ts";
import { Bench } from "./harness.ts";

const data = (seq: number, payload: string, ack = 500) => tcp({ seq, ack, payload });

describe("divergence that must not pass", () => {
  test("a connection on the ports of a closed one is compared, whatever its initial number", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: 900_000, ack: 5, flags: SYN }));
    bench.s(tcp({ seq: 900_000, ack: 5, flags: SYN }));
    bench.p(data(900_001, "old", 5));
    bench.s(data(900_001, "old", 5));
    bench.p(tcp({ seq: 1000, ack: 5, flags: SYN }));
    bench.s(tcp({ seq: 1000, ack: 5, flags: SYN }));
    const bad = bench.p(data(1001, "AAAA", 5));
    bench.s(data(1001, "BBBB", 5));
    expect(bench.isReleased(bad)).toBe(false);
    expect(bench.classes).toEqual(["payload"]);
  });

  test("Ethernet padding behind a pure acknowledgement does not count as payload", () => {
    const bench = new Bench();
    bench.p(data(1, "x"));
    bench.s(data(1, "x"));
    bench.p(tcp({ seq: 2, ack: 500, padding: 6 }));
    bench.s(tcp({ seq: 2, ack: 500, padding: 6 }));
    const bad = bench.p(data(2, "AAAAAA"));
    bench.s(data(2, "BBBBBB"));
    expect(bench.isReleased(bad)).toBe(false);
    expect(bench.classes).toEqual(["payload"]);
  });

  test("a segment equals the same segment with Ethernet padding", () => {
    const bench = new Bench();
    const a = bench.p(tcp({ seq: 1, ack: 5, payload: "ab", padding: 4 }));
    bench.s(tcp({ seq: 1, ack: 5, payload: "ab" }));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("equal bytes at different sequence numbers diverge", () => {
    const bench = new Bench();
    bench.p(data(1, "x"));
    bench.s(data(1, "x"));
    const bad = bench.p(data(2, "abcdefgh"));
    bench.s(data(4, "abcdefgh"));
    bench.s(data(2, "ab"));
    expect(bench.isReleased(bad)).toBe(false);
    expect(bench.classes).toEqual(["payload"]);
  });

  test("SYN, FIN and RST diverge from data", () => {
    for (const flags of [RST, FIN, SYN]) {
      const bench = new Bench();
      bench.p(data(1, "x"));
      bench.s(data(1, "x"));
      const bad = bench.p(tcp({ seq: 2, ack: 500, flags }));
      bench.s(data(2, "more data"));
      bench.wait(250);
      expect(bench.isReleased(bad)).toBe(false);
      expect(bench.divergences).toHaveLength(1);
    }
  });

  test("IPv6 frames and frames with a VLAN tag are compared", () => {
    for (const options of [{ version: 6 as const }, { vlans: [7] }, { version: 6 as const, vlans: [7, 8] }]) {
      const bench = new Bench();
      const bad = bench.p(tcp({ seq: 1, ack: 5, payload: "AAAA", ...options }));
      expect(bench.isReleased(bad)).toBe(false);
      bench.s(tcp({ seq: 1, ack: 5, payload: "BBBB", ...options }));
      expect(bench.classes).toEqual(["payload"]);
      expect(bench.isReleased(bad)).toBe(false);
      const worse = bench.p(udp("AAAA", options));
      bench.s(udp("BBBB", options));
      expect(bench.isReleased(worse)).toBe(false);
    }
  });

  test("an equal segment that acknowledges more than the secondary has received", () => {
    const bench = new Bench();
    const a = bench.p(data(1, "same", 60));
    bench.s(data(1, "same", 50));
    expect(bench.isReleased(a)).toBe(false);
  });

  test("the payload of a later fragment is not taken for ports", () => {
    const bench = new Bench();
    const bad = bench.p(ip(17, text("AAAAAAAA"), { fragmentOffset: 8 }));
    bench.s(ip(17, text("BBBBBBBB"), { fragmentOffset: 8 }));
    expect(bench.isReleased(bad)).toBe(false);
    expect(bench.classes).toEqual(["payload"]);
  });
});

describe("what must not cost a checkpoint", () => {
  test("an acknowledgement ahead of the secondary's waits", () => {
    const bench = new Bench();
    const a = bench.p(data(1, "abcd", 60));
    bench.s(data(1, "abcdefgh", 50));
    expect(bench.divergences).toEqual([]);
    bench.s(tcp({ seq: 9, ack: 60 }));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("a lone pure acknowledgement or retransmission needs no packet of the other queue", () => {
    const bench = new Bench();
    bench.p(data(1, "abcd"));
    bench.s(data(1, "abcd"));
    const a = bench.p(tcp({ seq: 5, ack: 500 }));
    const b = bench.p(data(1, "abcd"));
    expect([a, b].map((slot) => bench.isReleased(slot))).toEqual([true, true]);
  });

  test("a datagram ahead of its counterpart", () => {
    const bench = new Bench();
    bench.p(udp("a"));
    bench.p(udp("b"));
    bench.s(udp("a"));
    bench.s(udp("b"));
    expect(bench.divergences).toEqual([]);
    expect(bench.released).toEqual([0, 1]);
  });

  test("checksums, and the identification of other protocols", () => {
    const bench = new Bench();
    bench.p(udp("a", { checksum: 0x1234 }));
    bench.s(udp("a", { checksum: 0x4321 }));
    bench.p(ip(47, text("tunnel"), { identification: 7 }));
    bench.s(ip(47, text("tunnel"), { identification: 8 }));
    expect(bench.released).toEqual([0, 1]);
    expect(bench.divergences).toEqual([]);
  });
});

describe("order and loss", () => {
  test("a checkpoint releases first in, first out", () => {
    const bench = new Bench();
    for (let i = 0; i < 500; i++)
      bench.p(i % 3 === 0 ? data(1 + i, "x") : udp(`${i}`, { sourcePort: i % 5 }));
    bench.checkpoint();
    expect(bench.released).toEqual(Array.from({ length: 500 }, (_, i) => i));
  });

  test("matched datagrams keep their order", () => {
    const bench = new Bench();
    for (let i = 0; i < 500; i++) bench.p(udp(`${i}`));
    for (let i = 0; i < 500; i++) bench.s(udp(`${i}`));
    expect(bench.released).toEqual(Array.from({ length: 500 }, (_, i) => i));
  });

  test("1025 frames of one connection: nothing is dropped in silence", () => {
    const bench = new Bench({ limits: { heldFramesPerFlowMax: 1024 } });
    for (let i = 0; i < 1100; i++) bench.p(udp(`${i}`));
    expect(bench.classes).toEqual(["overflow"]);
    bench.checkpoint();
    expect(bench.released).toHaveLength(1100);
  });

  test("16 390 flows of one frame: none is lost", () => {
    const bench = new Bench({ bytes: 4 << 20 });
    const frames: Uint8Array[] = [];
    for (let i = 0; i < 16_390; i++) {
      frames.push(udp("x", { sourcePort: 1 + (i & 0x3fff), destinationPort: 1 + (i >> 14) }));
    }
    for (const frame of frames) bench.p(frame);
    expect(bench.divergences).toEqual([]);
    for (const frame of frames) bench.s(frame);
    expect(bench.released).toHaveLength(16_390);
  });

  test("no storm: a divergence is said once, however much more comes", () => {
    const bench = new Bench();
    bench.p(udp("a"));
    bench.s(udp("b"));
    for (let i = 0; i < 100; i++) {
      bench.p(udp(`${i}`));
      bench.s(udp(`${i}x`));
      bench.wait(100);
    }
    expect(bench.divergences).toHaveLength(1);
  });

  test("the end of protection loses nothing", () => {
    const bench = new Bench();
    for (let i = 0; i < 50; i++) bench.p(i % 2 === 0 ? udp(`${i}`) : ethernet(0x88cc, text(`${i}`)));
    expect(bench.comparer.releaseAll()).toBe(50);
    expect(bench.released).toEqual(Array.from({ length: 50 }, (_, i) => i));
  });
});
