import { describe, expect, test } from "bun:test";
import { FIN, PSH, RST, SYN, synOptions, type TcpOptions, tcp, timestamps } from "./frames.ts";
import { Bench } from "./harness.ts";

const P_ISN = 1000;
const S_ISN = 77_000;

/** Segment of the stream: offset 0 is the first byte behind the SYN. */
const data = (offset: number, payload: string, ack = 500, more: TcpOptions = {}) =>
  tcp({ seq: (P_ISN + 1 + offset) >>> 0, ack, payload, flags: PSH, ...more });
const pure = (offset: number, ack: number, more: TcpOptions = {}) =>
  data(offset, "", ack, { flags: 0, ...more });

/** A bench with a connection that both sides have opened passively (SYN|ACK), everything released. */
function opened(options: ConstructorParameters<typeof Bench>[0] = {}): Bench {
  const bench = new Bench(options);
  const p = bench.p(tcp({ seq: P_ISN, ack: 500, flags: SYN }));
  bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN }));
  expect(bench.isReleased(p)).toBe(true);
  return bench;
}

describe("byte stream", () => {
  test("the same segment on both sides, whichever comes first", () => {
    const bench = opened();
    const a = bench.p(data(0, "hello"));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(data(0, "hello"));
    expect(bench.isReleased(a)).toBe(true);
    bench.s(data(5, "world"));
    const b = bench.p(data(5, "world"));
    expect(bench.isReleased(b)).toBe(true);
    expect(bench.finished.length).toBe(3);
  });

  test("one against two segments, two against one, and borders across each other", () => {
    const bench = opened();
    const a = bench.p(data(0, "abcdefghij"));
    bench.s(data(0, "abcde"));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(data(5, "fghij"));
    expect(bench.isReleased(a)).toBe(true);
    const b = bench.p(data(10, "klm"));
    const c = bench.p(data(13, "nop"));
    bench.s(data(10, "klmnop"));
    expect([b, c].map((slot) => bench.isReleased(slot))).toEqual([true, true]);
    const d = bench.p(data(16, "12345"));
    const e = bench.p(data(21, "67890"));
    bench.s(data(16, "123"));
    bench.s(data(19, "4567"));
    expect([d, e].map((slot) => bench.isReleased(slot))).toEqual([true, false]);
    bench.s(data(23, "890"));
    expect(bench.isReleased(e)).toBe(true);
    expect(bench.divergences).toEqual([]);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });

  test("these may differ: window, timestamps, PSH, TTL, class of service, IP identification, padding", () => {
    const bench = opened();
    const a = bench.p(data(0, "same", 500, { window: 1, options: timestamps(1, 2), ttl: 64, checksum: 7 }));
    bench.s(
      data(0, "same", 500, { window: 9, options: timestamps(5, 6), ttl: 9, tos: 4, flags: 0, padding: 3 }),
    );
    expect(bench.isReleased(a)).toBe(true);
    expect(bench.divergences).toEqual([]);
  });

  test("segments out of order on either side", () => {
    const bench = opened();
    bench.s(data(6, "ghi"));
    bench.s(data(3, "def"));
    const late = bench.p(data(3, "def"));
    const first = bench.p(data(0, "abc"));
    const last = bench.p(data(6, "ghi"));
    expect(bench.released.length).toBe(1);
    bench.s(data(0, "abc"));
    // In order of arrival, not of sequence: the client sees what it would have seen.
    expect(bench.released.slice(1)).toEqual([late, first, last]);
  });

  test("sequence numbers and acknowledgements wrap around", () => {
    const bench = new Bench();
    const isn = 0xffff_fff8;
    bench.p(tcp({ seq: isn, ack: 0xffff_fff0, flags: SYN }));
    bench.s(tcp({ seq: 5, ack: 0xffff_fff0, flags: SYN }));
    const a = bench.p(tcp({ seq: isn + 1, ack: 0xffff_fffe, payload: "0123456789" }));
    bench.s(tcp({ seq: isn + 1, ack: 0xffff_fff0, payload: "0123456789" }));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(tcp({ seq: 3, ack: 0x10 }));
    expect(bench.isReleased(a)).toBe(true);
    const b = bench.p(tcp({ seq: 3, ack: 0x11, payload: "x" }));
    bench.s(tcp({ seq: 3, ack: 0x10, payload: "x" }));
    expect(bench.isReleased(b)).toBe(false);
  });

  test("a difference names its place and holds the flow, while others go on", () => {
    const bench = opened();
    const other = (payload: string) => tcp({ sourcePort: 81, seq: 5, ack: 5, payload });
    bench.p(data(0, "12345"));
    bench.s(data(0, "12345"));
    const bad = bench.p(data(5, "the truth"));
    bench.s(data(5, "the trash"));
    expect(bench.divergences).toHaveLength(1);
    const [divergence] = bench.divergences;
    expect(divergence.class).toBe("payload");
    expect(divergence.streamOffset).toBe(11);
    expect(divergence.flow).toBe("tcp 198.18.0.2:80 > 198.18.0.9:40000");
    expect(divergence.detail).toContain(`sequence ${P_ISN + 1 + 11}`);
    expect(divergence.detail).toContain("0x75 on the primary, 0x61 on the secondary");
    // No storm: nothing more is said about this flow, not by more frames and not by time.
    const more = bench.p(data(14, "more"));
    bench.s(data(14, "moro"));
    bench.wait(5000);
    bench.wait(5000);
    expect(bench.classes).toEqual(["payload"]);
    const a = bench.p(other("fine"));
    bench.s(other("fine"));
    expect(bench.isReleased(a)).toBe(true);
    expect([bad, more].map((slot) => bench.isReleased(slot))).toEqual([false, false]);
    expect(bench.checkpoint()).toEqual({ released: 2, dropped: 0 });
    const b = bench.p(data(18, "again"));
    bench.s(data(18, "again"));
    expect(bench.isReleased(b)).toBe(true);
  });

  test("other flows with the same bytes are other flows", () => {
    const bench = new Bench();
    const variants: TcpOptions[] = [
      {},
      { sourcePort: 81 },
      { destinationPort: 40001 },
      { destination4: "198.18.0.10" },
      { version: 6 },
      { vlans: [5] },
    ];
    const slots = variants.map((variant) => bench.p(data(0, "x", 500, variant)));
    for (const [i, variant] of variants.entries()) {
      bench.s(data(0, "x", 500, variant));
      expect(slots.map((slot) => bench.isReleased(slot))).toEqual(slots.map((_, j) => j <= i));
    }
  });
});

describe("acknowledgements", () => {
  test("data waits until the secondary has acknowledged as much", () => {
    const bench = opened();
    const a = bench.p(data(0, "reply", 700));
    bench.s(data(0, "reply", 600));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(5, 699));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(5, 700));
    expect(bench.isReleased(a)).toBe(true);
    expect(bench.divergences).toEqual([]);
  });

  test("a pure acknowledgement needs no counterpart, only a secondary that is as far", () => {
    const bench = opened();
    const a = bench.p(pure(0, 600));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(0, 1000));
    expect(bench.isReleased(a)).toBe(true);
    const slots = [bench.p(pure(0, 700)), bench.p(pure(0, 700, { window: 0 })), bench.p(pure(0, 1000))];
    expect(slots.map((slot) => bench.isReleased(slot))).toEqual([true, true, true]);
    const ahead = bench.p(pure(0, 1001));
    expect(bench.isReleased(ahead)).toBe(false);
  });

  test("an older acknowledgement of the secondary takes nothing back", () => {
    const bench = opened();
    bench.s(pure(0, 1000));
    bench.s(pure(0, 600));
    expect(bench.isReleased(bench.p(pure(0, 900)))).toBe(true);
  });

  test("order of arrival is kept: a free acknowledgement waits behind held data", () => {
    const bench = opened();
    const a = bench.p(data(0, "held"));
    const b = bench.p(pure(4, 500));
    expect(bench.isReleased(b)).toBe(false);
    bench.s(data(0, "held"));
    expect(bench.released.slice(-2)).toEqual([a, b]);
  });
});

describe("retransmissions and probes", () => {
  test("a retransmission of verified bytes is released without another counterpart", () => {
    const bench = opened();
    bench.p(data(0, "0123456789"));
    bench.s(data(0, "0123456789"));
    expect(bench.isReleased(bench.p(data(0, "0123456789")))).toBe(true);
    expect(bench.isReleased(bench.p(data(3, "345")))).toBe(true);
    const ahead = bench.p(data(0, "0123456789", 501));
    expect(bench.isReleased(ahead)).toBe(false);
  });

  test("a retransmission that goes on past the verified bytes waits for the rest", () => {
    const bench = opened();
    bench.p(data(0, "01234"));
    bench.s(data(0, "01234"));
    const a = bench.p(data(0, "0123456789"));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(data(0, "0123456789"));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("retransmissions of the secondary are finished at once", () => {
    const bench = opened();
    bench.p(data(0, "01234"));
    bench.s(data(0, "01234"));
    bench.s(data(0, "01234"));
    bench.s(data(1, "12"));
    expect(bench.comparer.stats.pendingFrames).toBe(0);
    bench.wait(1000);
    expect(bench.divergences).toEqual([]);
  });

  test("keep-alives with 0 or 1 byte below the verified end", () => {
    const bench = opened();
    bench.p(data(0, "01234"));
    bench.s(data(0, "01234"));
    expect(bench.isReleased(bench.p(pure(4, 500)))).toBe(true);
    expect(bench.isReleased(bench.p(data(4, "\0", 500)))).toBe(true);
    const ahead = bench.p(pure(4, 501));
    expect(bench.isReleased(ahead)).toBe(false);
  });

  test("a hole left by a lost primary frame is filled by its retransmission", () => {
    const bench = opened();
    bench.s(data(0, "abcdef"));
    const b = bench.p(data(3, "def"));
    expect(bench.isReleased(b)).toBe(false);
    const a = bench.p(data(0, "abc"));
    expect(bench.released.slice(-2)).toEqual([b, a]);
  });
});

describe("opening and closing", () => {
  test("a SYN waits for the secondary's SYN, whose number is another", () => {
    const bench = new Bench();
    bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN }));
    const p = bench.p(tcp({ seq: P_ISN, ack: 500, flags: SYN }));
    expect(bench.isReleased(p)).toBe(true);
    const active = new Bench();
    const a = active.p(tcp({ seq: P_ISN, flags: SYN }));
    expect(active.isReleased(a)).toBe(false);
    active.s(tcp({ seq: S_ISN, flags: SYN }));
    expect(active.isReleased(a)).toBe(true);
  });

  test("the acknowledgement of a SYN|ACK counts like any other", () => {
    const bench = new Bench();
    const a = bench.p(tcp({ seq: P_ISN, ack: 501, flags: SYN }));
    bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN }));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(tcp({ seq: S_ISN, ack: 501, flags: SYN }));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("retransmitted SYNs on either side change nothing", () => {
    const bench = opened();
    expect(bench.isReleased(bench.p(tcp({ seq: P_ISN, ack: 500, flags: SYN })))).toBe(true);
    bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN }));
    const a = bench.p(data(0, "x"));
    bench.s(data(0, "x"));
    bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN }));
    expect(bench.isReleased(a)).toBe(true);
    expect(bench.isReleased(bench.p(tcp({ seq: P_ISN, ack: 500, flags: SYN })))).toBe(true);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });

  test("different offers in the SYN would break the connection after a failover", () => {
    const bench = new Bench();
    bench.p(tcp({ seq: P_ISN, ack: 500, flags: SYN, options: synOptions(1460, 7) }));
    bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN, options: synOptions(1460, 8) }));
    expect(bench.classes).toEqual(["flags"]);
    expect(bench.divergences[0].detail).toContain("window scale 7, SACK, no timestamps on the primary");
  });

  test("data in the SYN (TCP fast open) is part of the stream", () => {
    const bench = new Bench();
    const a = bench.p(tcp({ seq: P_ISN, flags: SYN, payload: "early" }));
    bench.s(tcp({ seq: S_ISN, flags: SYN, payload: "ea" }));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(data(2, "rly"));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("FIN is a place in the stream, alone or with the last data", () => {
    const bench = opened();
    const a = bench.p(data(0, "bye"));
    const b = bench.p(pure(3, 500, { flags: FIN }));
    bench.s(data(0, "bye"));
    expect([a, b].map((slot) => bench.isReleased(slot))).toEqual([true, false]);
    bench.s(data(0, "bye", 500, { flags: FIN }));
    expect(bench.isReleased(b)).toBe(true);
    expect(bench.isReleased(bench.p(pure(3, 500, { flags: FIN })))).toBe(true);
  });

  test("FIN where the other side has data is a divergence at once", () => {
    const bench = opened();
    bench.p(pure(0, 500, { flags: FIN }));
    bench.s(data(0, "more"));
    expect(bench.classes).toEqual(["flags"]);
    expect(bench.divergences[0].streamOffset).toBe(0);
    const other = opened();
    other.p(data(0, "more"));
    other.s(pure(0, 500, { flags: FIN }));
    expect(other.classes).toEqual(["flags"]);
  });

  test("an RST needs the secondary's at the same place", () => {
    const bench = opened();
    const a = bench.p(pure(0, 500, { flags: RST }));
    bench.s(data(0, "data instead"));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(5, 500, { flags: RST }));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(0, 499, { flags: RST }));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(0, 500, { flags: RST }));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("an RST behind data comes after it", () => {
    const bench = opened();
    const a = bench.p(data(0, "last words"));
    const b = bench.p(pure(10, 500, { flags: RST }));
    bench.s(pure(10, 500, { flags: RST }));
    expect(bench.isReleased(b)).toBe(false);
    bench.s(data(0, "last words"));
    expect(bench.released.slice(-2)).toEqual([a, b]);
    // What more the client sends is answered with the same RST again.
    expect(bench.isReleased(bench.p(tcp({ seq: P_ISN + 11, flags: RST })))).toBe(true);
    bench.s(tcp({ seq: P_ISN + 11, flags: RST }));
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });

  test("a lone RST runs into the timeout on either side", () => {
    const bench = opened();
    const a = bench.p(pure(0, 500, { flags: RST }));
    bench.wait(250);
    expect(bench.classes).toEqual(["missing_on_secondary"]);
    expect(bench.divergences[0].detail).toContain("RST");
    expect(bench.isReleased(a)).toBe(false);
    const other = opened();
    other.s(pure(0, 500, { flags: RST }));
    other.wait(250);
    expect(other.classes).toEqual(["missing_on_primary"]);
  });

  test("refusals of different attempts are not mistaken for each other", () => {
    const bench = new Bench();
    const refusal = (ack: number) => tcp({ seq: 0, ack, flags: RST });
    const a = bench.p(refusal(9001));
    bench.s(refusal(9001));
    expect(bench.isReleased(a)).toBe(true);
    const b = bench.p(refusal(5001));
    expect(bench.isReleased(b)).toBe(false);
    bench.s(refusal(9001));
    expect(bench.isReleased(b)).toBe(false);
    bench.s(refusal(5001));
    expect(bench.isReleased(b)).toBe(true);
  });

  test("the secondary's RST acknowledges too, unless it refuses a segment without a connection", () => {
    const bench = opened();
    const a = bench.p(pure(0, 600));
    bench.s(tcp({ seq: 0, ack: 9000, flags: RST }));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(0, 600, { flags: RST }));
    expect(bench.isReleased(a)).toBe(true);
  });
});

describe("another connection on the same ports", () => {
  const NEW_P = 500; // lower than everything of the old connection
  const NEW_S = 3_000_000;
  const newData = (offset: number, payload: string, ack = 90) =>
    tcp({ seq: NEW_P + 1 + offset, ack, payload });

  function closed(): Bench {
    const bench = opened();
    bench.p(data(0, "old connection", 500, { flags: FIN }));
    bench.s(data(0, "old connection", 500, { flags: FIN }));
    expect(bench.comparer.stats.heldFrames).toBe(0);
    return bench;
  }

  test("its bytes are compared from its own start", () => {
    const bench = closed();
    const syn = bench.p(tcp({ seq: NEW_P, ack: 90, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(false);
    bench.s(tcp({ seq: NEW_S, ack: 90, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(true);
    const a = bench.p(newData(0, "new"));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(newData(0, "new"));
    expect(bench.isReleased(a)).toBe(true);
    bench.p(newData(3, "right"));
    bench.s(newData(3, "wrong"));
    expect(bench.classes).toEqual(["payload"]);
  });

  test("when the secondary gets there first, its new segments wait", () => {
    const bench = opened();
    bench.s(data(0, "old", 500, { flags: FIN }));
    bench.s(tcp({ seq: NEW_S, ack: 90, flags: SYN }));
    bench.s(newData(0, "new"));
    const slots = [
      bench.p(data(0, "old", 500, { flags: FIN })),
      bench.p(tcp({ seq: NEW_P, ack: 90, flags: SYN })),
      bench.p(newData(0, "new")),
    ];
    expect(bench.released.slice(-3)).toEqual(slots);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
    expect(bench.divergences).toEqual([]);
  });

  test("when the primary gets there first, its SYN waits behind what is held of the old one", () => {
    const bench = opened();
    const slots = [
      bench.p(data(0, "old", 500, { flags: FIN })),
      bench.p(tcp({ seq: NEW_P, ack: 90, flags: SYN })),
      bench.p(newData(0, "new")),
    ];
    bench.s(data(0, "old", 500, { flags: FIN }));
    expect(bench.released.slice(-1)).toEqual([slots[0]]);
    bench.s(tcp({ seq: NEW_S, ack: 90, flags: SYN }));
    bench.s(newData(0, "new"));
    expect(bench.released.slice(-3)).toEqual(slots);
  });

  test("stragglers of the secondary's old connection acknowledge nothing in the new one", () => {
    const bench = closed();
    const syn = bench.p(tcp({ seq: NEW_P, ack: 90, flags: SYN }));
    bench.s(pure(15, 0x7fff_0000));
    bench.s(data(0, "old connection", 500, { flags: FIN }));
    expect(bench.isReleased(syn)).toBe(false);
    bench.s(tcp({ seq: NEW_S, ack: 89, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(false);
    bench.s(tcp({ seq: NEW_S, ack: 90, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(true);
  });

  test("the secondary's old SYN, repeated, does not open the new one", () => {
    const bench = opened();
    const syn = bench.p(tcp({ seq: NEW_P, ack: 500, flags: SYN }));
    bench.s(tcp({ seq: S_ISN, ack: 500, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(false);
    bench.s(tcp({ seq: NEW_S, ack: 500, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(true);
    // Nor does that of a connection whose SYN was not seen here: it answers another SYN of the client.
    const midstream = new Bench();
    midstream.s(tcp({ seq: S_ISN, ack: 1_000_000, flags: SYN }));
    const other = midstream.p(tcp({ seq: NEW_P, ack: 500, flags: SYN }));
    midstream.s(tcp({ seq: S_ISN, ack: 1_000_000, flags: SYN }));
    expect(midstream.isReleased(other)).toBe(false);
    midstream.s(tcp({ seq: NEW_S, ack: 500, flags: SYN }));
    expect(midstream.isReleased(other)).toBe(true);
  });

  test("bytes that only the secondary sent on the old connection are not forgotten", () => {
    const bench = opened();
    bench.s(data(0, "the primary never says this"));
    const syn = bench.p(tcp({ seq: NEW_P, ack: 90, flags: SYN }));
    bench.s(tcp({ seq: NEW_S, ack: 90, flags: SYN }));
    expect(bench.isReleased(syn)).toBe(false);
    bench.wait(250);
    expect(bench.divergences).toHaveLength(1);
  });

  test("three connections queued at once", () => {
    const bench = new Bench();
    const connection = (isn: number) => [
      tcp({ seq: isn, ack: 90, flags: SYN }),
      tcp({ seq: isn + 1, ack: 90, payload: `${isn}`, flags: FIN }),
    ];
    const slots = [100, 90, 80].flatMap(connection).map((frame) => bench.p(frame));
    expect(bench.released).toEqual([]);
    for (const [isn, translated] of [
      [7000, 100],
      [8000, 90],
      [6000, 80],
    ]) {
      bench.s(tcp({ seq: isn, ack: 90, flags: SYN }));
      bench.s(connection(translated)[1]);
    }
    expect(bench.released).toEqual(slots);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });
});

describe("first seen in mid-stream", () => {
  test("nothing leaves before the secondary has produced it, acknowledgement included", () => {
    const bench = new Bench();
    const a = bench.p(data(0, "abc", 700));
    const b = bench.p(pure(3, 700));
    expect(bench.released).toEqual([]);
    bench.s(data(0, "abc", 600));
    expect(bench.released).toEqual([]);
    bench.s(pure(3, 700));
    expect(bench.released).toEqual([a, b]);
  });

  test("a lone pure acknowledgement waits for the secondary's first sign of life", () => {
    const bench = new Bench();
    const a = bench.p(pure(0, 700));
    expect(bench.isReleased(a)).toBe(false);
    bench.s(pure(0, 701));
    expect(bench.isReleased(a)).toBe(true);
  });

  test("the segment before the first one seen is not taken as verified", () => {
    const bench = new Bench();
    // The primary's "abc" was dropped by a full ring; it is sent again later, and differs.
    const def = bench.p(data(3, "def"));
    bench.s(data(3, "def"));
    expect(bench.isReleased(def)).toBe(true);
    const abc = bench.p(data(0, "abc"));
    expect(bench.isReleased(abc)).toBe(false);
    bench.s(data(0, "abX"));
    expect(bench.isReleased(abc)).toBe(false);
    expect(bench.classes).toEqual(["payload"]);
  });

  test("going below the start and back over what was verified already", () => {
    const bench = new Bench();
    bench.p(data(10, "klmno"));
    bench.s(data(10, "klmno"));
    const low = bench.p(data(5, "fghij"));
    const again = bench.p(data(10, "klmno"));
    const next = bench.p(data(15, "pqr"));
    bench.s(data(15, "pqr"));
    expect(bench.released).toHaveLength(1);
    bench.s(data(5, "fghij"));
    expect(bench.released.slice(1)).toEqual([low, again, next]);
    const lowest = bench.p(data(0, "abcdefghijklmnopqr"));
    expect(bench.isReleased(lowest)).toBe(false);
    bench.s(data(0, "abcde"));
    expect(bench.isReleased(lowest)).toBe(true);
    expect(bench.divergences).toEqual([]);
  });

  test("verified frames that wait for an acknowledgement stay verified when the start moves down", () => {
    const bench = new Bench();
    const high = bench.p(data(10, "klm", 600));
    bench.s(data(10, "klm", 500));
    const low = bench.p(data(5, "fghij", 500));
    expect(bench.released).toEqual([]);
    bench.s(pure(13, 600));
    expect(bench.released).toEqual([high]);
    bench.s(data(5, "fghij"));
    expect(bench.released).toEqual([high, low]);
  });

  test("the secondary's bytes below the start do not count as pending", () => {
    const bench = new Bench();
    bench.s(data(0, "old retransmission"));
    const a = bench.p(data(18, "new"));
    bench.s(data(18, "new"));
    expect(bench.isReleased(a)).toBe(true);
    expect(bench.comparer.stats.pendingFrames).toBe(0);
  });
});
