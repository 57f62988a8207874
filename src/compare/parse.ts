/**
 * From a record of the packet rings (struct colo_record of bpf/colo.h, then the frame) to what the comparer
 * needs of it: which flow it belongs to, which bytes of it count, and the TCP numbers.
 *
 * The frame is the guest's, so it is hostile: every length is checked against the frame's end before it is
 * used, and the length that counts is the one the IP header gives, never the frame's (Ethernet pads short
 * frames). Whatever does not fit becomes KIND_UNPARSED and is compared as a whole.
 *
 * Sources: RFC 791, RFC 8200, RFC 2675, RFC 6946; IEEE 802.1Q. Transport headers: see parse_transport.ts.
 */

import { RECORD, RECORD_HEADER_BYTES } from "../ffi/layout.ts";
import {
  ETHERNET_HEADER_BYTES,
  ETHERTYPE_ARP,
  ETHERTYPE_IPV4,
  ETHERTYPE_IPV6,
  ETHERTYPE_MIN,
  ETHERTYPE_VLAN,
  ETHERTYPE_VLAN_SERVICE,
  IPV4_FRAGMENT_MASK,
  IPV4_OFFSET_MASK,
  PROTOCOL_HOP_BY_HOP,
  PROTOCOL_IPV6_FRAGMENT,
  PROTOCOL_IPV6_OPTIONS,
  PROTOCOL_IPV6_ROUTING,
} from "../packet/protocol_numbers.ts";
import {
  clearKey,
  KEY_DESTINATION,
  KEY_FRAGMENT,
  KEY_KIND,
  KEY_PORTS,
  KEY_SOURCE,
  KEY_VLAN,
  KIND_BYPASS,
  KIND_DATAGRAM,
  KIND_FRAME,
  KIND_UNPARSED,
} from "./flow_key.ts";
import { parseTransport, skipChecksum } from "./parse_transport.ts";
import { i32be, type ParsedFrame, u16be, u32le } from "./parsed_frame.ts";

const VLAN_TAGS_MAX = 2;
const VLAN_PRESENT = 0x1000;
const VLAN_SERVICE = 0x2000;
const EXTENSION_HEADERS_MAX = 8;

/**
 * Parses the record at byte `offset` of `bytes`. Never throws and never reads past the frame.
 *
 * With `datagramBytes`, for the first fragment of a datagram whose fragmented part (behind the IPv4 header,
 * or the IPv6 fragment header) has this many bytes in all: the result describes the whole datagram, and
 * `data` is where it begins in this fragment. KIND_UNPARSED when this fragment does not hold all headers.
 */
export function parseRecord(
  bytes: Uint8Array,
  offset: number,
  frame: ParsedFrame,
  datagramBytes: number = 0,
): void {
  const start = offset + RECORD_HEADER_BYTES;
  const room = bytes.length - start;
  frame.record = offset;
  frame.window = -1;
  frame.transport = 0;
  frame.timeNs =
    u32le(bytes, offset + RECORD.time_ns) + u32le(bytes, offset + RECORD.time_ns + 4) * 4294967296;
  frame.epoch = u32le(bytes, offset + RECORD.epoch) & 0xffff;
  let frameBytes = u32le(bytes, offset + RECORD.frame_bytes);
  if (frameBytes > room) frameBytes = Math.max(room, 0);
  frame.frameBytes = frameBytes;
  frame.skipAt = 0;
  frame.skipBytes = 0;
  frame.meta = 0;
  frame.flags = 0;
  frame.sequence = 0;
  frame.end = 0;
  frame.acknowledgement = 0;
  frame.urgent = 0;
  frame.identification = 0;
  clearKey(frame.key);
  const end = start + frameBytes;

  if (frameBytes < ETHERNET_HEADER_BYTES) {
    whole(bytes, start, frameBytes, 0, KIND_UNPARSED, frame);
    return;
  }
  let at = start + 12;
  let etherType = u16be(bytes, at);
  at += 2;
  let vlan = 0;
  for (let tags = 0; tags < VLAN_TAGS_MAX; tags++) {
    if (etherType !== ETHERTYPE_VLAN && etherType !== ETHERTYPE_VLAN_SERVICE) break;
    if (at + 4 > end) {
      whole(bytes, start, frameBytes, etherType, KIND_UNPARSED, frame);
      return;
    }
    const service = etherType === ETHERTYPE_VLAN_SERVICE ? VLAN_SERVICE : 0;
    // The priority bits are left out: like the IP header's class of service they may differ.
    const tag = (u16be(bytes, at) & 0x0fff) | VLAN_PRESENT | service;
    vlan |= tags === 0 ? tag : tag << 16;
    etherType = u16be(bytes, at + 2);
    at += 4;
  }
  frame.key[KEY_VLAN] = vlan;

  let parsed = true;
  if (etherType === ETHERTYPE_IPV4) parsed = parseIpv4(bytes, offset, at, end, datagramBytes, frame);
  else if (etherType === ETHERTYPE_IPV6) parsed = parseIpv6(bytes, offset, at, end, datagramBytes, frame);
  else if (etherType === ETHERTYPE_ARP) frame.kind = KIND_BYPASS;
  else whole(bytes, start, frameBytes, etherType < ETHERTYPE_MIN ? 0 : etherType, KIND_FRAME, frame);

  if (!parsed) {
    frame.skipAt = 0;
    frame.skipBytes = 0;
    frame.meta = 0;
    frame.flags = 0;
    frame.identification = 0;
    frame.window = -1;
    frame.transport = 0;
    clearKey(frame.key);
    frame.key[KEY_VLAN] = vlan;
    whole(bytes, start, frameBytes, etherType, KIND_UNPARSED, frame);
  }
}

function whole(
  bytes: Uint8Array,
  start: number,
  frameBytes: number,
  etherType: number,
  kind: number,
  frame: ParsedFrame,
): void {
  const key = frame.key;
  frame.kind = kind;
  key[KEY_KIND] = kind << 24;
  key[KEY_PORTS] = etherType;
  if (frameBytes >= 12) {
    key[KEY_DESTINATION] = i32be(bytes, start);
    key[KEY_DESTINATION + 1] = u16be(bytes, start + 4);
    key[KEY_SOURCE] = i32be(bytes, start + 6);
    key[KEY_SOURCE + 1] = u16be(bytes, start + 10);
  }
  frame.data = start;
  frame.dataBytes = frameBytes;
}

function parseIpv4(
  bytes: Uint8Array,
  record: number,
  at: number,
  end: number,
  datagramBytes: number,
  frame: ParsedFrame,
): boolean {
  if (at + 20 > end) return false;
  const versionAndLength = bytes[at];
  if (versionAndLength >> 4 !== 4) return false;
  const headerBytes = (versionAndLength & 0x0f) * 4;
  const totalBytes = u16be(bytes, at + 2);
  if (headerBytes < 20 || totalBytes < headerBytes || at + totalBytes > end) return false;
  const protocol = bytes[at + 9];
  const key = frame.key;
  key[KEY_SOURCE] = i32be(bytes, at + 12);
  key[KEY_DESTINATION] = i32be(bytes, at + 16);
  const fragment = u16be(bytes, at + 6);
  const payload = at + headerBytes;
  const payloadEnd = at + totalBytes;
  if ((fragment & IPV4_FRAGMENT_MASK) === 0) {
    return parseTransport(bytes, record, payload, payloadEnd, payloadEnd - payload, 4, protocol, frame);
  }
  if (datagramBytes > 0 && (fragment & IPV4_OFFSET_MASK) === 0) {
    return parseTransport(bytes, record, payload, payloadEnd, datagramBytes, 4, protocol, frame);
  }
  frame.identification = u16be(bytes, at + 4);
  return fragmentOf(
    payload,
    payloadEnd,
    4,
    protocol,
    fragment & IPV4_OFFSET_MASK,
    (fragment >> 13) & 1,
    frame,
  );
}

function parseIpv6(
  bytes: Uint8Array,
  record: number,
  at: number,
  end: number,
  datagramBytes: number,
  frame: ParsedFrame,
): boolean {
  if (at + 40 > end) return false;
  if (bytes[at] >> 4 !== 6) return false;
  const payloadBytes = u16be(bytes, at + 4);
  const payloadEnd = at + 40 + payloadBytes;
  if (payloadEnd > end) return false;
  const key = frame.key;
  for (let word = 0; word < 4; word++) {
    key[KEY_SOURCE + word] = i32be(bytes, at + 8 + word * 4);
    key[KEY_DESTINATION + word] = i32be(bytes, at + 24 + word * 4);
  }
  let next = bytes[at + 6];
  // A jumbogram (RFC 2675) says 0 here and the truth in a hop-by-hop option.
  if (payloadBytes === 0 && next === PROTOCOL_HOP_BY_HOP) return false;
  let header = at + 40;
  // Bytes of the datagram that begin at `header`; known to be more than this fragment holds behind its
  // header.
  let rest = 0;
  for (let headers = 0; headers <= EXTENSION_HEADERS_MAX; headers++) {
    if (next === PROTOCOL_IPV6_FRAGMENT) {
      if (header + 8 > payloadEnd) return false;
      const fragment = u16be(bytes, header + 2);
      const identification = i32be(bytes, header + 4);
      next = bytes[header];
      header += 8;
      // A fragment of a fragment.
      if (rest > 0) return false;
      // An atomic fragment (RFC 6946: offset 0, no more to come) is a whole packet.
      if ((fragment & 0xfff9) !== 0) {
        if (datagramBytes === 0 || fragment >> 3 !== 0) {
          frame.identification = identification;
          return fragmentOf(header, payloadEnd, 6, next, fragment >> 3, fragment & 1, frame);
        }
        rest = datagramBytes;
      }
    } else if (isExtension(next)) {
      if (header + 8 > payloadEnd) return false;
      const headerBytes = (bytes[header + 1] + 1) * 8;
      if (header + headerBytes > payloadEnd) return false;
      next = bytes[header];
      header += headerBytes;
      if (rest > 0) rest -= headerBytes;
    } else {
      const total = rest > 0 ? rest : payloadEnd - header;
      return parseTransport(bytes, record, header, payloadEnd, total, 6, next, frame);
    }
  }
  return false;
}

const isExtension = (next: number): boolean =>
  next === PROTOCOL_HOP_BY_HOP || next === PROTOCOL_IPV6_ROUTING || next === PROTOCOL_IPV6_OPTIONS;

function fragmentOf(
  at: number,
  end: number,
  version: number,
  protocol: number,
  offset: number,
  more: number,
  frame: ParsedFrame,
): boolean {
  frame.kind = KIND_DATAGRAM;
  frame.key[KEY_KIND] = (KIND_DATAGRAM << 24) | KEY_FRAGMENT | (version << 8) | protocol;
  frame.meta = (offset << 1) | more;
  frame.data = at;
  frame.dataBytes = end - at;
  if (offset === 0) skipChecksum(protocol, frame);
  return true;
}
