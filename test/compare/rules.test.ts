import { describe, expect, test } from "bun:test";
import { parseRecord } from "../../src/compare/parse.ts";
import { ParsedFrame } from "../../src/compare/parsed_frame.ts";
import { parseRules, RuleError, type RuleLines } from "../../src/compare/rules.ts";
import { CLIENT, CLIENT6, ethernet, GUEST, icmp, ip, SYN, tcp, text, udp, udpDatagram } from "./frames.ts";
import { Bench, Records } from "./harness.ts";

function keyOf(frame: Uint8Array): Int32Array {
  const records = new Records(frame.length + 128, 0);
  const parsed = new ParsedFrame();
  parseRecord(records.bytes, records.put(frame, 1, 0), parsed);
  return parsed.key;
}

const passes = (line: string, frame: Uint8Array): boolean =>
  parseRules({ passthrough: [line] }).passes(keyOf(frame));

function mistakeOf(lines: RuleLines): string {
  try {
    parseRules(lines);
  } catch (error) {
    expect(error).toBeInstanceOf(RuleError);
    return (error as Error).message;
  }
  return "";
}

describe("passthrough lines", () => {
  test("protocols, by name and by number", () => {
    const frames = {
      tcp: tcp({ seq: 1, ack: 1 }),
      udp: udp("x", { version: 6 }),
      icmp: icmp("x"),
      icmpv6: icmp("x", { version: 6 }),
      sctp: ip(132, new Uint8Array(12)),
      47: ip(47, text("gre")),
    };
    for (const [line, own] of Object.entries(frames)) {
      for (const frame of Object.values(frames)) expect(passes(line, frame)).toBe(frame === own);
      expect(passes("any", own)).toBe(true);
      expect(passes(line.toUpperCase(), own)).toBe(true);
    }
    expect(passes("6", frames.tcp)).toBe(true);
    expect(passes("58", frames.icmpv6)).toBe(true);
  });

  test("addresses of either end, with any prefix length", () => {
    const frame = udp("x");
    for (const line of [
      GUEST,
      CLIENT,
      "198.18.0.8/31",
      "198.19.255.255/15",
      "any 0.0.0.0/0",
      "udp 198.18.0.9/32",
    ]) {
      expect(passes(line, frame)).toBe(true);
    }
    for (const line of ["198.18.0.3", "198.18.0.10/31", "::/0", "tcp 198.18.0.9"]) {
      expect(passes(line, frame)).toBe(false);
    }
    const frame6 = udp("x", { version: 6, destination6: "2001:2:0:8000::abcd" });
    for (const line of [
      "2001:2:0:8000::abcd",
      "2001:2:0:8000:0:0:0:0/65",
      "2001:2:0:ffff::/49",
      "::/0",
      "2001:2::2",
      "2001:2::0.0.0.2",
    ]) {
      expect(passes(line, frame6)).toBe(true);
    }
    for (const line of ["2001:2:0:8000::abce", "2001:2:0:8000:8000::/65", "0.0.0.0/0"]) {
      expect(passes(line, frame6)).toBe(false);
    }
  });

  test("ports of either end, one or a range, of what has ports", () => {
    const frame = tcp({ seq: 1, ack: 1, sourcePort: 80, destinationPort: 40_000 });
    for (const line of ["port 80", "tcp port 40000", "tcp port 79-81", "any 198.18.0.9 port 0-65535"]) {
      expect(passes(line, frame)).toBe(true);
    }
    for (const line of ["port 81", "tcp port 81-39999", "udp port 80", "198.18.0.7 port 80"]) {
      expect(passes(line, frame)).toBe(false);
    }
    // The words that hold ports hold other things here.
    expect(passes("port 0-65535", icmp("x"))).toBe(false);
    expect(passes("port 0-65535", ip(47, text("gre")))).toBe(false);
    expect(passes("port 0-65535", ip(17, text("abcdefgh"), { fragmentOffset: 8 }))).toBe(false);
    expect(passes("udp", ip(17, text("abcdefgh"), { fragmentOffset: 8 }))).toBe(true);
  });

  test("only IP flows match", () => {
    expect(passes("any", ethernet(0x88cc, text("lldp")))).toBe(false);
    expect(passes("any", udp("cut off").slice(0, 36))).toBe(false);
    expect(passes("any", udp("x", { vlans: [7] }))).toBe(true);
  });

  test("mistakes are told with the line and the part", () => {
    const mistakes: [string, string][] = [
      ["", 'it is empty; write for example "udp port 123"'],
      ["tpc port 80", '"tpc" is not understood at this place; the form is [tcp|udp|'],
      ["256", 'the protocol number "256" is above 255'],
      ["tcp 198.18.0.256", '"198.18.0.256" is no IPv4 or IPv6 address'],
      ["tcp 198.18.0.1/33", 'the prefix length "33" is not in 0..32'],
      ["tcp 198.18.0.1/x", 'the prefix length "x" is not in 0..32'],
      ["2001:2::1::2", '"2001:2::1::2" is no IPv4 or IPv6 address'],
      ["2001:2:1", '"2001:2:1" is no'],
      ["2001:2::12345", '"2001:2::12345" is no'],
      ["1:2:3:4:5:6:7::8", '"1:2:3:4:5:6:7::8" is no'],
      ["2001:2::/129", 'the prefix length "129" is not in 0..128'],
      ["tcp port", '"port" needs a number'],
      ["tcp port http", 'the port "http" is no number and no range'],
      ["tcp port 65536", 'the port "65536" is not in 0..65535'],
      ["tcp port 90-80", 'the port "90-80" ends before it begins'],
      ["icmp port 80", '"icmp" has no ports'],
      ["47 port 80", '"47" has no ports'],
      ["icmp 2001:2::1", '"icmp" is for IPv4; write icmpv6'],
      ["icmpv6 198.18.0.1", '"icmpv6" is for IPv6; write icmp '],
      ["tcp port 80 198.18.0.1", '"198.18.0.1" is not understood at this place'],
      ["tcp port 80 bytes 0-3", '"bytes" is not understood at this place'],
    ];
    for (const [line, mistake] of mistakes) {
      expect(mistakeOf({ passthrough: ["any", line] })).toStartWith(
        `passthrough line 2, "${line}": ${mistake}`,
      );
    }
  });
});

describe("ignore lines", () => {
  const ranges = (lines: string[], frame: Uint8Array): number[] => {
    const rules = parseRules({ ignore: lines });
    return [...rules.ignoredBytes(rules.ignoredSet(keyOf(frame)))];
  };

  test("ranges of all lines that match, put together", () => {
    const lines = [
      "udp port 53 bytes 0-1",
      "udp 198.18.0.9 port 50-59 bytes 8,2-3,12-19",
      "udp port 54 bytes 5",
    ];
    expect(ranges(lines, udp("x"))).toEqual([0, 4, 8, 9, 12, 20]);
    expect(ranges(lines, udp("x", { destination4: "198.18.0.7" }))).toEqual([0, 2]);
    expect(ranges(lines, udp("x", { sourcePort: 54, destination4: "198.18.0.7" }))).toEqual([5, 6]);
    expect(ranges(lines, udp("x", { sourcePort: 9 }))).toEqual([]);
    expect(ranges(lines, tcp({ seq: 1, ack: 1, sourcePort: 53 }))).toEqual([]);
    expect(ranges(["17 ::/0 port 53 bytes 0-65526"], udp("x", { version: 6 }))).toEqual([0, 65_527]);
  });

  test("flows that match the same lines share a set", () => {
    const rules = parseRules({ ignore: ["udp port 53 bytes 0-1", "udp port 54 bytes 0"] });
    const sets = [1, 2, 3].map((port) => rules.ignoredSet(keyOf(udp("x", { destinationPort: port }))));
    expect(sets).toEqual([1, 1, 1]);
    expect(rules.ignoredSet(keyOf(udp("x", { sourcePort: 54 })))).toBe(2);
  });

  test("mistakes are told with the line and the part", () => {
    const form = "the form is udp [ADDRESS[/PREFIX]] port N[-M] bytes A-B[,C-D]";
    const mistakes: [string, string][] = [
      ["", "it is empty"],
      ["tcp port 53 bytes 0-1", 'it begins with "tcp"; bytes can only be ignored in udp'],
      ["port 53 bytes 0-1", 'it begins with "port"'],
      ["udp bytes 0-1", `"bytes" is not understood at this place; ${form}`],
      ["udp", 'a "port N" is needed'],
      ["udp 198.18.0.1", 'a "port N" is needed'],
      ["udp port 53", '"bytes A-B" is missing at its end'],
      ["udp port 53 byte 0", `"byte" is not understood at this place; ${form}`],
      ["udp port 53 bytes", '"bytes" needs a range'],
      ["udp port 53 bytes 3-0", 'the byte range "3-0" ends before it begins'],
      ["udp port 53 bytes 0-3,", 'the byte range "" is no number'],
      ["udp port 53 bytes 0-65527", 'the byte range "0-65527" is not in 0..65526'],
      ["udp port 53 bytes 0-3 8-9", '"8-9" is not understood at this place'],
    ];
    for (const [line, mistake] of mistakes) {
      expect(mistakeOf({ ignore: [line] })).toStartWith(`ignore line 1, "${line}": ${mistake}`);
    }
  });

  test("every mistake is told", () => {
    const message = mistakeOf({ passthrough: ["tpc", "tcp"], ignore: ["udp", "udp port 1 bytes 0"] });
    expect(message.split("\n").map((line) => line.split(":")[0])).toEqual([
      'passthrough line 1, "tpc"',
      'ignore line 1, "udp"',
    ]);
  });
});

describe("flows that are passed through", () => {
  const withRules = (lines: RuleLines, options: ConstructorParameters<typeof Bench>[0] = {}) =>
    new Bench({ ...options, rules: parseRules(lines) });

  test("are released and finished at once, others are compared", () => {
    const bench = withRules({ passthrough: ["tcp port 80", "udp 198.18.0.9"] });
    const opened = bench.p(tcp({ seq: 1, ack: 5, flags: SYN }));
    const data = bench.p(tcp({ seq: 7, ack: 5, payload: "one thing" }));
    bench.s(tcp({ seq: 7, ack: 5, payload: "another" }));
    const datagram = bench.p(udp("x"));
    const compared = bench.p(udp("x", { version: 6 }));
    expect(bench.released).toEqual([opened, data, datagram]);
    expect(bench.finished).toEqual([0]);
    bench.s(udp("y", { version: 6 }));
    bench.wait(1000);
    expect(bench.classes).toEqual(["payload"]);
    expect(bench.isReleased(compared)).toBe(false);
    const { releasedPassthrough, discardedFrames } = bench.comparer.stats;
    expect([releasedPassthrough, discardedFrames]).toEqual([3, 1]);
  });

  test("also while a checkpoint is made, and behind it", () => {
    const bench = withRules({ passthrough: ["udp port 53"] });
    bench.comparer.beginCheckpoint(bench.nowNs);
    const during = bench.p(udp("x"));
    const boundary = bench.nowNs;
    expect(bench.released).toEqual([during]);
    bench.s(udp("early"), { epoch: 1 });
    bench.p(udp("compared", { sourcePort: 7 }));
    bench.checkpoint(boundary);
    expect(bench.classes).toEqual([]);
    expect(bench.finished).toEqual([0]);
    bench.p(udp("late"), { timeNs: boundary - 1 });
    expect(bench.comparer.stats.releasedPassthrough).toBe(2);
  });

  test("also when the flow table is full", () => {
    const bench = withRules({ passthrough: ["udp port 53"] }, { limits: { flowsMax: 1 } });
    bench.p(tcp({ seq: 1, ack: 1, payload: "x" }));
    const passed = bench.p(udp("x"));
    bench.s(udp("y"));
    expect(bench.released).toEqual([passed]);
    expect(bench.finished).toEqual([0]);
    expect(bench.classes).toEqual([]);
    bench.p(udp("x", { sourcePort: 54 }));
    expect(bench.classes).toEqual(["overflow"]);
    bench.p(udp("y"));
    expect(bench.released).toHaveLength(2);
  });

  test("a flow that comes back after it was forgotten is still passed through", () => {
    const bench = withRules({ passthrough: ["any"] });
    bench.p(udp("x"));
    bench.wait(400_000);
    expect(bench.comparer.stats.flows).toBe(0);
    bench.p(udp("x"));
    expect(bench.released).toHaveLength(2);
  });

  test("without a rule for it nothing is", () => {
    const bench = withRules({ passthrough: [`tcp ${CLIENT6} port 80`], ignore: [] });
    bench.p(tcp({ seq: 1, ack: 1, payload: "x" }));
    bench.p(tcp({ seq: 1, ack: 1, payload: "x", version: 6, destination6: "2001:2::7" }));
    expect(bench.released).toEqual([]);
  });
});

describe("bytes that are ignored", () => {
  const dns = (id: number, rest: string) => Uint8Array.from([id >> 8, id & 0xff, ...text(rest)]);
  const bench = () => new Bench({ rules: parseRules({ ignore: ["udp port 53 bytes 0-1,6-7"] }) });

  test("may differ, and no others", () => {
    const one = bench();
    one.p(udp(dns(0x1234, "data12more")));
    one.s(udp(dns(0x5678, "data34more")));
    expect(one.released).toEqual([0]);
    one.p(udp(dns(1, "data12more")));
    one.s(udp(dns(2, "datA12more")));
    expect(one.classes).toEqual(["payload"]);
    expect(one.divergences[0].detail).toStartWith("byte 5 of 12 differs");
    expect(one.divergences[0].primaryFrameOffset).toBe(14 + 28 + 5);
    for (const [rest, other] of [
      ["data12more", "data12morE"],
      ["data12more", "data12mor"],
    ]) {
      const two = bench();
      two.p(udp(dns(1, rest)));
      two.s(udp(dns(2, other)));
      expect(two.released).toEqual([]);
      expect(two.divergences).toHaveLength(1);
    }
  });

  test("ranges beyond the payload mean nothing", () => {
    const one = bench();
    one.p(udp("a"));
    one.s(udp("b"));
    one.p(udp(""));
    one.s(udp(""));
    expect(one.released).toHaveLength(2);
    expect(one.comparer.stats.comparedBytes).toBe(0);
  });

  test("in each datagram of an offloaded frame", () => {
    const frame = (mark: number) => {
      const payload = new Uint8Array(30);
      for (const start of [0, 10, 20]) payload[start] = mark;
      return payload;
    };
    const gso = { type: 5, size: 10 };
    const one = bench();
    one.p(udp(frame(1)), { gso });
    one.s(udp(frame(2)), { gso });
    expect(one.released).toHaveLength(1);
    const two = bench();
    two.p(udp(frame(1)), { gso: { type: 5, size: 15 } });
    two.s(udp(frame(2)), { gso: { type: 5, size: 15 } });
    expect(two.classes).toEqual(["payload"]);
    expect(two.divergences[0].detail).toStartWith("byte 10 of 30");
  });

  test("also where IP has bytes behind the datagram", () => {
    const longer = (id: number, tail: string) => {
      const datagram = udpDatagram(dns(id, "data"), { checksum: id });
      return ip(17, Uint8Array.from([...datagram, ...text(tail)]));
    };
    const one = bench();
    one.p(longer(1, "ab"));
    one.s(longer(2, "ab"));
    expect(one.released).toHaveLength(1);
    one.p(longer(1, "abc"));
    one.s(longer(2, "abC"));
    expect(one.classes).toEqual(["payload"]);
  });

  test("other flows are compared in full", () => {
    const one = bench();
    one.p(udp(dns(1, "data"), { sourcePort: 54 }));
    one.s(udp(dns(2, "data"), { sourcePort: 54 }));
    expect(one.classes).toEqual(["payload"]);
  });
});
