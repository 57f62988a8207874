import { afterAll, describe, expect, test } from "bun:test";
import { CLIENT, ethernet, GUEST, icmp, ip, type UdpOptions, udp, udpDatagram } from "../compare/frames.ts";
import { CaptureFolder } from "./capture_files.ts";
import { comparer } from "./comparison.ts";
import { Conversation, type ConversationOptions, flipped, pattern } from "./conversation.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());
const compare = comparer(folder);

const answer = (n: number, options: UdpOptions = {}) => udp(pattern(60 + n, n), options);

describe("datagrams", () => {
  test("of different flows may come in another order, those of one flow may not", () => {
    const frames = [0, 1, 2].flatMap((n) =>
      [5_000, 5_001].map((destinationPort) => answer(n, { destinationPort })),
    );
    const otherOrder = [frames[1]!, frames[3]!, frames[0]!, frames[5]!, frames[2]!, frames[4]!];
    expect(compare(frames, otherOrder)).toMatchObject({
      same: true,
      primary: { flows: 2, frames_compared: 6 },
    });
    const swapped = [frames[2]!, frames[1]!, frames[0]!, ...frames.slice(3)];
    const report = compare(frames, swapped);
    expect(report.divergences_total).toBe(1);
    expect(report.divergences[0]).toMatchObject({
      class: "length",
      flow: "udp 198.18.0.2:53 > 198.18.0.9:5000",
      stream_offset: null,
      primary: { frame: 1, sequence: null },
      secondary: { frame: 1 },
      frames_not_compared: { primary: 3, secondary: 3 },
    });
  });

  test("one flipped byte, in the payload and in a header that is compared", () => {
    const frames = [answer(1), answer(2), answer(3)];
    const report = compare(frames, [frames[0]!, udp(flipped(pattern(62, 2), 40)), frames[2]!]);
    expect(report.divergences).toMatchObject([
      {
        class: "payload",
        primary: { frame: 2, payload_offset: 40, byte: pattern(62, 2)[40]! },
        secondary: { frame: 2, payload_offset: 40, byte: pattern(62, 2)[40]! ^ 0x20 },
        context: { before: 16 },
      },
    ]);
    const { context } = report.divergences[0]!;
    expect(context?.primary).toBe(Buffer.from(pattern(62, 2).subarray(24, 56)).toString("hex"));
    expect(context?.secondary).toBe(
      Buffer.from(flipped(pattern(62, 2), 40).subarray(24, 56)).toString("hex"),
    );
  });

  test("checksum, TTL and identification may differ", () => {
    const other = udp(pattern(61, 1), { checksum: 0x1234, ttl: 9, identification: 77, tos: 4 });
    expect(compare([answer(1)], [other]).same).toBe(true);
  });

  test("one side has more of them", () => {
    const frames = [answer(1), answer(2), answer(3)];
    expect(compare(frames, frames.slice(0, 2)).divergences).toMatchObject([
      { class: "missing_on_secondary", primary: { frame: 3 }, secondary: null },
    ]);
    expect(compare(frames.slice(0, 1), frames).divergences).toMatchObject([
      {
        class: "missing_on_primary",
        primary: null,
        secondary: { frame: 2 },
        detail: "2 frames of the secondary without a counterpart",
      },
    ]);
  });

  test("ICMP, and protocols without ports", () => {
    const frames = [icmp("ping"), icmp("ping", { sequence: 2 }), ip(47, pattern(50, 5))];
    expect(compare(frames, frames)).toMatchObject({ same: true, primary: { flows: 2 } });
    const other = [icmp("ping"), icmp("pong", { sequence: 2 }), ip(47, flipped(pattern(50, 5), 49))];
    const [echo, gre] = compare(frames, other).divergences;
    expect(echo).toMatchObject({ class: "payload", flow: "icmp type 0 code 0 id 7 198.18.0.2 > 198.18.0.9" });
    expect(gre).toMatchObject({ class: "payload", flow: "ip protocol 47 198.18.0.2 > 198.18.0.9" });
    expect(gre?.primary?.payload_offset).toBe(49);
  });

  describe("in fragments", () => {
    const datagram = udpDatagram(pattern(200, 6));
    const cutAt = (
      bytes: Uint8Array,
      ends: number[],
      identification: number,
      version: 4 | 6,
      protocol = 17,
    ) =>
      ends.map((end, i) => {
        const from = ends[i - 1] ?? 0;
        const moreFragments = i + 1 < ends.length;
        const place = { fragmentOffset: from / 8, moreFragments, identification, version };
        return ip(protocol, bytes.subarray(from, end), place);
      });
    const FLOW = /^udp \S+:53 > \S+:40000$/;

    test.each([4, 6] as const)(
      "IPv%d: wherever they are cut, and whatever their identification",
      (version) => {
        const two = cutAt(datagram, [96, 208], 5, version);
        const three = cutAt(datagram, [64, 120, 208], 99, version);
        const whole = udp(pattern(200, 6), { version });
        const secondaries: [Uint8Array[], number][] = [
          [three, 3],
          [[three[0]!, three[2]!, three[1]!], 3],
          [[whole], 1],
        ];
        for (const [secondary, frames] of secondaries) {
          expect(compare(two, secondary)).toMatchObject({
            same: true,
            compared_bytes: 200,
            primary: { flows: 1, frames_compared: 2 },
            secondary: { flows: 1, frames_compared: frames },
          });
        }
      },
    );

    test("a flipped byte is in the fragment that is named", () => {
      const two = cutAt(datagram, [96, 208], 5, 4);
      const changed = cutAt(flipped(datagram, 150), [64, 120, 208], 99, 4);
      const [divergence, ...others] = compare(two, changed).divergences;
      expect(others).toEqual([]);
      expect(divergence?.flow).toMatch(FLOW);
      expect(divergence).toMatchObject({
        class: "payload",
        primary: { frame: 2, payload_offset: 150 - 96, byte: datagram[150]! },
        secondary: { frame: 3, payload_offset: 150 - 120, byte: datagram[150]! ^ 0x20 },
        context: { before: 16 },
        frames_not_compared: { primary: 2, secondary: 3 },
      });
    });

    test("one that is missing keeps its datagram from being compared", () => {
      const two = cutAt(datagram, [96, 208], 5, 4);
      const report = compare(two, two.slice(0, 1));
      expect(report.divergences.map((d) => [d.class, d.flow])).toEqual([
        ["missing_on_secondary", "udp 198.18.0.2:53 > 198.18.0.9:40000"],
        ["missing_on_primary", "udp fragments 198.18.0.2 > 198.18.0.9"],
      ]);
    });

    test("those of a flow that differs already are counted", () => {
      const next = cutAt(udpDatagram(pattern(300, 7)), [96, 308], 6, 4);
      const primary = [...cutAt(datagram, [96, 208], 5, 4), ...next, ...next];
      const secondary = [...cutAt(flipped(datagram, 20), [96, 208], 5, 4), ...next];
      const report = compare(primary, secondary);
      expect(report.divergences).toMatchObject([
        { class: "payload", frames_not_compared: { primary: 2 + 4, secondary: 2 } },
      ]);
      expect(report.primary.frames_not_compared).toBe(6);
      expect(report.secondary.frames_not_compared).toBe(4);
    });

    test("a TCP segment in fragments has its connection's numbers", () => {
      const answer = pattern(1_000, 9);
      const talk = (options: ConversationOptions, sent: Uint8Array, ends: number[]) => {
        const conversation = new Conversation(options).open().guest(sent, 1_000).close();
        const at = conversation.frames.findIndex((frame) => frame.length > 1_000);
        const segment = conversation.frames[at]!.subarray(34);
        conversation.frames.splice(at, 1, ...cutAt(segment, [...ends, segment.length], 77, 4, 6));
        return conversation.frames;
      };
      const numbers = { guestIsn: 3_000_000_000, clientIsn: 2_000_000_000 };
      const primary = talk({}, answer, [400, 800]);
      expect(compare(primary, talk(numbers, answer, [560]))).toMatchObject({
        same: true,
        compared_bytes: 1_000,
        primary: { flows: 2 },
      });
      const changed = talk(numbers, flipped(answer, 700), [560]);
      const report = compare(primary, changed);
      expect(report.divergences).toMatchObject([{ class: "payload", stream_offset: 700 }]);
    });
  });

  test("VLANs are networks of their own", () => {
    const inVlan = (vlans: number[]) => [udp("a", { vlans }), udp("b", { vlans })];
    expect(compare(inVlan([7]), inVlan([7])).same).toBe(true);
    const report = compare(inVlan([7]), inVlan([8]));
    expect(report.divergences.map((d) => [d.class, d.flow])).toEqual([
      ["missing_on_secondary", "udp 198.18.0.2:53 > 198.18.0.9:40000 vlan 7"],
      ["missing_on_primary", "udp 198.18.0.2:53 > 198.18.0.9:40000 vlan 8"],
    ]);
  });

  test("what is not IP is compared as a whole; ARP and neighbour discovery are not compared", () => {
    const arp = (n: number) => ethernet(0x0806, pattern(28, n));
    const solicitation = (n: number) => icmp(pattern(20, n), { version: 6, type: 135 });
    const lldp = ethernet(0x88cc, pattern(60, 1));
    const report = compare([arp(1), lldp, solicitation(1)], [lldp, arp(2), arp(3), solicitation(2)]);
    expect(report).toMatchObject({
      same: true,
      primary: { frames_ignored: 2, frames_compared: 1 },
      secondary: { frames_ignored: 3 },
    });
    const [divergence] = compare([lldp], [ethernet(0x88cc, flipped(pattern(60, 1), 10))]).divergences;
    expect(divergence).toMatchObject({ class: "payload", primary: { payload_offset: 24 } });
  });

  test("frames that make no sense are compared as a whole", () => {
    const cut = (frame: Uint8Array) => frame.subarray(0, 30);
    expect(compare([cut(answer(1))], [cut(answer(1))]).same).toBe(true);
    const report = compare([cut(answer(1))], [flipped(cut(answer(1)), 22)]);
    expect(report.divergences).toMatchObject([{ class: "unparsed", primary: { payload_offset: 22 } }]);
  });

  test("a large TCP packet whose IPv4 length is 0 has the length of its frame", () => {
    const whole = new Conversation().open().guest(pattern(9_000, 1), 9_000).frames;
    const offloaded = new Conversation({ guestIsn: 5 }).open();
    offloaded.fromGuest({ ack: offloaded.clientNext, payload: pattern(9_000, 1), claimedBytes: 0 });
    offloaded.guestNext += 9_000;
    offloaded.acknowledge("client");
    expect(compare(whole, offloaded.frames)).toMatchObject({ same: true, compared_bytes: 9_000 });
  });
});

describe("--guest", () => {
  const talk = (options: object, answer: Uint8Array, request: Uint8Array) =>
    new Conversation(options).open().client(request).guest(answer).close().frames;
  const request = pattern(400, 1);
  const reply = pattern(900, 2);
  const numbers = { guestIsn: 2_222_222_222, clientIsn: 3_333_333_333, segmentBytes: 77 };

  test("compares only what it sends, with the other direction's numbers for its acknowledgements", () => {
    const report = compare(talk({}, reply, request), talk(numbers, reply, flipped(request, 50)), {
      guests: [GUEST],
    });
    expect(report).toMatchObject({ same: true, compared_bytes: 900, primary: { flows: 1 } });
    // SYN, 2 for each of 4 segments of the request, 9 acknowledgements of the answer, FIN.
    expect(report.primary.frames_filtered).toBe(1 + 1 + 4 + 9 + 1);
    const other = compare(talk({}, reply, request), talk(numbers, flipped(reply, 899), request), {
      guests: [GUEST],
    });
    expect(other.divergences).toMatchObject([{ class: "payload", stream_offset: 899 }]);
  });

  test("several of them, of both IP versions", () => {
    const frames = [
      udp("four", {}),
      udp("from the client", { source4: CLIENT, destination4: GUEST }),
      udp("six", { version: 6, source6: "2001:2::2" }),
      udp("another six", { version: 6, source6: "2001:2::77" }),
      ethernet(0x88cc, pattern(60, 1)),
    ];
    const count = (...guests: string[]) => {
      const { primary } = compare(frames, frames, { guests });
      return [primary.frames_compared, primary.frames_filtered];
    };
    expect(count(GUEST)).toEqual([1, 4]);
    expect(count(GUEST, CLIENT)).toEqual([2, 3]);
    expect(count("2001:0002:0:0::2")).toEqual([1, 4]);
    expect(count("2001:2:0:0:0:0:0:77", GUEST)).toEqual([2, 3]);
    expect(count("2001:2::0.0.0.119")).toEqual([1, 4]);
    expect(count()).toEqual([5, 0]);
  });
});

describe("rules, as in the agent's configuration", () => {
  const frames = (seed: number) => [
    udp(pattern(48, seed), { sourcePort: 123 }),
    udp(new Uint8Array([seed, seed, 1, 2, 3])),
    ...new Conversation({ guestIsn: seed }).open().guest(pattern(500, 1)).close().frames,
  ];

  test("passthrough leaves flows out", () => {
    expect(compare(frames(1), frames(2)).divergences_total).toBe(2);
    const report = compare(frames(1), frames(2), { rules: { passthrough: ["udp port 53-123"] } });
    expect(report).toMatchObject({
      same: true,
      compared_bytes: 500,
      primary: { frames_ignored: 2 },
      secondary: { frames_ignored: 2 },
    });
    const withoutTcp = compare(frames(1), frames(1), { rules: { passthrough: ["tcp port 80"] } });
    expect(withoutTcp).toMatchObject({ same: true, compared_bytes: 48 + 5 });
  });

  test("ignore leaves bytes out", () => {
    const rules = { passthrough: ["udp port 123"], ignore: ["udp port 53 bytes 0-1"] };
    expect(compare(frames(1), frames(2), { rules })).toMatchObject({ same: true });
    const other = [frames(2)[0]!, udp(new Uint8Array([2, 2, 1, 9, 3])), ...frames(2).slice(2)];
    expect(compare(frames(1), other, { rules }).divergences).toMatchObject([
      { class: "payload", primary: { frame: 2, payload_offset: 3, byte: 2 }, secondary: { byte: 9 } },
    ]);
  });
});
