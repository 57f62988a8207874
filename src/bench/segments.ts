/**
 * What a benchmark sends: TCP segments of many connections in turn, as a virtio guest with offloads hands
 * them over (virtio_net_hdr with a partial checksum, and TCP segmentation above one MTU), with the timestamp
 * option that Linux puts into every segment. As from Linux, the IPv4 identification counts a connection's
 * segments, and every segment below one MTU is a write of its own and says so (PSH), while full ones are
 * parts of a long one.
 */
import { VNET, VNET_BYTES } from "../ffi/layout.ts";
import { fold } from "../packet/checksum.ts";
import { ETHERNET_HEADER_BYTES, PROTOCOL_TCP, TCP_ACK } from "../packet/protocol_numbers.ts";

const IPV4_BYTES = 20;
const TCP_BYTES = 32;
export const HEADER_BYTES = ETHERNET_HEADER_BYTES + IPV4_BYTES + TCP_BYTES;
/** Payload of a full frame at an MTU of 1500. */
export const SEGMENT_BYTES = 1448;
/** Payload of the largest frame that Linux hands over unsegmented: whole segments, below 64 KiB. */
export const LARGE_PAYLOAD_BYTES = 45 * SEGMENT_BYTES;

const IP = VNET_BYTES + ETHERNET_HEADER_BYTES;
const TCP = IP + IPV4_BYTES;
const PAYLOAD = TCP + TCP_BYTES;
/** Of a segment's TCP timestamp value, which no comparer looks at: room for a number of one's own. */
export const NUMBER_OFFSET = TCP + 24;
const FLAGS = TCP + 13;
const PSH = 0x08;
const FIRST_PORT = 1024;
const FIRST_SEQUENCE = 1;
/** Repeats every four bytes, so that a stream cut at any multiple of four looks the same. */
const PATTERN = [0x10, 0x32, 0x54, 0x76];

export interface TrafficOptions {
  /** Of a segment, a multiple of 8 up to LARGE_PAYLOAD_BYTES. */
  payloadBytes: number;
  /** Connections, which take turns. */
  flows: number;
  /** Segments of each connection. */
  rounds: number;
  /**
   * The same streams cut elsewhere: the first segment of each connection is a half one, and so is the last.
   */
  shifted?: boolean;
}

export class Traffic {
  /** Segments altogether. */
  readonly count: number;
  /** Of the longest segment, virtio_net_hdr included. */
  readonly bytesMax: number;
  readonly #template: Uint8Array;
  /** Of the IPv4 header without length, identification and checksum; of the pseudo header without length. */
  readonly #ipSum: number;
  readonly #pseudoSum: number;
  readonly #payloadBytes: number;
  readonly #flows: number;
  readonly #shifted: boolean;
  readonly #rounds: number;

  constructor({ payloadBytes, flows, rounds, shifted = false }: TrafficOptions) {
    if (payloadBytes % 8 !== 0 || payloadBytes < 8 || payloadBytes > LARGE_PAYLOAD_BYTES) {
      throw new RangeError(
        `A payload has 8 to ${LARGE_PAYLOAD_BYTES} bytes in steps of 8, not ${payloadBytes}.`,
      );
    }
    this.#payloadBytes = payloadBytes;
    this.#flows = flows;
    this.#rounds = shifted ? rounds + 1 : rounds;
    this.#shifted = shifted;
    this.count = this.#rounds * flows;
    this.bytesMax = PAYLOAD + payloadBytes;
    this.#template = template(payloadBytes);
    const view = new DataView(this.#template.buffer);
    this.#ipSum = sumOf(view, IP, IPV4_BYTES);
    this.#pseudoSum = sumOf(view, IP + 12, 8) + 6;
  }

  /** Lays a segment down at `at`; afterwards patch() makes any segment of it. */
  lay(bytes: Uint8Array, at: number): void {
    bytes.set(this.#template, at);
  }

  /**
   * Turns what lay() put at `at` into segment `index` (below {@link count}). Allocation free.
   *
   * @param streamStart how far the connections have come already, in bytes: several passes make one long
   *   stream
   * @returns its length, virtio_net_hdr included
   */
  patch(view: DataView, at: number, index: number, streamStart: number): number {
    const round = Math.floor(index / this.#flows);
    let payloadBytes = this.#payloadBytes;
    let place = round * payloadBytes;
    if (this.#shifted) {
      if (round === 0 || round === this.#rounds - 1) payloadBytes /= 2;
      if (round > 0) place -= this.#payloadBytes / 2;
    }
    const totalBytes = IPV4_BYTES + TCP_BYTES + payloadBytes;
    const identification = (round * Math.ceil(this.#payloadBytes / SEGMENT_BYTES)) & 0xffff;
    view.setUint16(at + IP + 2, totalBytes);
    view.setUint16(at + IP + 4, identification);
    view.setUint16(at + IP + 10, ~fold(this.#ipSum + totalBytes + identification) & 0xffff);
    view.setUint16(at + TCP + 16, fold(this.#pseudoSum + TCP_BYTES + payloadBytes));
    view.setUint16(at + TCP + 2, FIRST_PORT + (index - round * this.#flows));
    view.setUint32(at + TCP + 4, (FIRST_SEQUENCE + streamStart + place) >>> 0);
    return PAYLOAD + payloadBytes;
  }
}

function template(payloadBytes: number): Uint8Array {
  const bytes = new Uint8Array(PAYLOAD + payloadBytes);
  const view = new DataView(bytes.buffer);
  bytes[VNET.flags] = 1; // VIRTIO_NET_HDR_F_NEEDS_CSUM
  view.setUint16(VNET.csum_start, TCP - VNET_BYTES, true);
  view.setUint16(VNET.csum_offset, 16, true);
  view.setUint16(VNET.hdr_len, HEADER_BYTES, true);
  if (payloadBytes > SEGMENT_BYTES) {
    bytes[VNET.gso_type] = 1; // VIRTIO_NET_HDR_GSO_TCPV4
    view.setUint16(VNET.gso_size, SEGMENT_BYTES, true);
  }
  bytes.set([0x02, 0, 0, 0, 0, 0x09, 0x02, 0, 0, 0, 0, 0x02, 0x08, 0x00], VNET_BYTES);
  bytes.set([0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, PROTOCOL_TCP, 0, 0, 198, 18, 0, 2, 198, 18, 0, 9], IP);
  view.setUint16(TCP, 80);
  view.setUint32(TCP + 8, 1);
  bytes.set([(TCP_BYTES / 4) << 4, TCP_ACK, 0xfa, 0xf0], TCP + 12);
  if (payloadBytes < SEGMENT_BYTES) bytes[FLAGS] = TCP_ACK | PSH;
  bytes.set([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1], TCP + 20);
  for (let at = PAYLOAD; at < bytes.length; at++) bytes[at] = PATTERN[(at - PAYLOAD) & 3];
  return bytes;
}

/** RFC 1071, before the carries are folded in. */
function sumOf(view: DataView, at: number, byteLength: number): number {
  let sum = 0;
  for (let i = 0; i < byteLength; i += 2) sum += view.getUint16(at + i);
  return sum;
}
