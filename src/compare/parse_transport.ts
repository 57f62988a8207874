/**
 * The transport header of a frame: ports, the numbers of TCP, and where what is compared begins.
 *
 * Sources: RFC 9293, RFC 7323, RFC 2018 (TCP), RFC 768, RFC 3828 (UDP-Lite), RFC 792, RFC 4443, RFC 9260
 * (SCTP); include/uapi/linux/virtio_net.h.
 */
import { RECORD, VNET } from "../ffi/layout.ts";
import {
  ICMP_ECHO,
  ICMP_ECHO_REPLY,
  ICMP_TIMESTAMP,
  ICMP_TIMESTAMP_REPLY,
  ICMPV6_DISCOVERY_FIRST,
  ICMPV6_DISCOVERY_LAST,
  ICMPV6_ECHO,
  ICMPV6_ECHO_REPLY,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_SCTP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  PROTOCOL_UDPLITE,
  TCP_ACK,
  TCP_FIN,
  TCP_RST,
  TCP_SYN,
  TCP_URG,
} from "../packet/protocol_numbers.ts";
import { KEY_KIND, KEY_PORTS, KIND_BYPASS, KIND_DATAGRAM, KIND_TCP } from "./flow_key.ts";
import { i32be, type ParsedFrame, u16be } from "./parsed_frame.ts";

/** Bits of virtio_net_hdr's gso_type. */
const GSO_ECN = 0x80;
const GSO_UDP_L4 = 5;

/**
 * Bytes can be read up to `end`; the transport header and what follows it have `total` bytes, at least as
 * many.
 */
export function parseTransport(
  bytes: Uint8Array,
  record: number,
  at: number,
  end: number,
  total: number,
  version: number,
  protocol: number,
  frame: ParsedFrame,
): boolean {
  const key = frame.key;
  if (protocol === PROTOCOL_TCP) return parseTcp(bytes, at, end, total, version, frame);
  frame.kind = KIND_DATAGRAM;
  key[KEY_KIND] = (KIND_DATAGRAM << 24) | (version << 8) | protocol;
  frame.data = at;
  frame.dataBytes = total;
  if (protocol === PROTOCOL_UDP || protocol === PROTOCOL_UDPLITE) {
    if (at + 8 > end) return false;
    const length = u16be(bytes, at + 4);
    if (protocol === PROTOCOL_UDP && (length < 8 || length > total)) return false;
    key[KEY_PORTS] = i32be(bytes, at);
    if (length === total) {
      // The usual case: the header holds nothing that the key and the payload's length do not say.
      frame.data = at + 8;
      frame.dataBytes = total - 8;
    } else {
      skipChecksum(protocol, frame);
    }
    if ((bytes[record + RECORD.vnet + VNET.gso_type] & ~GSO_ECN) === GSO_UDP_L4) {
      const size = record + RECORD.vnet + VNET.gso_size;
      frame.meta = bytes[size] | (bytes[size + 1] << 8);
    }
  } else if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) {
    if (at + 4 > end) return false;
    const type = bytes[at];
    const v6 = protocol === PROTOCOL_ICMPV6;
    if (v6 && type >= ICMPV6_DISCOVERY_FIRST && type <= ICMPV6_DISCOVERY_LAST) {
      frame.kind = KIND_BYPASS;
      return true;
    }
    const identifier = hasIdentifier(v6, type) && at + 6 <= end ? u16be(bytes, at + 4) : 0;
    key[KEY_PORTS] = (type << 24) | (bytes[at + 1] << 16) | identifier;
    // Behind type and code, which are in the key, and the checksum.
    frame.data = at + 4;
    frame.dataBytes = total - 4;
  } else if (protocol === PROTOCOL_SCTP) {
    if (at + 12 > end) return false;
    key[KEY_PORTS] = i32be(bytes, at);
    skipChecksum(protocol, frame);
  }
  return true;
}

/** Whether the four bytes behind the checksum begin with an identifier that belongs to the flow. */
function hasIdentifier(v6: boolean, type: number): boolean {
  if (v6) return type === ICMPV6_ECHO || type === ICMPV6_ECHO_REPLY;
  return (
    type === ICMP_ECHO_REPLY || type === ICMP_ECHO || type === ICMP_TIMESTAMP || type === ICMP_TIMESTAMP_REPLY
  );
}

function parseTcp(
  bytes: Uint8Array,
  at: number,
  end: number,
  total: number,
  version: number,
  frame: ParsedFrame,
): boolean {
  if (at + 20 > end) return false;
  const headerBytes = (bytes[at + 12] >> 4) * 4;
  if (headerBytes < 20 || at + headerBytes > end) return false;
  const flags = bytes[at + 13];
  const syn = (flags & TCP_SYN) !== 0;
  const rst = (flags & TCP_RST) !== 0;
  // No stack sends these; nothing can be said about the stream, so they are compared as they are.
  if ((flags & (TCP_SYN | TCP_RST | TCP_ACK)) === 0) return false;
  if (syn && (flags & (TCP_FIN | TCP_RST)) !== 0) return false;
  frame.kind = KIND_TCP;
  frame.key[KEY_KIND] = (KIND_TCP << 24) | (version << 8) | PROTOCOL_TCP;
  frame.key[KEY_PORTS] = i32be(bytes, at);
  // Urgent data of a SYN or RST means nothing to anybody.
  frame.flags = (rst ? flags & ~TCP_FIN : flags) & ~(rst || syn ? TCP_URG : 0);
  frame.sequence = i32be(bytes, at + 4);
  frame.acknowledgement = (flags & TCP_ACK) !== 0 ? i32be(bytes, at + 8) : 0;
  frame.window = total === end - at ? u16be(bytes, at + 14) : -1;
  frame.transport = at;
  frame.data = at + headerBytes;
  frame.dataBytes = total - headerBytes;
  if ((frame.flags & TCP_URG) !== 0) frame.urgent = (frame.sequence + u16be(bytes, at + 18)) | 0;
  if (rst) {
    frame.end = frame.sequence;
  } else {
    frame.end = (frame.sequence + frame.dataBytes + (syn ? 1 : 0) + (flags & TCP_FIN)) | 0;
  }
  if (syn) frame.meta = synOptions(bytes, at + 20, at + headerBytes);
  return true;
}

/** What both ends will hold each other to for the whole connection (RFC 9293 3.2, RFC 7323, RFC 2018). */
function synOptions(bytes: Uint8Array, from: number, end: number): number {
  let mss = 0;
  let scale = 0xff;
  let flags = 0;
  let at = from;
  while (at < end) {
    const option = bytes[at];
    if (option === 0) break;
    if (option === 1) {
      at++;
      continue;
    }
    if (at + 2 > end) break;
    const length = bytes[at + 1];
    if (length < 2 || at + length > end) break;
    if (option === 2 && length === 4) mss = u16be(bytes, at + 2);
    else if (option === 3 && length === 3) scale = bytes[at + 2];
    else if (option === 4) flags |= 2;
    else if (option === 8) flags |= 1;
    at += length;
  }
  return (mss << 16) | (scale << 8) | flags;
}

/** Leaves out the checksum of a header that is compared with the rest. */
export function skipChecksum(protocol: number, frame: ParsedFrame): void {
  let at = 0;
  let bytes = 2;
  if (protocol === PROTOCOL_UDP || protocol === PROTOCOL_UDPLITE) at = 6;
  else if (protocol === PROTOCOL_TCP) at = 16;
  else if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) at = 2;
  else if (protocol === PROTOCOL_SCTP) {
    at = 8;
    bytes = 4;
  } else return;
  if (at + bytes > frame.dataBytes) return;
  frame.skipAt = at;
  frame.skipBytes = bytes;
}
