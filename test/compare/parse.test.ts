import { describe, expect, test } from "bun:test";
import {
  KEY_DESTINATION,
  KEY_FRAGMENT,
  KEY_KIND,
  KEY_PORTS,
  KEY_SOURCE,
  KEY_VLAN,
  KIND_BYPASS,
  KIND_DATAGRAM,
  KIND_FRAME,
  KIND_TCP,
  KIND_UNPARSED,
} from "../../src/compare/flow_key.ts";
import { parseRecord } from "../../src/compare/parse.ts";
import { ParsedFrame } from "../../src/compare/parsed_frame.ts";
import { RECORD_HEADER_BYTES } from "../../src/ffi/layout.ts";
import {
  ACK,
  concat,
  ethernet,
  FIN,
  icmp,
  ip,
  ipv4Bytes,
  RST,
  SYN,
  synOptions,
  tcp,
  text,
  timestamps,
  udp,
  udpDatagram,
} from "./frames.ts";
import { parseAtEnd, Records } from "./harness.ts";

function parse(frame: Uint8Array, gso?: { type?: number; size?: number }): ParsedFrame {
  const records = new Records(frame.length + 256, 0);
  const parsed = new ParsedFrame();
  parseRecord(records.bytes, records.put(frame, 5, 0x12345, gso), parsed);
  return parsed;
}

/** The bytes that count, without a checksum that is left out. */
function compared(frame: Uint8Array): Uint8Array {
  const { data, dataBytes, skipAt, skipBytes } = parse(frame);
  const bytes = frame.slice(data - RECORD_HEADER_BYTES, data - RECORD_HEADER_BYTES + dataBytes);
  return concat(
    bytes.slice(0, skipBytes === 0 ? dataBytes : skipAt),
    bytes.slice(skipAt + skipBytes).slice(0, skipBytes === 0 ? 0 : undefined),
  );
}

const key = (frame: Uint8Array): string => parse(frame).key.join(",");

describe("record header", () => {
  test("time, length and epoch tag", () => {
    const records = new Records(512, 0);
    const frame = udp("x");
    const timeNs = 123_456_789_012_345;
    const parsed = new ParsedFrame();
    parseRecord(records.bytes, records.put(frame, timeNs, 0xabcd1234), parsed);
    expect(parsed.timeNs).toBe(timeNs);
    expect(parsed.frameBytes).toBe(frame.length);
    expect(parsed.epoch).toBe(0x1234);
  });

  test("a frame length beyond the memory is cut to it", () => {
    const bytes = new Uint8Array(200);
    new DataView(bytes.buffer).setUint32(8, 0xffff_ffff, true);
    const parsed = new ParsedFrame();
    parseRecord(bytes, 0, parsed);
    expect(parsed.frameBytes).toBe(136);
    parseRecord(bytes, 190, parsed);
    expect(parsed.frameBytes).toBe(0);
    expect(parsed.kind).toBe(KIND_UNPARSED);
  });
});

describe("TCP", () => {
  test("numbers, payload and key over IPv4", () => {
    const parsed = parse(tcp({ seq: 0xfffffff0, ack: 7, payload: "0123456789abcdefgh", sourcePort: 443 }));
    expect(parsed.kind).toBe(KIND_TCP);
    expect(parsed.sequence >>> 0).toBe(0xfffffff0);
    expect(parsed.end).toBe(2);
    expect(parsed.acknowledgement).toBe(7);
    expect(parsed.flags).toBe(ACK);
    expect(parsed.dataBytes).toBe(18);
    expect(parsed.key[KEY_KIND]).toBe((KIND_TCP << 24) | (4 << 8) | 6);
    expect(parsed.key[KEY_PORTS]).toBe((443 << 16) | 40000);
    expect(parsed.key[KEY_SOURCE] >>> 0).toBe(0xc6120002);
    expect(parsed.key[KEY_DESTINATION] >>> 0).toBe(0xc6120009);
  });

  test("SYN and FIN occupy a sequence number each, an RST none", () => {
    expect(parse(tcp({ seq: 10, flags: SYN })).end).toBe(11);
    expect(parse(tcp({ seq: 10, flags: FIN, ack: 1, payload: "abc" })).end).toBe(14);
    expect(parse(tcp({ seq: 10, flags: RST })).end).toBe(10);
    expect(parse(tcp({ seq: 10, flags: RST, payload: "because" })).end).toBe(10);
  });

  test("options before the payload and Ethernet padding behind it are no payload", () => {
    const parsed = parse(tcp({ seq: 1, ack: 1, options: timestamps(1, 2), padding: 6 }));
    expect(parsed.dataBytes).toBe(0);
    expect(parsed.end).toBe(1);
    expect(compared(tcp({ seq: 1, ack: 1, options: timestamps(1, 2), payload: "ab", padding: 4 }))).toEqual(
      text("ab"),
    );
  });

  test("the options that a SYN negotiates", () => {
    expect(parse(tcp({ flags: SYN, options: synOptions(1460, 7) })).meta).toBe((1460 << 16) | (7 << 8) | 2);
    expect(parse(tcp({ flags: SYN, options: timestamps(1, 0) })).meta).toBe((0xff << 8) | 1);
    expect(parse(tcp({ flags: SYN, options: Uint8Array.from([2, 0, 1, 1]) })).meta).toBe(0xff << 8);
  });

  test("header lengths that do not fit and senseless flags are not parsed", () => {
    const short = tcp({ seq: 1, ack: 1 });
    short[14 + 20 + 12] = 0x40;
    expect(parse(short).kind).toBe(KIND_UNPARSED);
    const long = tcp({ seq: 1, ack: 1 });
    long[14 + 20 + 12] = 0xf0;
    expect(parse(long).kind).toBe(KIND_UNPARSED);
    expect(parse(tcp({ flags: 0 })).kind).toBe(KIND_UNPARSED);
    expect(parse(tcp({ flags: SYN | FIN })).kind).toBe(KIND_UNPARSED);
    expect(parse(tcp({ flags: SYN | RST })).kind).toBe(KIND_UNPARSED);
  });

  test("64 kB of segmentation offload", () => {
    const parsed = parse(tcp({ seq: 1, ack: 1, payload: new Uint8Array(65_495) }));
    expect(parsed.kind).toBe(KIND_TCP);
    expect(parsed.dataBytes).toBe(65_495);
  });
});

describe("IP", () => {
  test("IPv4 options are stepped over", () => {
    const parsed = parse(
      tcp({ seq: 5, ack: 6, payload: "abc", ipOptions: Uint8Array.from([0x94, 4, 0, 0]) }),
    );
    expect(parsed.kind).toBe(KIND_TCP);
    expect(parsed.sequence).toBe(5);
    expect(parsed.dataBytes).toBe(3);
  });

  test("IPv6 and its extension headers", () => {
    const plain = parse(tcp({ version: 6, seq: 5, ack: 6, payload: "abc" }));
    expect(plain.kind).toBe(KIND_TCP);
    expect(plain.key[KEY_SOURCE]).toBe(0x20010002);
    expect(plain.key[KEY_SOURCE + 3]).toBe(2);
    const extended = parse(
      tcp({
        version: 6,
        seq: 5,
        ack: 6,
        payload: "abc",
        extensions: [
          [0, Uint8Array.from([0, 0, 5, 2, 0, 0, 1, 0])],
          [43, Uint8Array.from([0, 2, 4, 0, ...new Array(20).fill(0)])],
          [60, Uint8Array.from([0, 0, 1, 4, 0, 0, 0, 0])],
          [44, Uint8Array.from([0, 0, 0, 0, 1, 2, 3, 4])],
        ],
      }),
    );
    expect(extended.kind).toBe(KIND_TCP);
    expect(extended.key).toEqual(plain.key);
    expect(extended.dataBytes).toBe(3);
  });

  test("extension headers that run past the packet or without end are not parsed", () => {
    const beyond = tcp({
      version: 6,
      ack: 1,
      extensions: [[0, Uint8Array.from([0, 200, 0, 0, 0, 0, 0, 0])]],
    });
    expect(parse(beyond).kind).toBe(KIND_UNPARSED);
    const many: [number, Uint8Array][] = Array.from({ length: 12 }, () => [60, new Uint8Array(8)]);
    expect(parse(tcp({ version: 6, ack: 1, extensions: many })).kind).toBe(KIND_UNPARSED);
  });

  test("a length field that does not fit is not parsed", () => {
    expect(parse(udp("abcdef", { claimedBytes: 60 })).kind).toBe(KIND_UNPARSED);
    expect(parse(udp("abcdef", { claimedBytes: 0 })).kind).toBe(KIND_UNPARSED);
    expect(parse(udp("abcdef", { claimedBytes: 19 })).kind).toBe(KIND_UNPARSED);
    expect(parse(udp("abcdef", { version: 6, claimedBytes: 60 })).kind).toBe(KIND_UNPARSED);
    expect(parse(udp("abcdef", { udpBytes: 60 })).kind).toBe(KIND_UNPARSED);
    expect(parse(udp("abcdef", { udpBytes: 7 })).kind).toBe(KIND_UNPARSED);
  });

  test("fragments are flows of their own, whatever their identification", () => {
    const datagram = udpDatagram("0123456789abcdef");
    const first = ip(17, datagram.slice(0, 16), { moreFragments: true, identification: 1 });
    const second = ip(17, datagram.slice(16), { fragmentOffset: 2, identification: 1 });
    expect(parse(first).kind).toBe(KIND_DATAGRAM);
    expect(parse(first).key[KEY_KIND] & KEY_FRAGMENT).toBe(KEY_FRAGMENT);
    expect(key(first)).toBe(key(second));
    expect(parse(first).meta).toBe(1);
    expect(parse(second).meta).toBe(4);
    expect(compared(first).length).toBe(14);
    expect(compared(second)).toEqual(text("89abcdef"));
    const six = ip(17, datagram.slice(16), { version: 6, fragmentOffset: 2, moreFragments: true });
    expect(parse(six).meta).toBe(5);
    expect(compared(six)).toEqual(text("89abcdef"));
  });
});

describe("what else counts", () => {
  test("UDP: the payload, not the checksum", () => {
    expect(compared(udp("hello", { checksum: 1, padding: 9 }))).toEqual(text("hello"));
    expect(parse(udp("hello")).key[KEY_PORTS]).toBe((53 << 16) | 40000);
    expect(parse(udp("hello"), { type: 5, size: 1400 }).meta).toBe(1400);
  });

  test("ICMP: type, code and identifier are in the key, the checksum is nowhere", () => {
    expect(key(icmp("a", { id: 1 }))).not.toBe(key(icmp("a", { id: 2 })));
    expect(key(icmp("a", { type: 3 }))).not.toBe(key(icmp("a", { type: 11 })));
    expect(compared(icmp("a", { checksum: 5 }))).toEqual(compared(icmp("a", { checksum: 6 })));
    expect(compared(icmp("a", { version: 6, checksum: 5 }))).toEqual(compared(icmp("a", { version: 6 })));
  });

  test("SCTP: everything but the checksum", () => {
    const packet = (checksum: number) =>
      ip(132, Uint8Array.from([0, 1, 0, 2, 9, 9, 9, 9, checksum, 0, 0, 0, 7]));
    expect(compared(packet(1))).toEqual(compared(packet(2)));
    expect(compared(packet(1)).length).toBe(9);
    expect(parse(packet(1)).key[KEY_PORTS]).toBe(0x10002);
  });

  test("other protocols: the IP payload", () => {
    expect(compared(ip(47, text("gre"), { identification: 5, ttl: 3 }))).toEqual(text("gre"));
  });

  test("frames that are not IP: all of them", () => {
    const lldp = ethernet(0x88cc, text("neighbour"));
    expect(parse(lldp).kind).toBe(KIND_FRAME);
    expect(compared(lldp)).toEqual(lldp);
    const llc = ethernet(0x0026, text("spanning tree"));
    expect(parse(llc).key[KEY_PORTS]).toBe(0);
  });

  test("ARP and neighbour discovery are let through", () => {
    expect(parse(ethernet(0x0806, new Uint8Array(28))).kind).toBe(KIND_BYPASS);
    expect(parse(ethernet(0x0806, new Uint8Array(28), { vlans: [5] })).kind).toBe(KIND_BYPASS);
    for (let type = 133; type <= 137; type++) {
      expect(parse(icmp("", { version: 6, type })).kind).toBe(KIND_BYPASS);
    }
    expect(parse(icmp("", { version: 6, type: 132 })).kind).toBe(KIND_DATAGRAM);
  });

  test("VLAN tags are part of the key, their priority is not", () => {
    const keys = [[], [5], [6], [5, 6], [6, 5]].map((vlans) => key(tcp({ ack: 1, vlans })));
    expect(new Set(keys).size).toBe(5);
    expect(key(tcp({ ack: 1, vlans: [5] }))).toBe(key(tcp({ ack: 1, vlans: [0xe005] })));
    expect(parse(tcp({ ack: 1, vlans: [5, 6] })).kind).toBe(KIND_TCP);
    expect(parse(tcp({ ack: 1, vlans: [5] })).key[KEY_VLAN]).toBe(0x1005);
    expect(parse(tcp({ ack: 1, vlans: [5, 6, 7] })).kind).toBe(KIND_FRAME);
  });
});

describe("hostile frames", () => {
  const samples: [string, Uint8Array][] = [
    [
      "tcp",
      tcp({ seq: 1, ack: 2, payload: "payload", options: timestamps(1, 2), ipOptions: new Uint8Array(8) }),
    ],
    ["syn", tcp({ flags: SYN, options: synOptions(1460, 7), vlans: [3, 4] })],
    ["tcp6", tcp({ version: 6, seq: 1, ack: 2, payload: "payload", extensions: [[0, new Uint8Array(8)]] })],
    ["udp", udp("payload", { vlans: [9] })],
    ["udp6", udp("payload", { version: 6, moreFragments: true })],
    ["icmp", icmp("payload")],
    ["icmp6", icmp("payload", { version: 6 })],
    ["sctp", ip(132, new Uint8Array(20))],
    ["arp", ethernet(0x0806, new Uint8Array(28))],
  ];

  for (const [name, frame] of samples) {
    test(`${name}: cut at every length, nothing is read past the end`, () => {
      for (let length = 0; length < frame.length; length++) {
        const parsed = parseAtEnd(frame.slice(0, length));
        const arp = name === "arp" && length >= 14;
        expect(parsed.kind).toBe(arp ? KIND_BYPASS : KIND_UNPARSED);
        if (!arp) expect(parsed.dataBytes).toBe(length);
      }
      expect(parseAtEnd(frame).kind).not.toBe(KIND_UNPARSED);
    });

    test(`${name}: every byte set to every kind of wrong value`, () => {
      for (let at = 12; at < frame.length; at++) {
        for (const value of [0x00, 0x01, 0x0f, 0x40, 0x45, 0x4f, 0x7f, 0x80, 0xff]) {
          const broken = frame.slice();
          broken[at] = value;
          parseAtEnd(broken);
        }
      }
    });
  }

  test("nothing of the frame before is left in the result", () => {
    const records = new Records(1024, 0);
    const reused = new ParsedFrame();
    const fresh = new ParsedFrame();
    const frames = samples.flatMap(([, frame]) => [frame, frame.slice(0, frame.length - 3)]);
    for (const before of frames) {
      for (const frame of frames) {
        records.rewind();
        parseRecord(records.bytes, records.put(before, 1, 1), reused);
        records.rewind();
        const offset = records.put(frame, 2, 2);
        parseRecord(records.bytes, offset, reused);
        Object.assign(fresh, new ParsedFrame());
        parseRecord(records.bytes, offset, fresh);
        if (fresh.kind === KIND_BYPASS) expect(reused.kind).toBe(KIND_BYPASS);
        else expect({ ...reused }).toEqual({ ...fresh });
      }
    }
  });

  test("addresses of the helper are what they look like", () => {
    expect([...ipv4Bytes("198.18.0.2")]).toEqual([198, 18, 0, 2]);
  });
});
