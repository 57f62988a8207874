/**
 * Builds frames byte by byte, with correct lengths unless told otherwise. Checksums are arbitrary: frames of
 * a guest have partial ones, and the comparer must not look at them. Addresses from the benchmarking ranges
 * (RFC 2544, RFC 5180).
 */

export const FIN = 0x01;
export const SYN = 0x02;
export const RST = 0x04;
export const PSH = 0x08;
export const ACK = 0x10;
export const URG = 0x20;

export const GUEST = "198.18.0.2";
export const CLIENT = "198.18.0.9";
export const GUEST6 = "2001:2::2";
export const CLIENT6 = "2001:2::9";

export function concat(...parts: Uint8Array[]): Uint8Array {
  const out = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

export function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

function be16(value: number): number[] {
  return [(value >>> 8) & 0xff, value & 0xff];
}

function be32(value: number): number[] {
  return [(value >>> 24) & 0xff, (value >>> 16) & 0xff, (value >>> 8) & 0xff, value & 0xff];
}

export function ipv4Bytes(address: string): Uint8Array {
  return Uint8Array.from(address.split(".").map(Number));
}

export function ipv6Bytes(address: string): Uint8Array {
  const [left = "", right = ""] = address.split("::");
  const groups = (side: string) =>
    side === "" ? [] : side.split(":").map((group) => Number.parseInt(group, 16));
  const before = groups(left);
  const after = groups(right);
  const zeros = new Array<number>(8 - before.length - after.length).fill(0);
  return Uint8Array.from([...before, ...zeros, ...after].flatMap(be16));
}

export interface EthernetOptions {
  /** VLAN identifiers, outermost first; those before the last one get the service tag's EtherType. */
  vlans?: number[];
  /** Zero bytes behind the frame, as a NIC that pads would add. */
  padding?: number;
  destination?: number[];
  source?: number[];
}

export function ethernet(etherType: number, payload: Uint8Array, options: EthernetOptions = {}): Uint8Array {
  const { vlans = [], padding = 0 } = options;
  const destination = options.destination ?? [0x02, 0, 0, 0, 0, 0x09];
  const source = options.source ?? [0x02, 0, 0, 0, 0, 0x02];
  const tags = vlans.flatMap((vlan, i) => [...be16(i + 1 < vlans.length ? 0x88a8 : 0x8100), ...be16(vlan)]);
  const header = Uint8Array.from([...destination, ...source, ...tags, ...be16(etherType)]);
  return concat(header, payload, new Uint8Array(padding));
}

export interface IpOptions extends EthernetOptions {
  source4?: string;
  destination4?: string;
  source6?: string;
  destination6?: string;
  version?: 4 | 6;
  /** IPv4 options, a multiple of 4 bytes. */
  ipOptions?: Uint8Array;
  identification?: number;
  ttl?: number;
  tos?: number;
  /** In 8-byte units. */
  fragmentOffset?: number;
  moreFragments?: boolean;
  /** IPv6: [type, bytes] of extension headers; the first byte of each is overwritten with the next header. */
  extensions?: [number, Uint8Array][];
  /** Overrides the IP header's length field. */
  claimedBytes?: number;
}

type WithoutMac<T> = Omit<T, "source" | "destination">;

export function ip(protocol: number, payload: Uint8Array, options: WithoutMac<IpOptions> = {}): Uint8Array {
  const { version = 4 } = options;
  return version === 4 ? ipv4(protocol, payload, options) : ipv6(protocol, payload, options);
}

function ipv4(protocol: number, payload: Uint8Array, options: WithoutMac<IpOptions>): Uint8Array {
  const { ipOptions = new Uint8Array(0), identification = 1, ttl = 64, tos = 0 } = options;
  const { source4 = GUEST, destination4 = CLIENT, fragmentOffset = 0, moreFragments = false } = options;
  const headerBytes = 20 + ipOptions.length;
  const total = options.claimedBytes ?? headerBytes + payload.length;
  const header = Uint8Array.from([
    0x40 | (headerBytes / 4),
    tos,
    ...be16(total),
    ...be16(identification),
    ...be16((moreFragments ? 0x2000 : 0) | fragmentOffset),
    ttl,
    protocol,
    0,
    0,
    ...ipv4Bytes(source4),
    ...ipv4Bytes(destination4),
  ]);
  return ethernet(0x0800, concat(header, ipOptions, payload), macless(options));
}

function ipv6(protocol: number, payload: Uint8Array, options: WithoutMac<IpOptions>): Uint8Array {
  const { ttl = 64, source6 = GUEST6, destination6 = CLIENT6 } = options;
  const extensions: [number, Uint8Array][] = [...(options.extensions ?? [])];
  if (options.fragmentOffset !== undefined || options.moreFragments !== undefined) {
    const { fragmentOffset = 0, moreFragments = false, identification = 1 } = options;
    const field = (fragmentOffset << 3) | (moreFragments ? 1 : 0);
    extensions.push([44, Uint8Array.from([0, 0, ...be16(field), ...be32(identification)])]);
  }
  const types = [...extensions.map(([type]) => type), protocol];
  const chain = extensions.map(([, bytes], i) => {
    const header = bytes.slice();
    header[0] = types[i + 1];
    return header;
  });
  const body = concat(...chain, payload);
  const header = Uint8Array.from([
    0x60,
    0,
    0,
    0,
    ...be16(options.claimedBytes ?? body.length),
    types[0],
    ttl,
    ...ipv6Bytes(source6),
    ...ipv6Bytes(destination6),
  ]);
  return ethernet(0x86dd, concat(header, body), macless(options));
}

function macless(options: WithoutMac<IpOptions>): EthernetOptions {
  const { vlans = [], padding = 0 } = options;
  return { vlans, padding };
}

/**
 * A frame without IP options, extension headers, VLAN tags and padding, cut into fragments at up to `cuts`
 * places, with the part of the IP payload that each holds.
 */
export function fragmentsOf(
  frame: Uint8Array,
  cuts: number,
  identification: number,
  below: (n: number) => number,
): { frame: Uint8Array; from: number; to: number }[] {
  const version = frame[14] >> 4 === 4 ? 4 : 6;
  const headerBytes = version === 4 ? 34 : 54;
  const lengthAt = version === 4 ? 16 : 18;
  const length = (frame[lengthAt] << 8) | frame[lengthAt + 1];
  const payload = frame.slice(headerBytes, version === 4 ? 14 + length : headerBytes + length);
  const protocol = frame[version === 4 ? 23 : 20];
  const units = Math.ceil(payload.length / 8);
  const places = new Set<number>();
  // No host cuts through the header of TCP or UDP.
  const first = protocol === 6 ? 3 : 1;
  if (units > first) for (let i = 0; i < cuts; i++) places.add(8 * (first + below(units - first)));
  const ascending = [...places].toSorted((a, b) => a - b);
  const ends = [...ascending, payload.length];
  if (ends.length === 1) return [{ frame, from: 0, to: payload.length }];
  return fragments(protocol, payload, ascending, { version, identification }).map((fragment, i) => ({
    frame: fragment,
    from: i === 0 ? 0 : ends[i - 1],
    to: ends[i],
  }));
}

export interface TcpOptions extends WithoutMac<IpOptions> {
  sourcePort?: number;
  destinationPort?: number;
  seq?: number;
  /** Absent: no ACK flag. */
  ack?: number;
  flags?: number;
  window?: number;
  options?: Uint8Array;
  payload?: Uint8Array | string;
  checksum?: number;
  urgent?: number;
}

export function tcp(options: TcpOptions = {}): Uint8Array {
  return ip(6, tcpSegment(options), options);
}

export function tcpSegment(options: TcpOptions = {}): Uint8Array {
  const { sourcePort = 80, destinationPort = 40000, seq = 0, ack, window = 64240, urgent = 0 } = options;
  const payload =
    typeof options.payload === "string" ? text(options.payload) : (options.payload ?? new Uint8Array(0));
  const tcpOptions = options.options ?? new Uint8Array(0);
  const flags = (options.flags ?? 0) | (ack === undefined ? 0 : ACK);
  const header = Uint8Array.from([
    ...be16(sourcePort),
    ...be16(destinationPort),
    ...be32(seq),
    ...be32(ack ?? 0),
    ((20 + tcpOptions.length) / 4) << 4,
    flags,
    ...be16(window),
    ...be16(options.checksum ?? 0),
    ...be16(urgent),
  ]);
  return concat(header, tcpOptions, payload);
}

/** The fragments of an IP payload that is cut at these places, multiples of 8. */
export function fragments(
  protocol: number,
  payload: Uint8Array,
  cuts: number[],
  options: WithoutMac<IpOptions> = {},
): Uint8Array[] {
  const places = [0, ...cuts, payload.length];
  return places.slice(0, -1).map((from, i) =>
    ip(protocol, payload.slice(from, places[i + 1]), {
      ...options,
      fragmentOffset: from / 8,
      moreFragments: places[i + 1] < payload.length,
    }),
  );
}

/** The timestamp option with two bytes of padding in front (RFC 7323 appendix A). */
export function timestamps(value: number, echo: number): Uint8Array {
  return Uint8Array.from([1, 1, 8, 10, ...be32(value), ...be32(echo)]);
}

export function synOptions(mss: number, scale: number): Uint8Array {
  return Uint8Array.from([2, 4, ...be16(mss), 4, 2, 1, 3, 3, scale, 1, 1]).slice(0, 12);
}

export interface UdpOptions extends WithoutMac<IpOptions> {
  sourcePort?: number;
  destinationPort?: number;
  checksum?: number;
  udpBytes?: number;
}

export function udp(payload: Uint8Array | string, options: UdpOptions = {}): Uint8Array {
  return ip(17, udpDatagram(payload, options), options);
}

export function udpDatagram(payload: Uint8Array | string, options: UdpOptions = {}): Uint8Array {
  const { sourcePort = 53, destinationPort = 40000, checksum = 0 } = options;
  const bytes = typeof payload === "string" ? text(payload) : payload;
  const header = Uint8Array.from([
    ...be16(sourcePort),
    ...be16(destinationPort),
    ...be16(options.udpBytes ?? bytes.length + 8),
    ...be16(checksum),
  ]);
  return concat(header, bytes);
}

export interface IcmpOptions extends WithoutMac<IpOptions> {
  type?: number;
  code?: number;
  id?: number;
  sequence?: number;
  checksum?: number;
}

/** An echo reply unless told otherwise. */
export function icmp(payload: Uint8Array | string, options: IcmpOptions = {}): Uint8Array {
  const six = options.version === 6;
  const { type = six ? 129 : 0, code = 0, id = 7, sequence = 1, checksum = 0 } = options;
  const bytes = typeof payload === "string" ? text(payload) : payload;
  const header = Uint8Array.from([type, code, ...be16(checksum), ...be16(id), ...be16(sequence)]);
  return ip(six ? 58 : 1, concat(header, bytes), options);
}
