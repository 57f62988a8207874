import { afterAll, describe, expect, test } from "bun:test";
import type { CaptureReport } from "../../src/capture/report.ts";
import { Stream } from "../../src/capture/sequence_map.ts";
import { ACK, CLIENT, FIN, GUEST, PSH, RST, SYN, tcp } from "../compare/frames.ts";
import { CaptureFolder } from "./capture_files.ts";
import { comparer } from "./comparison.ts";
import { Conversation, type ConversationOptions, flipped, pattern } from "./conversation.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());
const compare = comparer(folder);

const REQUEST = pattern(300, 7);
const ANSWER = pattern(5_000, 8);

function exchange(options: ConversationOptions = {}, answer = ANSWER, request = REQUEST): Conversation {
  return new Conversation(options).open().client(request).guest(answer).close();
}

/** Sequence numbers and segment sizes of another machine. */
const OTHER: ConversationOptions = { guestIsn: 0xffff_f000, clientIsn: 123, segmentBytes: 333 };

const FROM_CLIENT = { source4: CLIENT, destination4: GUEST, sourcePort: 40_000, destinationPort: 80 };
const SERVER_FLOW = "tcp 198.18.0.2:80 > 198.18.0.9:40000";
const CLIENT_FLOW = "tcp 198.18.0.9:40000 > 198.18.0.2:80";

const classes = (report: CaptureReport) => report.divergences.map((d) => d.class);
const offsets = (report: CaptureReport) => report.divergences.map((d) => [d.class, d.stream_offset]);
const flows = (report: CaptureReport) => report.divergences.map((d) => [d.class, d.flow]);
const named = (report: CaptureReport) => report.divergences.map((d) => [d.class, d.flow, d.stream_offset]);

describe("equal streams", () => {
  test("the same frames", () => {
    const { frames } = exchange();
    const report = compare(frames, frames);
    expect(report).toMatchObject({ same: true, divergences: [], gap_bytes: 0 });
    expect(report.primary.frames_compared).toBe(frames.length);
    expect(report.primary.flows).toBe(2);
    expect(report.compared_bytes).toBe(REQUEST.length + ANSWER.length);
  });

  test("other segments, other initial sequence numbers in both directions, one of which wraps", () => {
    const report = compare(exchange().frames, exchange(OTHER).frames);
    expect(report).toMatchObject({ same: true, compared_bytes: REQUEST.length + ANSWER.length });
    expect(report.primary.frames_not_compared + report.secondary.frames_not_compared).toBe(0);
  });

  test("window, TTL, identification and type of service may differ", () => {
    const secondary = exchange({ ...OTHER, window: 17, ttl: 3, identification: 999, tos: 8 });
    expect(compare(exchange().frames, secondary.frames).same).toBe(true);
  });

  test("over IPv6, and in a VLAN", () => {
    for (const options of [{ version: 6 }, { vlans: [7] }, { version: 6, vlans: [7, 8] }] as const) {
      const same = compare(
        exchange({ ...options } as ConversationOptions).frames,
        exchange({ ...OTHER, ...options } as ConversationOptions).frames,
      );
      expect(same).toMatchObject({ same: true, compared_bytes: REQUEST.length + ANSWER.length });
    }
  });

  test("segments out of order, repeated and overlapping", () => {
    const primary = new Conversation().open();
    const secondary = new Conversation({ guestIsn: 5, clientIsn: 6 }).open();
    primary.guest(ANSWER.subarray(0, 1000), 1000);
    for (const [from, to] of [
      [600, 1000],
      [0, 300],
      [0, 300],
      [200, 700],
      [100, 1000],
    ] as const) {
      const payload = ANSWER.subarray(from, to);
      secondary.fromGuest({ seq: secondary.guestNext + from, ack: secondary.clientNext, payload });
    }
    secondary.guestNext += 1000;
    secondary.acknowledge("client");
    expect(compare(primary.frames, secondary.frames)).toMatchObject({ same: true });
    expect(compare(secondary.frames, primary.frames)).toMatchObject({ same: true });
  });

  test("one direction only in the captures", () => {
    // The last byte of the IPv4 source address.
    const from = (end: 2 | 9, options: ConversationOptions) =>
      exchange(options).frames.filter((frame) => frame[29] === end);
    expect(from(2, {}).length).toBeGreaterThan(50);
    expect(compare(from(2, {}), from(2, OTHER))).toMatchObject({ same: true, compared_bytes: ANSWER.length });
    expect(compare(from(9, {}), from(9, OTHER))).toMatchObject({
      same: true,
      compared_bytes: REQUEST.length,
    });
    const changed = exchange(OTHER, flipped(ANSWER, 4_000)).frames.filter((frame) => frame[29] === 2);
    expect(offsets(compare(from(2, {}), changed))).toEqual([["payload", 4_000]]);
  });

  test("a connection that is refused", () => {
    const refused = (isn: number, acknowledged = isn + 1) => [
      tcp({ ...FROM_CLIENT, seq: isn, flags: SYN }),
      tcp({ seq: 0, ack: acknowledged, flags: RST }),
    ];
    expect(compare(refused(10), refused(4_000_000))).toMatchObject({ same: true });
    const report = compare(refused(10), refused(4_000_000, 4_000_007));
    expect(flows(report)).toEqual([["missing_on_secondary", SERVER_FLOW]]);
  });

  test("one connection after the other on the same ports", () => {
    const frames = (isns: number[], segmentBytes: number) =>
      isns.flatMap((isn, i) => {
        const numbers = { guestIsn: isn, clientIsn: isn + 9, segmentBytes };
        return exchange(numbers, pattern(700, i)).frames;
      });
    const secondary = frames([77, 88_000_000, 3_000_000_000], 90);
    const report = compare(frames([1, 500_000_000, 9_000], 100), secondary);
    expect(report).toMatchObject({ same: true, compared_bytes: 3 * (300 + 700) });
    expect(report.primary.flows).toBe(6);
  });

  test("more connections on the same ports than have flows of their own", () => {
    const frames = (factor: number) =>
      Array.from({ length: 300 }, (_, i) =>
        exchange({ guestIsn: i * factor, clientIsn: i * 7 * factor }, pattern(50, i)),
      ).flatMap((c) => c.frames);
    expect(compare(frames(100_003), frames(9_000_001))).toMatchObject({
      same: true,
      compared_bytes: 300 * 350,
    });
  });

  test("PSH and URG may differ, FIN may come with data", () => {
    const last = (flags: number, split: boolean) => {
      const conversation = new Conversation().open();
      const { guestNext: seq, clientNext: ack } = conversation;
      if (split) conversation.fromGuest({ seq, ack, payload: "abc", flags });
      const rest = split ? { seq: seq + 3, payload: "def" } : { payload: "abcdef" };
      conversation.fromGuest({ ...rest, ack, flags: FIN | flags });
      return conversation.frames;
    };
    expect(compare(last(0, false), last(PSH, true)).same).toBe(true);
    expect(compare(last(ACK, true), last(0x20, false)).same).toBe(true);
  });
});

describe("payload", () => {
  test("one flipped byte is named: offset, frames, sequence numbers, both values, its surroundings", () => {
    const at = 3_210;
    const secondary = exchange(OTHER, flipped(ANSWER, at));
    const report = compare(exchange().frames, secondary.frames);
    expect(report.divergences_total).toBe(1);
    const [divergence] = report.divergences;
    expect(divergence).toMatchObject({ class: "payload", flow: SERVER_FLOW, stream_offset: at });
    // 3 frames to open; every segment of the request and of the answer is followed by its acknowledgement.
    const frameOf = (segmentBytes: number) =>
      3 + 2 * Math.ceil(REQUEST.length / segmentBytes) + 2 * Math.floor(at / segmentBytes) + 1;
    expect(divergence?.primary).toEqual({
      frame: frameOf(100),
      sequence: 1001 + at,
      payload_offset: at % 100,
      byte: ANSWER[at]!,
    });
    expect(divergence?.secondary).toEqual({
      frame: frameOf(333),
      sequence: (0xffff_f001 + at) >>> 0,
      payload_offset: at % 333,
      byte: ANSWER[at]! ^ 0x20,
    });
    // As many of the bytes in front of it as both segments have: 10 on the primary.
    expect(divergence?.context?.before).toBe(10);
    const around = (bytes: Uint8Array) => Buffer.from(bytes.subarray(at - 10, at - 10 + 32)).toString("hex");
    expect(divergence?.context?.primary).toBe(around(ANSWER));
    expect(divergence?.context?.secondary).toBe(around(flipped(ANSWER, at)));
  });

  test.each([0, 1, 99, 100, 332, 333, 4_999])("byte %d", (at) => {
    const changed = flipped(ANSWER, at);
    for (const [p, s] of [
      [ANSWER, changed],
      [changed, ANSWER],
    ] as const) {
      expect(named(compare(exchange({}, p).frames, exchange(OTHER, s).frames))).toEqual([
        ["payload", SERVER_FLOW, at],
      ]);
    }
  });

  test("in the client's direction", () => {
    const report = compare(exchange().frames, exchange(OTHER, ANSWER, flipped(REQUEST, 123)).frames);
    expect(named(report)).toEqual([["payload", CLIENT_FLOW, 123]]);
  });

  test("the other flows go on, and the frames of the one that differs are counted", () => {
    const frames = (options: ConversationOptions, change: boolean) => {
      const all = [0, 1, 2, 3].map((i) => {
        const answer = pattern(2_000, i);
        const sent = change && i === 2 ? flipped(answer, 550) : answer;
        return exchange({ ...options, clientPort: 40_000 + i }, sent).frames;
      });
      // One frame of each in turn.
      return all[0]!.flatMap((_, n) => all.map((one) => one[n]!));
    };
    const report = compare(frames({}, false), frames({ guestIsn: 7 }, true));
    expect(named(report)).toEqual([["payload", "tcp 198.18.0.2:80 > 198.18.0.9:40002", 550]]);
    // Segments 6 to 20, the FIN, and the acknowledgement of the client's FIN.
    expect(report.divergences[0]?.frames_not_compared).toEqual({ primary: 17, secondary: 17 });
    expect(report.primary.frames_not_compared).toBe(17);
    expect(report.secondary.frames_not_compared).toBe(17);
    expect(report.primary.flows).toBe(8);
  });

  test("a connection that differs does not hide the next one on the same ports", () => {
    const frames = (answers: Uint8Array[], isn: number) =>
      answers.flatMap((answer, i) => {
        const numbers = { guestIsn: isn + i * 1_000_000, clientIsn: i * 77_777 };
        return exchange(numbers, answer).frames;
      });
    const answers = [0, 1, 2].map((seed) => pattern(900, seed));
    const changed = [flipped(answers[0]!, 450), answers[1]!, flipped(answers[2]!, 899)];
    expect(offsets(compare(frames(answers, 1), frames(changed, 90_000)))).toEqual([
      ["payload", 450],
      ["payload", 899],
    ]);
  });

  test("the limit bounds what is shown, not what is counted", () => {
    const frames = (change: boolean) =>
      [1, 2, 3, 4, 5].flatMap((clientPort) => {
        const answer = change ? flipped(ANSWER, clientPort) : ANSWER;
        return exchange({ clientPort }, answer).frames;
      });
    const report = compare(frames(false), frames(true), { limit: 2 });
    expect(report.divergences.map((d) => d.stream_offset)).toEqual([1, 2]);
    expect(report.divergences_total).toBe(5);
    expect(compare(frames(false), frames(true), { limit: 0 })).toMatchObject({
      same: false,
      divergences: [],
    });
  });
});

describe("what one side lacks", () => {
  const whole = exchange().frames;
  /** Everything up to byte 4000 of what the guest sends. */
  const cut = exchange({}, ANSWER.subarray(0, 4_000)).frames.slice(0, -3);
  /** Without the 8th segment of the answer. */
  const holed = whole.filter((_, i) => i !== 3 + 6 + 14);

  test("the end of a stream, on the secondary", () => {
    const report = compare(whole, cut);
    expect(flows(report)).toEqual([
      ["missing_on_secondary", SERVER_FLOW],
      ["missing_on_secondary", CLIENT_FLOW],
    ]);
    const [divergence] = report.divergences;
    expect(divergence).toMatchObject({ stream_offset: 4_000, secondary: null });
    expect(divergence?.primary).toEqual({
      frame: 90,
      sequence: 5_001,
      payload_offset: 0,
      byte: ANSWER[4_000]!,
    });
    expect(divergence?.context).toEqual({
      before: 0,
      primary: Buffer.from(ANSWER.subarray(4_000, 4_032)).toString("hex"),
      secondary: null,
    });
    // 10 segments, the FIN, the acknowledgement of the client's FIN.
    expect(divergence?.frames_not_compared).toEqual({ primary: 12, secondary: 0 });
  });

  test("the end of a stream, on the primary", () => {
    const report = compare(cut, whole);
    expect(named(report)).toEqual([
      ["missing_on_primary", SERVER_FLOW, 4_000],
      ["missing_on_primary", CLIENT_FLOW, 300],
    ]);
    expect(report.divergences[0]).toMatchObject({ primary: null, secondary: { frame: 90 } });
  });

  test("the end of a stream in the middle of a segment", () => {
    const sent = (bytes: number) => new Conversation().open().guest(ANSWER.subarray(0, bytes), 300).frames;
    const [divergence] = compare(sent(600), sent(450)).divergences;
    expect(divergence).toMatchObject({
      class: "missing_on_secondary",
      stream_offset: 450,
      primary: { frame: 6, sequence: 1_451, payload_offset: 150, byte: ANSWER[450]! },
      context: { before: 16, primary: Buffer.from(ANSWER.subarray(434, 466)).toString("hex") },
    });
  });

  test("a segment in the middle", () => {
    expect(named(compare(whole, holed))).toEqual([["missing_on_secondary", SERVER_FLOW, 700]]);
    expect(named(compare(holed, whole))).toEqual([["missing_on_primary", SERVER_FLOW, 700]]);
  });

  test("a segment that neither has is passed over and counted", () => {
    expect(compare(holed, holed)).toMatchObject({ same: true, gap_bytes: 100, compared_bytes: 5_200 });
    // A difference behind the gap is found, at its place in the whole stream.
    const changed = exchange({}, flipped(ANSWER, 4_444)).frames.filter((_, i) => i !== 3 + 6 + 14);
    expect(offsets(compare(holed, changed))).toEqual([["payload", 4_444]]);
  });

  test("a whole connection", () => {
    const both = [...whole, ...exchange({ clientPort: 40_001 }).frames];
    const missing = (why: string) => [
      [why, "tcp 198.18.0.2:80 > 198.18.0.9:40001", 0],
      [why, "tcp 198.18.0.9:40001 > 198.18.0.2:80", 0],
    ];
    expect(named(compare(both, whole)).sort()).toEqual(missing("missing_on_secondary"));
    expect(named(compare(whole, both)).sort()).toEqual(missing("missing_on_primary"));
  });

  test("an acknowledgement", () => {
    const acknowledged = (bytes: number) => {
      const conversation = new Conversation().open();
      conversation.fromClient({ ack: conversation.guestNext, payload: REQUEST });
      conversation.fromGuest({ ack: conversation.clientNext + bytes });
      return conversation.frames;
    };
    const report = compare(acknowledged(300), acknowledged(200));
    expect(flows(report)).toEqual([["missing_on_secondary", SERVER_FLOW]]);
    expect(report.divergences[0]?.detail).toContain("100 bytes more");
    // The secondary may be ahead: a client only sees what both have acknowledged.
    expect(compare(acknowledged(200), acknowledged(300)).same).toBe(true);
  });

  test("a reset", () => {
    const reset = new Conversation().open().guest(ANSWER);
    const plain = [...reset.frames];
    reset.fromGuest({ flags: RST });
    expect(classes(compare(reset.frames, plain))).toEqual(["missing_on_secondary"]);
    expect(classes(compare(plain, reset.frames))).toEqual(["missing_on_primary"]);
    expect(compare(reset.frames, reset.frames).same).toBe(true);
  });

  test("the end on one side where the other has more", () => {
    const short = new Conversation().open().guest(ANSWER.subarray(0, 150)).close().frames;
    const long = new Conversation().open().guest(ANSWER.subarray(0, 250)).close().frames;
    expect(named(compare(short, long))).toContainEqual(["flags", SERVER_FLOW, 150]);
    expect(named(compare(long, short))).toContainEqual(["flags", SERVER_FLOW, 150]);
  });

  test("other TCP options in the SYN", () => {
    const other = [...whole];
    // The SYN-ACK's window scale.
    other[1] = flipped(whole[1]!, whole[1]!.length - 3);
    expect(offsets(compare(whole, other))).toEqual([["flags", 0]]);
  });
});

describe("streams that begin without their SYN", () => {
  /** From the answer's first segment on. */
  const middle = (options: ConversationOptions, answer = ANSWER) => exchange(options, answer).frames.slice(9);

  test("other numbers: the first segments are the same place, offsets count from there", () => {
    const numbers = { guestIsn: 3_000_000_000, clientIsn: 2_000_000_000 };
    expect(compare(middle({}), middle(numbers))).toMatchObject({ same: true, compared_bytes: ANSWER.length });
    expect(offsets(compare(middle({}), middle(numbers, flipped(ANSWER, 2_345))))).toEqual([
      ["payload", 2_345],
    ]);
  });

  test("other numbers, and an acknowledgement in front that is older than the first segment", () => {
    const late = (options: ConversationOptions) => {
      const conversation = new Conversation(options).open();
      const opened = conversation.frames.length;
      conversation.acknowledge("client");
      conversation.guestNext += 100;
      return conversation.guest(ANSWER).frames.slice(opened);
    };
    const secondary = late({ guestIsn: 3_000_000_000, clientIsn: 2_000_000_000 });
    expect(compare(late({}), secondary)).toMatchObject({ same: true, compared_bytes: ANSWER.length });
  });

  test("other numbers, and one capture without the other direction: its acknowledgements still count", () => {
    const secondary = middle({ guestIsn: 3_000_000_000, clientIsn: 2_000_000_000 });
    const fromClient = secondary.filter((frame) => frame[29] === 9);
    expect(flows(compare(middle({}), fromClient))).toEqual([["missing_on_secondary", SERVER_FLOW]]);
    const lastAcknowledgement = fromClient.slice(0, -2);
    expect(flows(compare(middle({}), lastAcknowledgement)).sort()).toEqual([
      ["missing_on_secondary", SERVER_FLOW],
      ["missing_on_secondary", CLIENT_FLOW],
    ]);
  });

  test("the same numbers: the comparison begins where the later capture does", () => {
    const early = middle({});
    const late = middle({ segmentBytes: 130 }).slice(20);
    for (const [primary, secondary] of [
      [early, late],
      [late, early],
    ] as const) {
      const report = compare(primary, secondary);
      expect(report).toMatchObject({ same: true });
      expect(report.primary.frames_before_start + report.secondary.frames_before_start).toBeGreaterThan(5);
    }
    const changed = middle({ segmentBytes: 130 }, flipped(ANSWER, 4_321)).slice(20);
    // With 130 bytes a segment the request takes 3 segments too, so that the answer's segment 10 comes first.
    expect(offsets(compare(early, changed))).toEqual([["payload", 4_321 - 10 * 130]]);
  });

  test("only one capture has the SYN", () => {
    const whole = exchange().frames;
    const late = exchange({ segmentBytes: 70 }).frames.slice(40);
    expect(compare(whole, late)).toMatchObject({ same: true });
    expect(compare(late, whole)).toMatchObject({ same: true });
    const changed = exchange({ segmentBytes: 70 }, flipped(ANSWER, 4_999)).frames.slice(40);
    expect(classes(compare(whole, changed))).toEqual(["payload"]);
  });

  test("an old connection in one capture, and a new one on the same ports in both", () => {
    const old = middle({ guestIsn: 900_000_000, clientIsn: 800_000_000 });
    const report = compare([...old, ...exchange().frames], exchange(OTHER).frames);
    expect(classes(report)).toEqual(["missing_on_secondary", "missing_on_secondary"]);
    expect(report.compared_bytes).toBe(REQUEST.length + ANSWER.length);
    const reverse = compare(exchange(OTHER).frames, [...old, ...exchange().frames]);
    expect(classes(reverse)).toEqual(["missing_on_primary", "missing_on_primary"]);
    expect(reverse.compared_bytes).toBe(REQUEST.length + ANSWER.length);
  });

  test("a stray segment of the connection before, behind the new one's SYN", () => {
    const frames = (guestIsn: number, clientIsn: number) => {
      const old = new Conversation({ guestIsn, clientIsn }).open().guest(ANSWER.subarray(0, 1000));
      const stray = old.frames.splice(-2, 1);
      const numbers = { guestIsn: guestIsn + 100_000_000, clientIsn: clientIsn + 50_000_000 };
      const next = exchange(numbers).frames;
      return [...old.frames, ...next.slice(0, 8), ...stray, ...next.slice(8)];
    };
    const report = compare(frames(1, 2), frames(700_000_000, 900_000_000));
    expect(report).toMatchObject({ same: true, compared_bytes: 1000 + REQUEST.length + ANSWER.length });
  });
});

describe("positions in a stream", () => {
  test("do not wrap", () => {
    const stream = new Stream(0xffff_ff00 | 0, 3, null);
    const step = 2 ** 24;
    for (let position = step; position < 20 * 2 ** 30; position += step) {
      const sequence = Number((0xffff_ff00n + BigInt(position)) & 0xffff_ffffn) | 0;
      stream.note(sequence);
      if (position % (512 * step) !== 0) continue;
      expect(stream.position(sequence)).toBe(position);
      expect(stream.position((sequence - 5_000) | 0)).toBe(position - 5_000);
    }
  });

  test("are not misled by single damaged numbers, but follow a real leap", () => {
    const stream = new Stream(1, 3, null);
    for (let i = 0; i < 40; i++) {
      stream.note(1_000 + i);
      // Each would count as 1.5 GiB more, and three of them as a wrap.
      stream.note((1_000 + i + 1.5 * 2 ** 30 * ((i % 3) + 1)) | 0);
    }
    expect(stream.position(1_101)).toBe(1_100);
    stream.note(1 + 2 ** 30);
    stream.note(1_001 + 2 ** 30);
    expect(stream.position((1 + 2 ** 31 + 5) | 0)).toBe(2 ** 31 + 5);
  });
});
