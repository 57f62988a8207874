import { describe, expect, test } from "bun:test";
import { concat, ethernet, icmp, ip, tcp, text, udp, udpDatagram } from "./frames.ts";
import { Bench } from "./harness.ts";

describe("datagrams", () => {
  test("are compared one by one in order; whichever side is early waits", () => {
    const bench = new Bench();
    const a = bench.p(udp("a"));
    const b = bench.p(udp("b"));
    expect(bench.released).toEqual([]);
    bench.s(udp("a"));
    expect(bench.released).toEqual([a]);
    bench.s(udp("b"));
    bench.s(udp("c"));
    expect(bench.released).toEqual([a, b]);
    bench.p(udp("c"));
    expect(bench.released).toHaveLength(3);
    expect(bench.divergences).toEqual([]);
  });

  test("checksum, identification, TTL and padding may differ", () => {
    const bench = new Bench();
    bench.p(udp("a", { checksum: 1, identification: 1, ttl: 1 }));
    bench.s(udp("a", { checksum: 2, identification: 2, ttl: 2, padding: 17 }));
    bench.p(icmp("ping", { checksum: 1 }));
    bench.s(icmp("ping", { checksum: 2 }));
    bench.p(icmp("ping", { checksum: 1, version: 6 }));
    bench.s(icmp("ping", { checksum: 2, version: 6 }));
    bench.p(ip(47, text("gre"), { identification: 1 }));
    bench.s(ip(47, text("gre"), { identification: 2 }));
    expect(bench.released).toHaveLength(4);
  });

  test("other bytes and another length are divergences, each said once", () => {
    const bench = new Bench();
    bench.p(udp("alpha"));
    bench.s(udp("alphb"));
    bench.p(udp("alpha", { sourcePort: 54 }));
    bench.s(udp("alph", { sourcePort: 54 }));
    bench.p(icmp("payload"));
    bench.s(icmp("paYload"));
    expect(bench.classes).toEqual(["payload", "length", "payload"]);
    expect(bench.divergences.map(({ flow }) => flow)).toEqual([
      "udp 198.18.0.2:53 > 198.18.0.9:40000",
      "udp 198.18.0.2:54 > 198.18.0.9:40000",
      "icmp type 0 code 0 id 7 198.18.0.2 > 198.18.0.9",
    ]);
    bench.p(udp("beta"));
    bench.s(udp("gamma"));
    bench.wait(1000);
    expect(bench.divergences).toHaveLength(3);
    expect(bench.released).toEqual([]);
    expect(bench.checkpoint()).toEqual({ released: 4, dropped: 0 });
    expect(bench.released).toEqual([0, 1, 2, 3]);
  });

  test("pings of different identifiers do not get in each other's way", () => {
    const bench = new Bench();
    const a = bench.p(icmp("one", { id: 1 }));
    const b = bench.p(icmp("two", { id: 2 }));
    bench.s(icmp("two", { id: 2 }));
    expect(bench.released).toEqual([b]);
    bench.s(icmp("one", { id: 1 }));
    expect(bench.released).toEqual([b, a]);
  });

  test("UDP segmentation offload: the size of a datagram counts", () => {
    const bench = new Bench();
    const frame = udp(new Uint8Array(2800));
    bench.p(frame, { gso: { type: 5, size: 1400 } });
    bench.s(frame, { gso: { type: 5, size: 1400 } });
    expect(bench.released).toHaveLength(1);
    bench.p(frame, { gso: { type: 5, size: 1400 } });
    bench.s(frame, { gso: { type: 5, size: 700 } });
    expect(bench.classes).toEqual(["length"]);

    // Also of a datagram with bytes behind it, of which more is compared.
    const other = new Bench();
    const longer = ip(17, concat(udpDatagram(new Uint8Array(2800)), text("tail")));
    other.p(longer, { gso: { type: 5, size: 1400 } });
    other.s(longer, { gso: { type: 5, size: 700 } });
    expect(other.classes).toEqual(["length"]);
  });
});

describe("frames that are not IP", () => {
  const lldp = (body: string, source = [2, 0, 0, 0, 0, 2]) => ethernet(0x88cc, text(body), { source });

  test("are compared whole, in order, for each pair of addresses", () => {
    const bench = new Bench();
    bench.p(lldp("a"));
    bench.s(lldp("b", [2, 0, 0, 0, 0, 3]));
    expect(bench.released).toEqual([]);
    bench.s(lldp("a"));
    expect(bench.released).toEqual([0]);
    bench.p(lldp("b"));
    bench.s(lldp("c"));
    expect(bench.classes).toEqual(["payload"]);
    expect(bench.divergences[0].flow).toBe("frame ethertype 0x88cc 02:00:00:00:00:02 > 02:00:00:00:00:09");
  });

  test("ARP and neighbour discovery pass at once", () => {
    const bench = new Bench();
    bench.p(ethernet(0x0806, new Uint8Array(28)));
    bench.p(icmp("", { version: 6, type: 135 }));
    bench.s(ethernet(0x0806, new Uint8Array(28)));
    expect(bench.released).toEqual([0, 1]);
    expect(bench.finished).toEqual([0]);
    expect(bench.comparer.stats.releasedBypass).toBe(2);
  });
});

describe("frames that cannot be parsed", () => {
  const cut = (body: string) => udp(body).slice(0, 40);

  test("are held, and compared whole among their like", () => {
    const bench = new Bench();
    const a = bench.p(cut("payload"));
    const b = bench.p(udp("ordinary"));
    bench.s(udp("ordinary"));
    expect(bench.released).toEqual([b]);
    bench.s(cut("payload"));
    expect(bench.released).toEqual([b, a]);
  });

  test("end in a checkpoint when they differ or miss their counterpart", () => {
    const bench = new Bench();
    bench.p(cut("a payload"));
    bench.s(concat(cut("a payload").slice(0, 39), text("X")));
    expect(bench.classes).toEqual(["unparsed"]);
    expect(bench.divergences[0].flow).toStartWith("unparsed ethertype 0x0800");
    bench.p(tcp({ flags: 0, payload: "no flags at all", version: 6 }));
    bench.wait(300);
    expect(bench.classes).toEqual(["unparsed", "missing_on_secondary"]);
    bench.checkpoint();
    expect(bench.released).toEqual([0, 1]);
  });
});
