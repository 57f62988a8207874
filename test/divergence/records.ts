/** Divergences as the agent would note them, from frames built byte by byte. */
import { keepFrame } from "../../src/divergence/kept_frame.ts";
import type { DivergenceRecord, FlowDescription, NewDivergence } from "../../src/divergence/record.ts";
import { concat, ethernet, FIN, icmp, tcp, text, udp } from "../compare/frames.ts";

/** 2026-01-02T03:04:05.678Z */
export const TIME_MS = 1_767_323_045_678;

/** Every frame before this offset is header: Ethernet, IPv4, TCP without options. */
export const TCP_PAYLOAD_AT = 14 + 20 + 20;
export const UDP_PAYLOAD_AT = 14 + 20 + 8;

const WEB_FLOW = "tcp 198.18.0.2:443 > 198.18.0.9:40000";

export function divergence(options: Partial<NewDivergence> = {}): NewDivergence {
  return {
    vm: "db1",
    timeMs: TIME_MS,
    epoch: 17,
    flow: parseFlow(WEB_FLOW),
    class: "payload",
    waitedMs: 12.34,
    action: "a checkpoint was requested",
    detail: "sequence 2000 differs: 0x61 on the primary, 0x62 on the secondary",
    ...options,
  };
}

/** As the store would give it back. */
export function record(options: Partial<DivergenceRecord> = {}): DivergenceRecord {
  const { id = 12, repeats = 0, crowdedOut = 0, redacted: _redacted, ...rest } = options;
  return { ...divergence(rest), id, repeats, crowdedOut };
}

/** Bytes that look random and are the same every time. */
export function noise(length: number, seed: number): Uint8Array {
  const bytes = new Uint8Array(length);
  let state = seed >>> 0;
  for (let i = 0; i < length; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    bytes[i] = state >>> 24;
  }
  return bytes;
}

const TLS_SERVER_HELLO = [0x16, 0x03, 0x03, 0x00, 0x7a, 0x02, 0x00, 0x00, 0x76, 0x03, 0x03];

/** Two ServerHellos that agree up to their random bytes. */
export function tlsHandshake(): DivergenceRecord {
  const frame = (seed: number) =>
    tcp({
      sourcePort: 443,
      seq: 2001,
      ack: 1,
      payload: concat(Uint8Array.from(TLS_SERVER_HELLO), noise(116, seed)),
    });
  const at = TCP_PAYLOAD_AT + TLS_SERVER_HELLO.length;
  return record({
    streamOffset: TLS_SERVER_HELLO.length,
    difference: { primaryFrameOffset: at, secondaryFrameOffset: at },
    primaryFrame: frame(1),
    secondaryFrame: frame(2),
    action: "checkpoint 18",
    checkpoint: { epoch: 18, pauseMs: 16.21, totalMs: 24.84 },
    repeats: 3,
  });
}

/** A datagram of each VM to a name server, with other query numbers. */
export function dnsQuery(): DivergenceRecord {
  const frame = (id: number[]) =>
    udp(
      concat(
        Uint8Array.from([...id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]),
        text("\u0007example\u0000\u0000\u0001\u0000\u0001"),
      ),
      {
        sourcePort: 40000,
        destinationPort: 53,
      },
    );
  return record({
    flow: parseFlow("udp 198.18.0.2:40000 > 198.18.0.9:53"),
    difference: { primaryFrameOffset: UDP_PAYLOAD_AT, secondaryFrameOffset: UDP_PAYLOAD_AT },
    primaryFrame: frame([0xbe, 0xef]),
    secondaryFrame: frame([0x12, 0xef]),
    detail: "byte 8 of 33 differs: 0xbe on the primary, 0x12 on the secondary",
  });
}

function httpDate(): DivergenceRecord {
  const frame = (second: string) =>
    tcp({
      sourcePort: 80,
      seq: 5000,
      ack: 1,
      payload: `HTTP/1.1 200 OK\r\nDate: Fri, 02 Jan 2026 03:04:${second} GMT\r\nServer: x\r\n\r\n`,
    });
  const at = TCP_PAYLOAD_AT + "HTTP/1.1 200 OK\r\nDate: Fri, 02 Jan 2026 03:04:0".length;
  return record({
    flow: parseFlow("tcp 198.18.0.2:80 > 198.18.0.9:40000"),
    streamOffset: at - TCP_PAYLOAD_AT,
    difference: { primaryFrameOffset: at, secondaryFrameOffset: at },
    primaryFrame: frame("04"),
    secondaryFrame: frame("05"),
    detail: "sequence 5047 differs: 0x34 on the primary, 0x35 on the secondary",
  });
}

/** 65 000 bytes, as a NIC with segmentation offload gets them; the difference is far back. */
export function largeSegment(): DivergenceRecord {
  const payload = (changed: number) => {
    const bytes = noise(60_000, 9);
    bytes[50_000] = changed;
    return bytes;
  };
  const at = TCP_PAYLOAD_AT + 50_000;
  const primary = keepFrame(tcp({ sourcePort: 9000, seq: 1, ack: 1, payload: payload(1) }), at);
  const secondary = keepFrame(tcp({ sourcePort: 9000, seq: 1, ack: 1, payload: payload(2) }), at);
  return record({
    flow: parseFlow("tcp 198.18.0.2:9000 > 198.18.0.9:40000"),
    streamOffset: 50_000,
    difference: { primaryFrameOffset: at, secondaryFrameOffset: at },
    primaryFrame: primary.bytes,
    primaryCut: primary.cut!,
    secondaryFrame: secondary.bytes,
    secondaryCut: secondary.cut!,
    detail: "sequence 50001 differs: 0x01 on the primary, 0x02 on the secondary",
  });
}

/** One record of each class, as the golden texts show them. */
export const EXAMPLES: Record<string, () => DivergenceRecord> = {
  payload_tls: tlsHandshake,
  payload_dns: dnsQuery,
  payload_http_date: httpDate,
  payload_large_segment: largeSegment,
  length: () => {
    const frame = (answer: string) => udp(answer, { sourcePort: 7777, destinationPort: 40000 });
    return record({
      class: "length",
      flow: parseFlow("udp 198.18.0.2:7777 > 198.18.0.9:40000"),
      primaryFrame: frame("load 0.9 up 12 days"),
      secondaryFrame: frame("load 1.01 up 12 days"),
      detail: "the primary sent 27 bytes, the secondary 28",
    });
  },
  missing_on_secondary: () =>
    record({
      class: "missing_on_secondary",
      flow: parseFlow("tcp [2001:2::2]:50312 > [2001:2::9]:5432"),
      primaryFrame: tcp({
        version: 6,
        sourcePort: 50312,
        destinationPort: 5432,
        seq: 7,
        ack: 9,
        payload: "select 1;",
      }),
      waitedMs: 251.4,
      action: "checkpoint 18",
      checkpoint: { epoch: 18, pauseMs: 151.6, totalMs: 1203.2 },
      detail: "a frame of the primary has had no counterpart for 251 ms",
    }),
  missing_on_primary: () =>
    record({
      class: "missing_on_primary",
      flow: parseFlow("icmp type 0 code 0 id 7 198.18.0.2 > 198.18.0.9"),
      secondaryFrame: icmp("abcdefghijklmnopqrstuvwabcdefghi"),
      waitedMs: 250,
      detail: "a frame of the secondary has had no counterpart for 250 ms",
    }),
  flags: () =>
    record({
      class: "flags",
      flow: parseFlow("tcp 198.18.0.2:22 > 198.18.0.9:40000"),
      streamOffset: 0,
      primaryFrame: tcp({ sourcePort: 22, seq: 100, ack: 1, flags: FIN }),
      secondaryFrame: tcp({ sourcePort: 22, seq: 100, ack: 1, payload: "SSH-2.0-x" }),
      detail: "FIN on the primary at sequence 100, where the secondary has data",
      action: "released: the VM runs alone",
    }),
  unparsed: () => {
    const frame = (last: number) => ethernet(0x88cc, Uint8Array.from([2, 7, 4, 2, 0, 0, 0, 0, last]));
    return record({
      class: "unparsed",
      flow: parseFlow("unparsed ethertype 0x88cc 02:00:00:00:00:02 > 02:00:00:00:00:09"),
      difference: { primaryFrameOffset: 22, secondaryFrameOffset: 22 },
      primaryFrame: frame(2),
      secondaryFrame: frame(3),
      detail: "byte 22 of 23 differs: 0x02 on the primary, 0x03 on the secondary",
    });
  },
  overflow: () =>
    record({
      class: "overflow",
      flow: parseFlow("all flows"),
      waitedMs: 0,
      detail: "more than 16384 flows have frames that wait",
      crowdedOut: 4,
    }),
  boundary: () =>
    record({
      class: "boundary",
      flow: parseFlow("all flows"),
      waitedMs: 0,
      detail: "2 frames newer than the checkpoint had been compared",
      crowdedOut: 1,
    }),
};

/**
 * Takes apart what the comparer calls a flow, to write tests with it; recorder.test.ts holds it against the
 * comparer.
 */
export function parseFlow(text: string): FlowDescription {
  const match = /^(.+?) (\S+) > (\S+?)(?: vlan [\d.]+)?$/.exec(text);
  if (match === null) return { text, protocol: "any", source: "", destination: "" };
  const source = parseEndpoint(match[2]!);
  const destination = parseEndpoint(match[3]!);
  const flow: FlowDescription = {
    text,
    protocol: protocolOf(match[1]!),
    source: source.address,
    destination: destination.address,
  };
  if (source.port !== undefined) flow.sourcePort = source.port;
  if (destination.port !== undefined) flow.destinationPort = destination.port;
  return flow;
}

/** "tcp", "tcp fragments", "icmp type 8 code 0 id 7", "ip protocol 47", "frame ethertype 0x88cc". */
function protocolOf(name: string): string {
  const etherType = /\bethertype 0x[0-9a-f]+/.exec(name);
  if (etherType !== null) return etherType[0];
  return /^ip protocol (\d+)/.exec(name)?.[1] ?? name.split(" ", 1)[0]!;
}

function parseEndpoint(text: string): { address: string; port?: number } {
  const match = /^\[(.+)\]:(\d+)$/.exec(text) ?? /^(\d+\.\d+\.\d+\.\d+):(\d+)$/.exec(text);
  return match === null ? { address: text } : { address: match[1]!, port: Number(match[2]) };
}
