import { describe, expect, test } from "bun:test";
import { FIN, fragments, RST, SYN, type TcpOptions, tcp, tcpSegment, URG } from "./frames.ts";
import { Bench } from "./harness.ts";

/** Initial numbers: the primary's, the secondary's and the client's. */
const P = 0xffff_ff00;
const S = 5000;
const C = 0x7fff_fff0;

const at = (sequence: number) => (P + sequence) >>> 0;
const client = (sequence: number) => (C + sequence) >>> 0;

/** A segment with `payload` from byte `from` of the stream on, in the numbers that arrive from both sides. */
const data = (from: number, payload: string, more: TcpOptions = {}): Uint8Array =>
  tcp({ seq: at(1 + from), ack: client(1), payload, ...more });

/** ... that announces urgent data up to byte `end` of the stream. */
const urgent = (from: number, payload: string, end: number, more: TcpOptions = {}): Uint8Array =>
  data(from, payload, { flags: URG, urgent: end - from, ...more });

const pure = (from: number, acknowledged: number): Uint8Array =>
  tcp({ seq: at(1 + from), ack: client(1 + acknowledged) });

function opened(): Bench {
  const bench = new Bench();
  bench.p(tcp({ seq: P, ack: client(1), flags: SYN }));
  bench.s(tcp({ seq: S, ack: client(1), flags: SYN }));
  expect(bench.released).toEqual([0]);
  return bench;
}

describe("urgent data", () => {
  test("the same place from segments that are cut differently", () => {
    const bench = opened();
    bench.p(urgent(0, "0123456789", 5));
    bench.s(urgent(0, "012", 5));
    expect(bench.released).toHaveLength(1);
    bench.s(urgent(3, "34", 5));
    bench.s(data(5, "56789"));
    expect(bench.released).toHaveLength(2);
    expect(bench.divergences).toEqual([]);
  });

  test("on one side only is a divergence, with its place in both frames", () => {
    for (const onPrimary of [true, false]) {
      const bench = opened();
      bench.p(data(0, "01"));
      bench.s(data(0, "01"));
      const marked = urgent(2, "23456", 5);
      const plain = data(2, "23456");
      bench.p(onPrimary ? marked : plain);
      bench.s(onPrimary ? plain : marked);
      expect(bench.classes).toEqual(["flags"]);
      const [divergence] = bench.divergences;
      const [side, other] = onPrimary ? ["primary", "secondary"] : ["secondary", "primary"];
      expect(divergence.detail).toBe(
        `the byte at sequence ${at(5)} is urgent on the ${side}, not on the ${other}`,
      );
      expect(divergence.streamOffset).toBe(4);
      expect(marked[divergence.primaryFrameOffset as number]).toBe("4".charCodeAt(0));
      expect(divergence.secondaryFrameOffset).toBe(divergence.primaryFrameOffset as number);
    }
  });

  test("at another place is a divergence", () => {
    for (const [primary, secondary] of [
      [3, 4],
      [4, 3],
    ]) {
      const bench = opened();
      bench.p(urgent(0, "0123456789", primary));
      bench.s(urgent(0, "0123456789", secondary));
      expect(bench.classes).toEqual(["flags"]);
    }
  });

  test("a later place announced in the meantime takes the place of an earlier one", () => {
    const bench = opened();
    // The secondary's application has sent urgent data again before the first of it left.
    bench.p(urgent(0, "01234", 5));
    bench.s(urgent(0, "01234", 9));
    expect(bench.released).toHaveLength(2);
    bench.p(urgent(5, "5678", 9));
    bench.s(urgent(5, "5678", 9));
    expect(bench.released).toHaveLength(3);
    expect(bench.divergences).toEqual([]);
  });

  test("announced ahead of its bytes: the primary's waits for the secondary's", () => {
    const bench = opened();
    const ahead = bench.p(urgent(0, "01234", 40));
    bench.s(data(0, "01234"));
    expect(bench.isReleased(ahead)).toBe(false);
    bench.s(urgent(5, "", 40));
    expect(bench.isReleased(ahead)).toBe(true);
    // A segment that was sent before the announcement carries none.
    bench.s(urgent(5, "56789", 40));
    expect(bench.isReleased(bench.p(data(5, "56789")))).toBe(true);
    expect(bench.divergences).toEqual([]);
  });

  test("an announcement without payload that the secondary never makes runs into the timeout", () => {
    const bench = opened();
    const probe = bench.p(urgent(0, "", 1));
    bench.wait(300);
    expect(bench.isReleased(probe)).toBe(false);
    expect(bench.classes).toEqual(["missing_on_secondary"]);
  });

  test("a checkpoint covers what was announced before it, and only that", () => {
    const bench = opened();
    bench.p(urgent(0, "01234", 20));
    bench.checkpoint();
    expect(bench.isReleased(bench.p(urgent(0, "01234", 20)))).toBe(true);
    const more = bench.p(urgent(5, "", 30));
    expect(bench.isReleased(more)).toBe(false);
    bench.s(urgent(5, "", 30));
    expect(bench.isReleased(more)).toBe(true);
    bench.checkpoint();
    // A frame of the old epoch that turns up late says it as well.
    const waits = bench.p(urgent(5, "", 31));
    expect(bench.isReleased(waits)).toBe(false);
    bench.p(urgent(5, "", 31), { timeNs: 1 });
    expect(bench.isReleased(waits)).toBe(false);
    bench.p(urgent(5, "", 31), { timeNs: bench.nowNs - 5000 });
    expect(bench.isReleased(waits)).toBe(true);
  });

  test("is forgotten with its connection", () => {
    const bench = opened();
    bench.p(urgent(0, "0", 1, { flags: URG | FIN }));
    bench.s(urgent(0, "0", 1, { flags: URG | FIN }));
    bench.p(tcp({ seq: at(-70_000), ack: client(9), flags: SYN }));
    bench.s(tcp({ seq: S + 1, ack: client(9), flags: SYN }));
    expect(bench.released).toHaveLength(3);
    const probe = bench.p(tcp({ seq: at(-69_999), ack: client(9), flags: URG, urgent: 9 }));
    expect(bench.isReleased(probe)).toBe(false);
    // Nor does a checkpoint know anything of the connection before.
    const boundary = bench.nowNs - 1000;
    bench.checkpoint(boundary);
    bench.s(tcp({ seq: at(-69_999), ack: client(9) }));
    expect(bench.isReleased(probe)).toBe(false);
    bench.s(tcp({ seq: at(-69_999), ack: client(9), flags: URG, urgent: 9 }));
    expect(bench.isReleased(probe)).toBe(true);
  });

  test("is forgotten long before the numbers come round", () => {
    const bench = opened();
    bench.p(urgent(0, "0", 1));
    bench.s(urgent(0, "0", 1));
    const quarter = 2 ** 29;
    for (let i = 1; i <= 5; i++) {
      // The stream has gone on by another half GiB, as a checkpoint covers it.
      const from = i * quarter;
      bench.p(data(from, "x"), { timeNs: bench.nowNs + 1 });
      bench.nowNs += 10;
      bench.checkpoint();
      bench.s(data(from + 1, ""));
    }
    const probe = bench.p(urgent(5 * quarter + 1, "", 5 * quarter + 2));
    expect(bench.isReleased(probe)).toBe(false);
    bench.s(urgent(5 * quarter + 1, "", 5 * quarter + 2));
    expect(bench.isReleased(probe)).toBe(true);
  });

  test("is forgotten without a checkpoint, too", () => {
    const bench = opened();
    bench.p(urgent(0, "0", 1));
    bench.s(urgent(0, "0", 1));
    bench.s(data(1.5 * 2 ** 30, ""));
    const probe = bench.p(urgent(2.5 * 2 ** 30, "", 2.5 * 2 ** 30 + 1));
    expect(bench.isReleased(probe)).toBe(false);
  });

  test("the pointer without the flag, and that of a SYN or RST, mean nothing", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: P, ack: client(1), flags: SYN | URG, urgent: 9 }));
    bench.s(tcp({ seq: S, ack: client(1), flags: SYN }));
    bench.p(data(0, "01234", { urgent: 3 }));
    bench.s(data(0, "01234", { urgent: 4 }));
    bench.p(tcp({ seq: at(6), ack: client(1), flags: RST | URG, urgent: 9 }));
    bench.s(tcp({ seq: at(6), ack: client(1), flags: RST }));
    expect(bench.released).toEqual([0, 1, 2]);
  });

  test("in fragments", () => {
    const segment = (end: number) =>
      tcpSegment({ seq: at(1), ack: client(1), flags: URG, urgent: end, payload: "0123456789" });
    const bench = opened();
    for (const frame of fragments(6, segment(9), [24])) bench.p(frame);
    bench.s(urgent(0, "0123456789", 9));
    expect(bench.released).toEqual([0, 1, 2]);
    const other = opened();
    for (const frame of fragments(6, segment(9), [24])) other.p(frame);
    for (const frame of fragments(6, segment(8), [24])) other.s(frame);
    expect(other.classes).toEqual(["flags"]);
  });
});

describe("simultaneous open and close", () => {
  test("a SYN that is answered by a SYN: the guest says its own again, with an acknowledgement", () => {
    for (const secondaryFirst of [false, true]) {
      const bench = new Bench();
      const primary = [tcp({ seq: P, flags: SYN }), tcp({ seq: P, ack: client(1), flags: SYN })];
      const secondary = [tcp({ seq: S, flags: SYN }), tcp({ seq: S, ack: client(1), flags: SYN })];
      const sides: (() => void)[] = [
        () => primary.forEach((frame) => void bench.p(frame)),
        () => secondary.forEach((frame) => void bench.s(frame)),
      ];
      for (const send of secondaryFirst ? sides.toReversed() : sides) send();
      expect(bench.released).toEqual([0, 1]);
      bench.p(data(0, "hello"));
      bench.s(data(0, "hello"));
      expect(bench.released).toEqual([0, 1, 2]);
      expect(bench.comparer.stats.pendingFrames).toBe(0);
      expect(bench.divergences).toEqual([]);
    }
  });

  test("the SYN|ACK of a simultaneous open waits for the secondary's acknowledgement", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: P, flags: SYN }));
    bench.s(tcp({ seq: S, flags: SYN }));
    const answer = bench.p(tcp({ seq: P, ack: client(1), flags: SYN }));
    expect(bench.isReleased(answer)).toBe(false);
    bench.s(tcp({ seq: S, ack: client(1), flags: SYN }));
    expect(bench.isReleased(answer)).toBe(true);
  });

  test("one VM opens simultaneously, the other was answered in time: the acknowledgement counts", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: P, flags: SYN }));
    bench.s(tcp({ seq: S, flags: SYN }));
    bench.p(tcp({ seq: P, ack: client(1), flags: SYN }));
    bench.s(pure(0, 0));
    expect(bench.released).toEqual([0, 1]);
  });

  test("FINs that cross: each is acknowledged after the guest's own", () => {
    const bench = opened();
    const fin = tcp({ seq: at(1), ack: client(1), flags: FIN });
    bench.p(fin);
    const last = bench.p(pure(1, 1));
    bench.s(fin);
    expect(bench.released).toEqual([0, 1]);
    bench.s(pure(1, 1));
    expect(bench.isReleased(last)).toBe(true);
    // FIN again, with the acknowledgement of the client's.
    expect(bench.isReleased(bench.p(tcp({ seq: at(1), ack: client(2), flags: FIN })))).toBe(true);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
    expect(bench.divergences).toEqual([]);
  });

  test("one VM closes first, the other has seen the client's FIN before its own", () => {
    const bench = opened();
    bench.p(tcp({ seq: at(1), ack: client(1), flags: FIN }));
    bench.p(pure(1, 1));
    bench.s(pure(0, 1));
    expect(bench.released).toEqual([0]);
    bench.s(tcp({ seq: at(1), ack: client(2), flags: FIN }));
    expect(bench.released).toEqual([0, 1, 2]);
  });
});

describe("probes", () => {
  test("keep-alives of the secondary alone are finished at once", () => {
    const bench = opened();
    bench.p(data(0, "01234"));
    bench.s(data(0, "01234"));
    bench.s(pure(4, 0));
    bench.s(data(4, "\0"));
    bench.wait(1000);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
    expect(bench.divergences).toEqual([]);
  });

  test("a keep-alive with one byte of garbage just below the unverified end waits for it", () => {
    const bench = opened();
    const segment = bench.p(data(0, "01234"));
    const probe = bench.p(pure(4, 0));
    expect(bench.released).toEqual([0]);
    bench.s(data(0, "01234"));
    expect(bench.released).toEqual([0, segment, probe]);
  });

  test("zero-window probes with the next byte: verified like any other, however often", () => {
    const bench = opened();
    const probes = [bench.p(data(0, "0")), bench.p(data(0, "0"))];
    bench.s(data(0, "0"));
    expect(bench.released).toEqual([0, ...probes]);
    bench.s(data(0, "0"));
    bench.s(data(0, "0"));
    // The window opens: the rest, with the probed byte in front of it on one side only.
    const rest = bench.p(data(0, "0123456789"));
    bench.s(data(1, "123456789"));
    expect(bench.isReleased(rest)).toBe(true);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });

  test("a zero-window probe of one VM only, below what is verified, costs nothing", () => {
    const bench = opened();
    bench.p(data(0, "01234"));
    bench.s(data(0, "01234"));
    // Linux: an empty segment one below the first byte that is not acknowledged.
    expect(bench.isReleased(bench.p(pure(-1, 0)))).toBe(true);
    bench.s(pure(-1, 0));
    bench.wait(1000);
    expect(bench.divergences).toEqual([]);
  });

  test("a probed byte that differs is a divergence", () => {
    const bench = opened();
    bench.p(data(0, "a"));
    bench.s(data(0, "b"));
    expect(bench.classes).toEqual(["payload"]);
  });
});
