/**
 * Where in a frame headers end and payload begins. Careful rather than clever: what is not surely a header
 * counts as payload, because payload is what `--redact` hides.
 *
 * Sources: IEEE 802.1Q (tags), RFC 791 and RFC 8200 (IP and extension headers), RFC 9293 3.1 (TCP), RFC 768,
 * RFC 792, RFC 4443 2.1, RFC 9260 3.1 (SCTP).
 */
import {
  ETHERNET_HEADER_BYTES,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  ETHERTYPE_VLAN,
  ETHERTYPE_VLAN_SERVICE,
  IPV4_FRAGMENT_MASK,
  PROTOCOL_HOP_BY_HOP,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_IPV6_FRAGMENT,
  PROTOCOL_IPV6_OPTIONS,
  PROTOCOL_IPV6_ROUTING,
  PROTOCOL_SCTP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
} from "../packet/protocol_numbers.ts";

/**
 * Of stacked tags before IEEE 802.1ad. The comparer does not know it: such a frame is compared as a whole.
 */
const ETHERTYPE_VLAN_OLD = 0x9100;
const VLAN_TYPES: ReadonlySet<number> = new Set([ETHERTYPE_VLAN, ETHERTYPE_VLAN_SERVICE, ETHERTYPE_VLAN_OLD]);
const VLAN_TAGS_MAX = 2;
const IPV6_OPTION_HEADERS: ReadonlySet<number> = new Set([
  PROTOCOL_HOP_BY_HOP,
  PROTOCOL_IPV6_ROUTING,
  PROTOCOL_IPV6_OPTIONS,
]);

export interface FrameLayout {
  /** Bytes of all headers: Ethernet, VLAN, IP, transport. */
  headerBytes: number;
  /**
   * Behind the last byte of the IP packet, without the padding of short frames; the frame's length if it is
   * not IP.
   */
  payloadEnd: number;
  etherType: number;
  /** IP protocol; undefined if the frame is not IP. */
  protocol?: number;
  /** Of the transport header, which a fragment does not show. */
  transportOffset?: number;
  /**
   * Bytes among the headers that are not to be shown where payload is not: the transport's checksum, from
   * which a short payload could be computed, and options that could hold anything.
   */
  sensitive: { offset: number; bytes: number }[];
}

/** End, no operation, MSS, window scale, SACK permitted, SACK, timestamps: kind to length, 0 for any. */
const TCP_OPTION_BYTES: Record<number, number> = { 2: 4, 3: 3, 4: 2, 5: 0, 8: 10 };
const TCP_OPTION_END = 0;
const TCP_OPTION_NOP = 1;

const TRANSPORTS: Record<number, { headerBytes: number; checksumOffset: number; checksumBytes: number }> = {
  [PROTOCOL_ICMP]: { headerBytes: 8, checksumOffset: 2, checksumBytes: 2 },
  [PROTOCOL_TCP]: { headerBytes: 20, checksumOffset: 16, checksumBytes: 2 },
  [PROTOCOL_UDP]: { headerBytes: 8, checksumOffset: 6, checksumBytes: 2 },
  [PROTOCOL_ICMPV6]: { headerBytes: 8, checksumOffset: 2, checksumBytes: 2 },
  [PROTOCOL_SCTP]: { headerBytes: 12, checksumOffset: 8, checksumBytes: 4 },
};

/** 0 behind the end: a frame may have been cut off anywhere. */
function byteAt(frame: Uint8Array, at: number): number {
  return frame[at] ?? 0;
}

/** `head`: the frame or its beginning; `frameBytes`: how long the frame is. Never throws. */
export function layoutOf(head: Uint8Array, frameBytes: number = head.length): FrameLayout {
  const be16 = (at: number) => (byteAt(head, at) << 8) | byteAt(head, at + 1);
  let at = Math.min(ETHERNET_HEADER_BYTES, head.length);
  let etherType = be16(12);
  for (let tags = 0; tags < VLAN_TAGS_MAX && VLAN_TYPES.has(etherType) && at + 4 <= head.length; tags++) {
    etherType = be16(at + 2);
    at += 4;
  }
  const sensitive: FrameLayout["sensitive"] = [];
  const plain: FrameLayout = { headerBytes: at, payloadEnd: frameBytes, etherType, sensitive };
  if (etherType === ETHERTYPE_IPV4) {
    if (at + 20 > head.length || byteAt(head, at) >>> 4 !== 4) return plain;
    const headerBytes = (byteAt(head, at) & 15) * 4;
    // A length of 0 is what TCP segmentation offload of more than 64 KiB leaves there.
    const totalBytes = be16(at + 2) || frameBytes - at;
    if (headerBytes < 20 || totalBytes < headerBytes || at + headerBytes > head.length) return plain;
    const payloadEnd = Math.min(frameBytes, at + totalBytes);
    if (headerBytes > 20) sensitive.push({ offset: at + 20, bytes: headerBytes - 20 });
    const protocol = byteAt(head, at + 9);
    const ip = { headerBytes: at + headerBytes, payloadEnd, etherType, protocol, sensitive };
    // More fragments, or not the first one (RFC 791: flags and fragment offset).
    return (be16(at + 6) & IPV4_FRAGMENT_MASK) !== 0 ? ip : transport(head, ip);
  }
  if (etherType === ETHERTYPE_IPV6) {
    if (at + 40 > head.length || byteAt(head, at) >>> 4 !== 6) return plain;
    const payloadBytes = be16(at + 4) || frameBytes - at - 40;
    const payloadEnd = Math.min(frameBytes, at + 40 + payloadBytes);
    let protocol = byteAt(head, at + 6);
    at += 40;
    while (IPV6_OPTION_HEADERS.has(protocol) && at + 8 <= Math.min(head.length, payloadEnd)) {
      const bytes = (byteAt(head, at + 1) + 1) * 8;
      if (at + bytes > Math.min(head.length, payloadEnd)) break;
      protocol = byteAt(head, at);
      sensitive.push({ offset: at + 2, bytes: bytes - 2 });
      at += bytes;
    }
    const ip = { headerBytes: at, payloadEnd, etherType, protocol, sensitive };
    if (protocol === PROTOCOL_IPV6_FRAGMENT && at + 8 <= head.length) {
      return { ...ip, headerBytes: at + 8, protocol: byteAt(head, at) };
    }
    return transport(head, ip);
  }
  return plain;
}

function transport(head: Uint8Array, ip: FrameLayout & { protocol: number }): FrameLayout {
  const kind = TRANSPORTS[ip.protocol];
  const at = ip.headerBytes;
  if (kind === undefined || at + kind.headerBytes > Math.min(head.length, ip.payloadEnd)) return ip;
  let { headerBytes } = kind;
  if (ip.protocol === PROTOCOL_TCP) {
    headerBytes = (byteAt(head, at + 12) >>> 4) * 4;
    if (headerBytes < 20 || at + headerBytes > Math.min(head.length, ip.payloadEnd)) return ip;
  }
  const sensitive = [...ip.sensitive, { offset: at + kind.checksumOffset, bytes: kind.checksumBytes }];
  if (ip.protocol === PROTOCOL_TCP) sensitive.push(...unknownTcpOptions(head, at + 20, at + headerBytes));
  return { ...ip, headerBytes: at + headerBytes, transportOffset: at, sensitive };
}

/** What is in unknown options, and all that follows where they are no list of options any more. */
function unknownTcpOptions(head: Uint8Array, from: number, to: number): FrameLayout["sensitive"] {
  const unknown: FrameLayout["sensitive"] = [];
  for (let at = from; at < to; ) {
    const kind = byteAt(head, at);
    if (kind === TCP_OPTION_NOP) {
      at++;
      continue;
    }
    const bytes = kind === TCP_OPTION_END ? 0 : byteAt(head, at + 1);
    if (bytes < 2 || at + bytes > to) return [...unknown, { offset: at, bytes: to - at }];
    const known = TCP_OPTION_BYTES[kind];
    if (known === undefined || (known !== 0 && known !== bytes)) {
      unknown.push({ offset: at + 2, bytes: bytes - 2 });
    }
    at += bytes;
  }
  return unknown;
}
