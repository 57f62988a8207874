/**
 * Builds Ethernet frames with right checksums, and reads them again. Addresses are those of the tests'
 * networks.
 */

const CLIENT_MAC = [0x02, 0, 0, 0, 0, 0x01] as const;
const GUEST_MAC = [0x02, 0, 0, 0, 0, 0x02] as const;
const CLIENT_IPV4 = [198, 18, 0, 1] as const;
const GUEST_IPV4 = [198, 18, 0, 2] as const;
/** 2001:2::1 and 2001:2::2 (RFC 5180). */
const CLIENT_IPV6 = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1] as const;
const GUEST_IPV6 = [0x20, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2] as const;
const CLIENT_PORT = 40000;
const GUEST_PORT = 80;

const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_IPV6 = 0x86dd;
const ETHERTYPE_VLAN = 0x8100;
const PROTOCOL_TCP = 6;
const PROTOCOL_UDP = 17;
const PROTOCOL_ICMPV6 = 58;

type Bytes = readonly number[] | Uint8Array;

export function join(...parts: Bytes[]): Uint8Array<ArrayBuffer> {
  return Uint8Array.from(parts.flatMap((part) => [...part]));
}

export const be16 = (value: number): number[] => [(value >>> 8) & 255, value & 255];
export const be32 = (value: number): number[] => [...be16(value >>> 16), ...be16(value)];

/** The Internet checksum (RFC 1071) of the bytes, not yet complemented. */
function sum(bytes: Bytes): number {
  let total = 0;
  for (let i = 0; i < bytes.length; i += 2) total += (bytes[i] << 8) | (bytes[i + 1] ?? 0);
  while (total > 0xffff) total = (total & 0xffff) + Math.floor(total / 0x1_0000);
  return total;
}

export const tcp = { FIN: 1, SYN: 2, RST: 4, PSH: 8, ACK: 16 } as const;

/** TCP options; the segment builder pads them to full words. */
export const option = {
  nop: [1],
  mss: (bytes: number) => [2, 4, ...be16(bytes)],
  sackPermitted: [4, 2],
  timestamps: (value: number, echo: number) => [8, 10, ...be32(value), ...be32(echo)],
  sack: (...edges: number[]) => [5, 2 + 4 * edges.length, ...edges.flatMap(be32)],
} as const;

export interface SegmentOptions {
  /** Who sends it; "guest" unless said otherwise. */
  from?: "guest" | "client";
  version?: 4 | 6;
  sequence?: number;
  acknowledgment?: number;
  flags?: number;
  window?: number;
  options?: Bytes;
  payload?: Bytes;
  clientPort?: number;
  /** 802.1Q tags in the frame's bytes. */
  vlans?: readonly number[];
  /** IPv4 fragment field, or IPv6 extension headers and the protocol number of the first. */
  ipv4Fragment?: number;
  ipv6Extensions?: { first: number; bytes: Bytes };
  /** Header words that the TCP header claims to have, if not those it has. */
  claimedWords?: number;
  /**
   * Leave only the pseudo header's sum in the checksum field, as in a frame whose checksum is still to be
   * filled in.
   */
  partialChecksum?: boolean;
}

function ethernet(from: "guest" | "client", ethertype: number, vlans: readonly number[] = []): number[] {
  const addresses = from === "guest" ? [...CLIENT_MAC, ...GUEST_MAC] : [...GUEST_MAC, ...CLIENT_MAC];
  return [...addresses, ...vlans.flatMap((id) => [...be16(ETHERTYPE_VLAN), ...be16(id)]), ...be16(ethertype)];
}

export function ipv4Header(
  from: "guest" | "client",
  protocol: number,
  payloadBytes: number,
  fragment = 0,
): number[] {
  const [source, destination] = from === "guest" ? [GUEST_IPV4, CLIENT_IPV4] : [CLIENT_IPV4, GUEST_IPV4];
  const start = [0x45, 0, ...be16(20 + payloadBytes), 0x12, 0x34, ...be16(fragment), 64, protocol];
  const checksum = 0xffff & ~sum([...start, 0, 0, ...source, ...destination]);
  return [...start, ...be16(checksum), ...source, ...destination];
}

export function ipv6Header(
  from: "guest" | "client",
  nextHeader: number,
  payloadBytes: number,
  hopLimit = 64,
): number[] {
  const [source, destination] = from === "guest" ? [GUEST_IPV6, CLIENT_IPV6] : [CLIENT_IPV6, GUEST_IPV6];
  return [0x60, 0, 0, 0, ...be16(payloadBytes), nextHeader, hopLimit, ...source, ...destination];
}

function pseudoHeader(version: 4 | 6, from: "guest" | "client", protocol: number, bytes: number): number[] {
  const v4 = from === "guest" ? [...GUEST_IPV4, ...CLIENT_IPV4] : [...CLIENT_IPV4, ...GUEST_IPV4];
  const v6 = from === "guest" ? [...GUEST_IPV6, ...CLIENT_IPV6] : [...CLIENT_IPV6, ...GUEST_IPV6];
  return version === 4 ? [...v4, 0, protocol, ...be16(bytes)] : [...v6, ...be32(bytes), 0, 0, 0, protocol];
}

/** A TCP segment in a frame. */
export function segment({
  from = "guest",
  version = 4,
  sequence = 1,
  acknowledgment = 0,
  flags = tcp.ACK,
  window = 0x2000,
  options = [],
  payload = [],
  clientPort = CLIENT_PORT,
  vlans = [],
  ipv4Fragment = 0,
  ipv6Extensions,
  claimedWords,
  partialChecksum = false,
}: SegmentOptions = {}): Uint8Array<ArrayBuffer> {
  const padded = [...options, ...new Array((4 - (options.length % 4)) % 4).fill(0)];
  const words = claimedWords ?? 5 + padded.length / 4;
  const ports = from === "guest" ? [GUEST_PORT, clientPort] : [clientPort, GUEST_PORT];
  const start = [
    ...ports.flatMap(be16),
    ...be32(sequence),
    ...be32(acknowledgment),
    words << 4,
    flags,
    ...be16(window),
  ];
  const end = [0, 0, ...padded, ...payload];
  const bytes = start.length + 2 + end.length;
  const pseudo = pseudoHeader(version, from, PROTOCOL_TCP, bytes);
  const checksum = partialChecksum ? sum(pseudo) : 0xffff & ~sum([...pseudo, ...start, 0, 0, ...end]);
  const body = [...start, ...be16(checksum), ...end];

  if (version === 4) {
    const ip = ipv4Header(from, PROTOCOL_TCP, bytes, ipv4Fragment);
    return join(ethernet(from, ETHERTYPE_IPV4, vlans), ip, body);
  }
  const extensions = ipv6Extensions?.bytes ?? [];
  const ip = ipv6Header(from, ipv6Extensions?.first ?? PROTOCOL_TCP, bytes + extensions.length);
  return join(ethernet(from, ETHERTYPE_IPV6, vlans), ip, extensions, body);
}

export function udp(
  from: "guest" | "client",
  payload: Bytes,
  { partialChecksum = false }: { partialChecksum?: boolean } = {},
): Uint8Array<ArrayBuffer> {
  const bytes = 8 + payload.length;
  const header = [...be16(GUEST_PORT), ...be16(CLIENT_PORT), ...be16(bytes)];
  const pseudo = pseudoHeader(4, from, PROTOCOL_UDP, bytes);
  const checksum = partialChecksum ? sum(pseudo) : 0xffff & ~sum([...pseudo, ...header, 0, 0, ...payload]);
  return join(
    ethernet(from, ETHERTYPE_IPV4),
    ipv4Header(from, PROTOCOL_UDP, bytes),
    header,
    be16(checksum),
    payload,
  );
}

export function arp(from: "guest" | "client", vlans: readonly number[] = []): Uint8Array<ArrayBuffer> {
  return join(ethernet(from, 0x0806, vlans), [0, 1, 8, 0, 6, 4, 0, 1], new Uint8Array(20));
}

export function rarp(): Uint8Array<ArrayBuffer> {
  return join(ethernet("guest", 0x8035), [0, 1, 8, 0, 6, 4, 0, 3], new Uint8Array(20));
}

/** An ICMPv6 message; its checksum is of no matter here. */
export function icmpv6(type: number, hopLimit = 255): Uint8Array<ArrayBuffer> {
  return join(
    ethernet("guest", ETHERTYPE_IPV6),
    ipv6Header("guest", PROTOCOL_ICMPV6, 24, hopLimit),
    [type],
    new Uint8Array(23),
  );
}

/** What a TCP segment says; the counterpart of segment(). */
interface ReadSegment {
  sequence: number;
  acknowledgment: number;
  timestamps: { value: number; echo: number } | undefined;
  sackEdges: number[];
  checksumRight: boolean;
}

export function readSegment(frame: Uint8Array): ReadSegment {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  let at = 12;
  while (view.getUint16(at) === ETHERTYPE_VLAN) at += 4;
  const version = view.getUint16(at) === ETHERTYPE_IPV4 ? 4 : 6;
  const network = at + 2;
  let transport = network + (version === 4 ? (frame[network] & 15) * 4 : 40);
  let end = network + (version === 4 ? view.getUint16(network + 2) : 40 + view.getUint16(network + 4));
  end = Math.min(end, frame.length);
  if (version === 6) {
    for (let next = frame[network + 6]; next !== PROTOCOL_TCP; ) {
      next = frame[transport];
      transport += (frame[transport + 1] + 1) * 8;
    }
  }
  const addresses =
    version === 4 ? frame.subarray(network + 12, network + 20) : frame.subarray(network + 8, network + 40);
  const bytes = end - transport;
  const pseudo = version === 4 ? [0, PROTOCOL_TCP, ...be16(bytes)] : [...be32(bytes), 0, 0, 0, PROTOCOL_TCP];
  const result: ReadSegment = {
    sequence: view.getUint32(transport + 4),
    acknowledgment: view.getUint32(transport + 8),
    timestamps: undefined,
    sackEdges: [],
    checksumRight: sum(join(addresses, pseudo, frame.subarray(transport, end))) === 0xffff,
  };
  for (let option = transport + 20; option < transport + (frame[transport + 12] >> 4) * 4; ) {
    const kind = frame[option];
    if (kind === 0) break;
    if (kind === 8)
      result.timestamps = { value: view.getUint32(option + 2), echo: view.getUint32(option + 6) };
    for (let edge = 2; kind === 5 && edge < frame[option + 1]; edge += 4) {
      result.sackEdges.push(view.getUint32(option + edge));
    }
    option += kind === 1 ? 1 : frame[option + 1];
  }
  return result;
}
