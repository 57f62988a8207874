import { describe, expect, test } from "bun:test";
import type { Divergence } from "../../src/compare/comparer.ts";
import {
  CLIENT,
  CLIENT6,
  ethernet,
  FIN,
  GUEST,
  GUEST6,
  icmp,
  ip,
  SYN,
  synOptions,
  tcp,
  text,
  udp,
} from "./frames.ts";
import { Bench } from "./harness.ts";

/** The one divergence, which must point to these very frames. */
function only(bench: Bench, primary?: Uint8Array, secondary?: Uint8Array): Divergence {
  expect(bench.divergences).toHaveLength(1);
  const evidence = {
    ...(primary === undefined ? {} : { primary }),
    ...(secondary === undefined ? {} : { secondary }),
  };
  expect(bench.evidence).toEqual([evidence]);
  return bench.divergences[0];
}

/** The bytes at which a divergence points in its two frames. */
function bytesOf(bench: Bench): [number | undefined, number | undefined] {
  const { primaryFrameOffset, secondaryFrameOffset } = bench.divergences[0];
  const { primary, secondary } = bench.evidence[0];
  return [primary?.[primaryFrameOffset as number], secondary?.[secondaryFrameOffset as number]];
}

describe("a divergence points to both frames and the first difference", () => {
  test("UDP payload, behind a VLAN tag on both sides", () => {
    const bench = new Bench();
    const primary = udp("alpha", { vlans: [7] });
    const secondary = udp("alpHa", { vlans: [7], padding: 9 });
    bench.p(udp("before"));
    bench.p(primary);
    bench.s(secondary);
    const divergence = only(bench, primary, secondary);
    expect(divergence.class).toBe("payload");
    expect(divergence.primaryFrameOffset).toBe(14 + 4 + 20 + 8 + 3);
    expect(bytesOf(bench)).toEqual([0x68, 0x48]);
  });

  test("TCP payload in segments that were cut differently", () => {
    const bench = new Bench();
    const first = tcp({ seq: 1, ack: 5, payload: "0123456789" });
    bench.p(first);
    bench.s(tcp({ seq: 1, ack: 5, payload: "0123" }));
    const secondary = tcp({ seq: 5, ack: 5, payload: "45x" });
    bench.s(secondary);
    const divergence = only(bench, first, secondary);
    expect(divergence.primaryFrameOffset).toBe(14 + 20 + 20 + 6);
    expect(divergence.secondaryFrameOffset).toBe(14 + 20 + 20 + 2);
    expect(bytesOf(bench)).toEqual([0x36, 0x78]);
  });

  test("length: where the shorter one ends, or where they differ before", () => {
    const bench = new Bench();
    const primary = udp("alpha");
    const secondary = udp("alp");
    bench.p(primary);
    bench.s(secondary);
    const divergence = only(bench, primary, secondary);
    expect(divergence.class).toBe("length");
    expect(divergence.primaryFrameOffset).toBe(14 + 20 + 8 + 3);
    expect(divergence.secondaryFrameOffset).toBe(secondary.length);

    const other = new Bench();
    other.p(udp("alpha"));
    other.s(udp("aXp"));
    expect(other.classes).toEqual(["length"]);
    expect(bytesOf(other)).toEqual([0x6c, 0x58]);
  });

  test("length: the size of the datagrams of one offloaded frame has no place in it", () => {
    const bench = new Bench();
    const frame = udp(new Uint8Array(2800));
    bench.p(frame, { gso: { type: 5, size: 1400 } });
    bench.s(frame, { gso: { type: 5, size: 700 } });
    const divergence = only(bench, frame, frame);
    expect(divergence.primaryFrameOffset).toBeUndefined();
  });

  test("flags: FIN against data, and other options of the SYN", () => {
    const bench = new Bench();
    const fin = tcp({ seq: 1, ack: 5, payload: "ab", flags: FIN });
    const more = tcp({ seq: 1, ack: 5, payload: "abc" });
    bench.p(fin);
    bench.s(more);
    const divergence = only(bench, fin, more);
    expect(divergence.class).toBe("flags");
    expect(divergence.primaryFrameOffset).toBe(fin.length);
    expect(bytesOf(bench)).toEqual([undefined, 0x63]);

    const opening = new Bench();
    const primary = tcp({ seq: 1, ack: 5, flags: SYN, options: synOptions(1460, 7) });
    const secondary = tcp({ seq: 9, ack: 5, flags: SYN, options: synOptions(1400, 7) });
    opening.p(primary);
    opening.s(secondary);
    expect(only(opening, primary, secondary).class).toBe("flags");
  });

  test("frames that cannot be parsed", () => {
    const bench = new Bench();
    const primary = udp("payload").slice(0, 40);
    const secondary = primary.with(33, 0xee);
    bench.p(primary);
    bench.s(secondary);
    const divergence = only(bench, primary, secondary);
    expect(divergence.class).toBe("unparsed");
    expect([divergence.primaryFrameOffset, divergence.secondaryFrameOffset]).toEqual([33, 33]);
  });

  test("missing: the frame that waits, on either side", () => {
    const bench = new Bench();
    const frame = udp("waits");
    bench.p(frame);
    bench.wait(300);
    expect(only(bench, frame).class).toBe("missing_on_secondary");

    const other = new Bench();
    const early = tcp({ seq: 1, ack: 5, payload: "x" });
    other.s(early);
    other.wait(300);
    expect(only(other, undefined, early).class).toBe("missing_on_primary");
  });

  test("a limit that was passed points to nothing", () => {
    const bench = new Bench({ limits: { flowsMax: 1 } });
    bench.p(udp("a", { sourcePort: 1 }));
    bench.p(udp("a", { sourcePort: 2 }));
    const divergence = only(bench);
    expect(divergence).toMatchObject({ flow: "all flows", protocol: "any", source: "", destination: "" });
  });
});

describe("the parts of a flow", () => {
  const facts = (frame: Uint8Array) => {
    const bench = new Bench();
    bench.p(frame);
    bench.wait(300);
    const { flow, protocol, source, destination, sourcePort, destinationPort } = bench.divergences[0];
    return [flow, protocol, source, sourcePort, destination, destinationPort];
  };

  test("with ports, over IPv4 and IPv6", () => {
    expect(facts(tcp({ seq: 1, payload: "x", ack: 1 }))).toEqual([
      `tcp ${GUEST}:80 > ${CLIENT}:40000`,
      "tcp",
      GUEST,
      80,
      CLIENT,
      40000,
    ]);
    expect(facts(udp("x", { version: 6, sourcePort: 65535, destinationPort: 0 }))).toEqual([
      `udp [${GUEST6}]:65535 > [${CLIENT6}]:0`,
      "udp",
      GUEST6,
      65535,
      CLIENT6,
      0,
    ]);
  });

  test("without ports", () => {
    const flow = `icmp type 0 code 0 id 7 ${GUEST} > ${CLIENT} vlan 9`;
    expect(facts(icmp("x", { vlans: [9] }))).toEqual([flow, "icmp", GUEST, undefined, CLIENT, undefined]);
    expect(facts(ip(47, text("gre"))).slice(0, 2)).toEqual([`ip protocol 47 ${GUEST} > ${CLIENT}`, "47"]);
    expect(facts(ethernet(0x88cc, text("lldp"))).slice(1, 5)).toEqual([
      "ethertype 0x88cc",
      "02:00:00:00:00:02",
      undefined,
      "02:00:00:00:00:09",
    ]);
  });
});
