/** Writes short sequences by hand. */
import {
  FIN,
  ip,
  RST,
  SYN,
  type TcpOptions,
  tcp,
  text,
  type UdpOptions,
  udp,
  udpDatagram,
} from "../compare/frames.ts";
import { type Content, FIN_VALUE, type Side, type Step, SYN_VALUE } from "./sequence.ts";

interface SegmentOptions extends TcpOptions {
  payload?: string;
  /** Which of the connections that use these ports one after the other. */
  connection?: number;
  /** Sequence number of its SYN. */
  isn?: number;
}

const ISN = 1000;
let scripts = 0;

/**
 * One flow, with addresses that no other script uses. Segments say where in the stream they are: place 0
 * is the SYN, so the first byte is at 1. The client's SYN is its place 0 too, and `ack` says how many of
 * its places are acknowledged.
 */
export class Script {
  readonly steps: Step[] = [];
  private readonly network: { source4: string; source6: string; destinationPort: number };
  private slots = 0;
  private identification = 1;

  constructor() {
    const number = ++scripts;
    this.network = {
      source4: `198.19.${number >> 8}.${number & 0xff}`,
      source6: `2001:2::${number.toString(16)}`,
      destinationPort: 40_000,
    };
  }

  /** A TCP segment at `place`; returns the slot of a primary one. */
  segment(side: Side, place: number, options: SegmentOptions = {}): number {
    const { connection = 0, isn = ISN, flags = 0, payload = "", ack } = options;
    const values: number[] = [...text(payload)];
    if ((flags & SYN) !== 0) values.unshift(SYN_VALUE);
    if ((flags & FIN) !== 0) values.push(FIN_VALUE);
    const frame = tcp({
      ...this.network,
      identification: this.identification++,
      ...options,
      payload,
      seq: (isn + place) >>> 0,
    });
    const content: Content = {
      kind: "tcp",
      flow: 0,
      connection,
      from: place,
      to: place + values.length,
      values,
      received: ack,
      reset: (flags & RST) !== 0,
    };
    if ((flags & SYN) !== 0) content.options = Buffer.from(options.options ?? "").toString("hex");
    return this.push(side, frame, content);
  }

  p(place: number, options: SegmentOptions = {}): number {
    return this.segment("primary", place, { ack: 1, ...options });
  }

  s(place: number, options: SegmentOptions = {}): void {
    this.segment("secondary", place, { ack: 1, ...options });
  }

  /** The same segment of both. */
  both(place: number, options: SegmentOptions = {}): number {
    const slot = this.p(place, options);
    this.s(place, options);
    return slot;
  }

  udp(side: Side, payload: string, options: UdpOptions = {}): number {
    const frame = udp(payload, { ...this.network, identification: this.identification++, ...options });
    return this.push(side, frame, { kind: "datagram", flow: 0, payload });
  }

  /** Another IP protocol. */
  ip(side: Side, protocol: number, payload: string, options: UdpOptions = {}): number {
    const frame = ip(protocol, text(payload), { ...this.network, ...options });
    return this.push(side, frame, { kind: "datagram", flow: 0, payload });
  }

  /** A UDP datagram in two fragments, cut before byte `cut` (its header has 8), a multiple of 8. */
  fragments(side: Side, payload: string, cut: number): number {
    const bytes = udpDatagram(payload, this.network);
    const datagram = this.identification++;
    const network = { ...this.network, identification: datagram };
    const first = ip(17, bytes.subarray(0, cut), { ...network, moreFragments: true });
    const second = ip(17, bytes.subarray(cut), { ...network, fragmentOffset: cut / 8 });
    const of = bytes.length;
    const common = { kind: "datagram" as const, flow: 0, payload };
    const slot = this.push(side, first, { ...common, fragment: { datagram, from: 0, to: cut, of } });
    this.push(side, second, { ...common, fragment: { datagram, from: cut, to: of, of } });
    return slot;
  }

  checkpoint(): void {
    this.steps.push({ side: "checkpoint" });
  }

  private push(side: Side, frame: Uint8Array, content: Content): number {
    this.steps.push({ side, frame, content });
    return side === "primary" ? this.slots++ : -1;
  }
}
