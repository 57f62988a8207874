/** Divergences as the agent would note them, from frames built byte by byte. */
import { parseFlow } from "../../src/divergence/flow.ts";
import type { DivergenceRecord, NewDivergence } from "../../src/divergence/record.ts";
import { concat, tcp, text, udp } from "../compare/frames.ts";

/** 2026-01-02T03:04:05.678Z */
export const TIME_MS = 1_767_323_045_678;

/** Every frame before this offset is header: Ethernet, IPv4, TCP without options. */
export const TCP_PAYLOAD_AT = 14 + 20 + 20;
export const UDP_PAYLOAD_AT = 14 + 20 + 8;

export const WEB_FLOW = "tcp 198.18.0.2:443 > 198.18.0.9:40000";

export function divergence(options: Partial<NewDivergence> = {}): NewDivergence {
  return {
    vm: "db1",
    timeMs: TIME_MS,
    epoch: 17,
    flow: parseFlow(WEB_FLOW),
    class: "payload",
    waitedMs: 12.34,
    action: "a checkpoint was asked for",
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
    udp(concat(Uint8Array.from([...id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]), text("\u0007example\u0000\u0000\u0001\u0000\u0001")), {
      sourcePort: 40000,
      destinationPort: 53,
    });
  return record({
    flow: parseFlow("udp 198.18.0.2:40000 > 198.18.0.9:53"),
    difference: { primaryFrameOffset: UDP_PAYLOAD_AT, secondaryFrameOffset: UDP_PAYLOAD_AT },
    primaryFrame: frame([0xbe, 0xef]),
    secondaryFrame: frame([0x12, 0xef]),
    detail: "byte 8 of 33 differs: 0xbe on the primary, 0x12 on the secondary",
  });
}

export function httpDate(): DivergenceRecord {
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
