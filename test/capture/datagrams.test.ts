import { afterAll, describe, expect, test } from "bun:test";
import { CLIENT, ethernet, GUEST, icmp, ip, type UdpOptions, udp, udpDatagram } from "../compare/frames.ts";
import { CaptureFolder } from "./capture_files.ts";
import { comparer } from "./comparison.ts";
import { Conversation, flipped, pattern } from "./conversation.ts";

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

  test("fragments, whose identification may differ", () => {
    const datagram = udpDatagram(pattern(200, 6));
    const fragments = (identification: number, bytes: Uint8Array, version: 4 | 6) => [
      ip(17, bytes.subarray(0, 96), { fragmentOffset: 0, moreFragments: true, identification, version }),
      ip(17, bytes.subarray(96), { fragmentOffset: 12, identification, version }),
    ];
    for (const version of [4, 6] as const) {
      expect(compare(fragments(5, datagram, version), fragments(99, datagram, version))).toMatchObject({
        same: true,
        primary: { flows: 1, frames_compared: 2 },
      });
      const changed = fragments(5, flipped(datagram, 150), version);
      const [divergence] = compare(fragments(5, datagram, version), changed).divergences;
      expect(divergence).toMatchObject({ class: "payload", primary: { frame: 2, payload_offset: 150 - 96 } });
      expect(divergence?.flow).toStartWith("udp fragments ");
    }
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
