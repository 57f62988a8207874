/** What of a TCP segment is sent when not all of it can be: windows, parts, what overtakes. */
import { describe, expect, test } from "bun:test";
import { Comparer, type Divergence } from "../../src/compare/comparer.ts";
import { FIN, PSH, RST, SYN, synOptions, type TcpOptions, tcp } from "./frames.ts";
import { MS, memcmpOf, Records } from "./harness.ts";

const P_ISN = 1000;
const S_ISN = 77_000;
const SCALE = 7;
const PART_AFTER_MS = 20;

/** Something that was sent: which frame, its payload, and what of it was not as the primary had sent it. */
interface Sent {
  slot: number;
  payload?: string;
  sequence?: number;
  ack?: number;
  window?: number;
  fin?: boolean;
}

class Link {
  readonly primary = new Records(1 << 20, 0x7f00_0000_0000);
  readonly secondary = new Records(1 << 20, 0x7e00_0000_0000);
  readonly comparer: Comparer;
  readonly sent: Sent[] = [];
  readonly released: number[] = [];
  readonly divergences: Divergence[] = [];
  nowNs = 1000 * MS;
  #slots = 0;
  #epoch = 0;

  constructor({ takesParts = true, maxWaitMs = 1000 } = {}) {
    const note = (slot: number, change: Parameters<NonNullable<Parts["permitPart"]>>[1] | null) => {
      if (change === null) {
        this.sent.push({ slot });
      } else if (!change.silent) {
        const { payload, payloadBytes, sequence, acknowledgement, window, fin } = change;
        const bytes = this.primary.bytes.slice(payload, payload + payloadBytes);
        this.sent.push({
          slot,
          payload: new TextDecoder().decode(bytes),
          sequence: sequence - P_ISN - 1,
          ack: acknowledgement,
          window,
          fin,
        });
      }
    };
    this.comparer = new Comparer({
      primary: this.primary,
      secondary: this.secondary,
      memcmp: memcmpOf(this.primary, this.secondary),
      seed: 1,
      maxWaitNs: maxWaitMs * MS,
      partAfterNs: PART_AFTER_MS * MS,
      sink: {
        permit: (slot, change) => {
          expect(this.released).not.toContain(slot);
          this.released.push(slot);
          note(slot, change);
        },
        ...(takesParts ? { permitPart: note } : {}),
        finish: () => {},
        diverged: (divergence) => this.divergences.push(divergence),
      },
    });
  }

  p(frame: Uint8Array): number {
    const slot = this.#slots++;
    this.comparer.addPrimary(slot, this.primary.put(frame, this.#tick(), 0));
    return slot;
  }

  s(frame: Uint8Array): void {
    this.comparer.addSecondary(this.#slots++, this.secondary.put(frame, this.#tick(), this.#epoch));
  }

  wait(ms: number): void {
    this.nowNs += ms * MS;
    this.comparer.expire(this.nowNs);
  }

  checkpoint(boundaryNs = this.nowNs): void {
    this.comparer.checkpoint(boundaryNs, ++this.#epoch);
  }

  /** What was sent since the last look. */
  look(): Sent[] {
    return this.sent.splice(0);
  }

  #tick(): number {
    this.nowNs += 1000;
    return this.nowNs;
  }
}
type Parts = ConstructorParameters<typeof Comparer>[0]["sink"];

/** From offset 0, the first byte behind the SYN. */
const data = (offset: number, payload: string, ack = 500, more: TcpOptions = {}) =>
  tcp({ seq: P_ISN + 1 + offset, ack, payload, flags: PSH, window: 1000, ...more });
const pure = (offset: number, ack: number, window: number) => data(offset, "", ack, { flags: 0, window });

/** Both sides have answered a client's SYN. */
function opened(options: ConstructorParameters<typeof Link>[0] & { window?: number } = {}): Link {
  const link = new Link(options);
  const { window = 64_000 } = options;
  const syn = { ack: 500, flags: SYN, options: synOptions(1460, SCALE), window };
  link.p(tcp({ seq: P_ISN, ...syn }));
  link.s(tcp({ seq: S_ISN, ...syn }));
  expect(link.look()).toEqual([{ slot: 0 }]);
  return link;
}

describe("the window", () => {
  test("is released as it is while the secondary offers as much", () => {
    const link = opened();
    link.s(pure(0, 1500, 900));
    const a = link.p(pure(0, 1500, 900));
    const b = link.p(pure(0, 1500, 800));
    expect(link.look()).toEqual([{ slot: a }, { slot: b }]);
  });

  test("does not go beyond the secondary's right edge", () => {
    const link = opened();
    link.s(pure(0, 100_500, 400));
    const slot = link.p(data(0, "", 100_500, { flags: 0, window: 900 }));
    expect(link.look()).toEqual([{ slot, payload: "", sequence: 0, ack: 100_500, window: 400, fin: false }]);
    expect(link.comparer.stats.clampedWindows).toBe(1);
  });

  test("the edge counts, not the window: what the secondary has acknowledged since is in it", () => {
    const link = opened();
    link.s(pure(0, 100_500, 400));
    link.s(pure(0, 100_500 + 100 * 128, 300));
    link.p(pure(0, 100_500, 900));
    expect(link.look().map(({ window }) => window)).toEqual([400]);
    link.p(pure(0, 100_500 + 50 * 128, 900));
    expect(link.look().map(({ window }) => window)).toEqual([350]);
  });

  test("takes nothing back that was released before", () => {
    const link = opened();
    // The SYNs, whose windows are not scaled, have offered 64 000 bytes behind 500.
    link.s(pure(0, 500, 100));
    link.p(pure(0, 500, 900));
    expect(link.look().map(({ window }) => window)).toEqual([64_000 / 128]);
    link.s(pure(0, 600, 100));
    link.p(pure(0, 600, 900));
    // Rounded up: 63 900 bytes are left.
    expect(link.look().map(({ window }) => window)).toEqual([500]);
  });

  test("of a segment with data is clamped in the same way", () => {
    const link = opened();
    link.s(data(0, "hello", 100_500, { window: 300 }));
    const slot = link.p(data(0, "hello", 100_500, { window: 900 }));
    expect(link.look()).toEqual([
      { slot, payload: "hello", sequence: 0, ack: 100_500, window: 300, fin: false },
    ]);
  });

  test("of a RST does not matter", () => {
    const link = opened();
    link.s(tcp({ seq: P_ISN + 1, ack: 100_500, flags: RST, window: 0 }));
    const slot = link.p(tcp({ seq: P_ISN + 1, ack: 100_500, flags: RST, window: 900 }));
    expect(link.look()).toEqual([{ slot }]);
  });

  test("without window scaling is clamped too", () => {
    const link = new Link();
    link.p(tcp({ seq: P_ISN, ack: 500, flags: SYN, window: 1000 }));
    link.s(tcp({ seq: S_ISN, ack: 500, flags: SYN, window: 1000 }));
    link.look();
    link.s(pure(0, 9000, 4000));
    link.p(pure(0, 9000, 60_000));
    expect(link.look().map(({ window }) => window)).toEqual([4000]);
  });

  test("of a connection whose SYN was not seen is left alone", () => {
    const link = new Link();
    link.s(pure(0, 1500, 1));
    const slot = link.p(pure(0, 1500, 900));
    expect(link.look()).toEqual([{ slot }]);
  });

  test("after a checkpoint what was released counts as the secondary's", () => {
    const link = opened();
    link.s(pure(0, 100_500, 400));
    link.p(pure(0, 200_500, 900)); // held, released by the checkpoint
    link.checkpoint();
    link.look();
    const slot = link.p(pure(0, 200_500, 900));
    expect(link.look()).toEqual([{ slot }]);
    link.p(pure(0, 200_500, 1000));
    expect(link.look().map(({ window }) => window)).toEqual([900]);
  });

  describe("that is all but closed", () => {
    /** The secondary has room for 640 bytes, the primary for much more. */
    function closed(link = opened({ window: 500 })) {
      link.s(data(0, "hello", 100_500, { window: 5 }));
      const slot = link.p(data(0, "hello", 100_500, { window: 900 }));
      return { link, slot };
    }

    test("is told, and told again when the secondary's opens", () => {
      const { link, slot } = closed();
      expect(link.look()).toEqual([
        { slot, payload: "hello", sequence: 0, ack: 100_500, window: 5, fin: false },
      ]);
      expect(link.released).not.toContain(slot);
      link.s(pure(5, 100_500, 8));
      expect(link.look().map(({ payload, window }) => [payload, window])).toEqual([["", 8]]);
      link.s(pure(5, 100_500, 300));
      expect(link.look()).toEqual([
        { slot, payload: "", sequence: 5, ack: 100_500, window: 300, fin: false },
      ]);
      expect(link.released).toContain(slot);
    });

    test("the next segment says the same: then nothing more is sent of the first", () => {
      const { link, slot } = closed();
      link.look();
      link.s(data(5, "world", 100_500, { window: 5 }));
      const next = link.p(data(5, "world", 100_500, { window: 900 }));
      expect(link.look().map(({ slot, payload }) => [slot, payload])).toEqual([[next, "world"]]);
      expect(link.released).toContain(slot);
      expect(link.released).not.toContain(next);
    });

    test("costs a checkpoint when it stays so", () => {
      const { link, slot } = closed();
      link.look();
      link.wait(1001);
      expect(link.divergences.map((divergence) => divergence.class)).toEqual(["missing_on_secondary"]);
      link.checkpoint();
      expect(link.look()).toEqual([
        { slot, payload: "", sequence: 5, ack: 100_500, window: 900, fin: false },
      ]);
    });

    test("is clamped and let go if the sink takes no parts", () => {
      const { link, slot } = closed(opened({ takesParts: false, window: 500 }));
      expect(link.look().map(({ window }) => window)).toEqual([5]);
      expect(link.released).toContain(slot);
    });
  });
});

describe("parts", () => {
  test("what is verified of a segment is sent after a while, the rest when it is", () => {
    const link = opened();
    const slot = link.p(data(0, "abcdefghij", 500, { flags: PSH | FIN }));
    link.s(data(0, "abcd"));
    expect(link.look()).toEqual([]);
    link.wait(PART_AFTER_MS - 1);
    expect(link.look()).toEqual([]);
    link.wait(1);
    expect(link.look()).toEqual([{ slot, payload: "abcd", sequence: 0, ack: 500, window: 1000, fin: false }]);
    // From now on at once.
    link.s(data(4, "efg"));
    expect(link.look()).toEqual([{ slot, payload: "efg", sequence: 4, ack: 500, window: 1000, fin: false }]);
    link.s(data(7, "hij"));
    expect(link.look()).toEqual([{ slot, payload: "hij", sequence: 7, ack: 500, window: 1000, fin: false }]);
    link.s(data(10, "", 500, { flags: FIN }));
    expect(link.look()).toEqual([{ slot, payload: "", sequence: 10, ack: 500, window: 1000, fin: true }]);
    expect(link.released).toEqual([0, slot]);
    expect(link.comparer.stats.parts).toBe(3);
    expect(link.divergences).toEqual([]);
  });

  test("an acknowledgement ahead of the secondary's is lowered, once for each step", () => {
    const link = opened();
    const slot = link.p(pure(0, 3000, 100));
    link.s(pure(0, 1000, 100));
    link.wait(PART_AFTER_MS);
    expect(link.look().map(({ slot, ack }) => [slot, ack])).toEqual([[slot, 1000]]);
    link.wait(PART_AFTER_MS);
    link.s(pure(0, 1000, 100));
    expect(link.look()).toEqual([]);
    link.s(pure(0, 2000, 100));
    expect(link.look().map(({ ack }) => ack)).toEqual([2000]);
    link.s(pure(0, 3000, 100));
    expect(link.look().map(({ ack }) => ack)).toEqual([3000]);
    expect(link.released).toEqual([0, slot]);
  });

  test("the window of a lowered acknowledgement ends where the secondary's does", () => {
    const link = opened({ window: 500 });
    link.p(pure(0, 100_500 + 1280, 900));
    link.s(pure(0, 100_500, 400));
    link.wait(PART_AFTER_MS);
    expect(link.look().map(({ ack, window }) => [ack, window])).toEqual([[100_500, 400]]);
  });

  test("bytes whose acknowledgement has to wait are sent with the secondary's", () => {
    const link = opened();
    const slot = link.p(data(0, "hello", 3000));
    link.s(data(0, "hello", 1000));
    link.wait(PART_AFTER_MS);
    expect(link.look().map(({ payload, ack }) => [payload, ack])).toEqual([["hello", 1000]]);
    link.s(pure(5, 3000, 1000));
    expect(link.look()).toEqual([{ slot, payload: "", sequence: 5, ack: 3000, window: 1000, fin: false }]);
  });

  test("with another segment behind it nothing needs to stay for the acknowledgement's sake", () => {
    const link = opened();
    const a = link.p(data(0, "hello", 3000));
    const b = link.p(data(5, "world", 3000));
    link.s(data(0, "helloworld", 1000));
    link.wait(PART_AFTER_MS + 1);
    expect(link.look().map(({ slot, payload, ack }) => [slot, payload, ack])).toEqual([
      [a, "hello", 1000],
      [b, "world", 1000],
    ]);
    expect(link.released).toEqual([0, a]);
    link.s(pure(10, 3000, 1000));
    expect(link.look().map(({ slot, payload, ack }) => [slot, payload, ack])).toEqual([[b, "", 3000]]);
  });

  test("what is sent again overtakes what is waited for", () => {
    const link = opened();
    link.p(data(0, "hello"));
    link.s(data(0, "hello"));
    const later = link.p(data(5, "world"));
    const again = link.p(data(0, "hello"));
    const longer = link.p(data(0, "helloworld"));
    link.look();
    link.wait(PART_AFTER_MS + 1);
    expect(link.look().map(({ slot, payload }) => [slot, payload])).toEqual([
      [again, "hello"],
      [longer, "hello"],
    ]);
    link.s(data(5, "world"));
    expect(link.look().map(({ slot, payload }) => [slot, payload])).toEqual([
      [later, undefined],
      [longer, "world"],
    ]);
  });

  test("bytes that differ behind a part that was sent are found", () => {
    const link = opened();
    const slot = link.p(data(0, "abcdefghij"));
    link.s(data(0, "abcd"));
    link.wait(PART_AFTER_MS);
    link.look();
    link.s(data(4, "efX"));
    const [divergence] = link.divergences;
    expect(divergence.class).toBe("payload");
    expect(divergence.streamOffset).toBe(6);
    expect(divergence.primaryFrameOffset).toBe(54 + 6);
    link.wait(PART_AFTER_MS);
    expect(link.look()).toEqual([]);
    link.checkpoint();
    expect(link.look()).toEqual([
      { slot, payload: "efghij", sequence: 4, ack: 500, window: 1000, fin: false },
    ]);
  });

  test("running alone the rest is released", () => {
    const link = opened();
    const slot = link.p(data(0, "abcdefghij", 500, { flags: FIN }));
    link.s(data(0, "abcd"));
    link.wait(PART_AFTER_MS);
    link.look();
    link.comparer.releaseAll();
    expect(link.look()).toEqual([
      { slot, payload: "efghij", sequence: 4, ack: 500, window: 1000, fin: true },
    ]);
  });

  test("a checkpoint counts from what was sent", () => {
    const link = opened();
    link.p(data(0, "abcdefghij"));
    link.s(data(0, "abcd"));
    link.wait(PART_AFTER_MS);
    link.checkpoint();
    link.look();
    const next = link.p(data(10, "klm"));
    link.s(data(10, "klm"));
    expect(link.look()).toEqual([{ slot: next }]);
  });

  test("nothing of a frame that is newer than the coming checkpoint", () => {
    const link = opened();
    const boundary = link.nowNs;
    link.comparer.beginCheckpoint(boundary);
    link.p(data(0, "abcdefghij"));
    link.s(data(0, "abcd"));
    link.wait(PART_AFTER_MS);
    expect(link.look()).toEqual([]);
    link.checkpoint(boundary);
    link.s(data(0, "abcd"));
    link.wait(PART_AFTER_MS);
    expect(link.look().map(({ payload }) => payload)).toEqual(["abcd"]);
  });

  test("none when the sink takes none", () => {
    const link = opened({ takesParts: false });
    link.p(data(0, "abcdefghij"));
    link.s(data(0, "abcd"));
    link.wait(PART_AFTER_MS);
    expect(link.look()).toEqual([]);
  });

  test("the next deadline is that for parts", () => {
    const link = opened();
    const before = link.nowNs;
    link.p(data(0, "abcdefghij"));
    expect(link.comparer.nextDeadlineNs()).toBe(before + 1000 + PART_AFTER_MS * MS);
    link.wait(PART_AFTER_MS + 1);
    expect(link.comparer.nextDeadlineNs()).toBe(before + 1000 + 1000 * MS);
  });
});
