/**
 * From a record of the packet rings (struct colo_record of bpf/colo.h, then the frame) to what the comparer
 * needs of it: which flow it belongs to, which bytes of it count, and the TCP numbers.
 *
 * The frame is the guest's, so it is hostile: every length is checked against the frame's end before it is
 * used, and the length that counts is the one the IP header gives, never the frame's (Ethernet pads short
 * frames). Whatever does not fit becomes KIND_UNPARSED and is compared as a whole.
 *
 * Sources: RFC 791, RFC 8200, RFC 9293, RFC 768, RFC 792, RFC 4443, RFC 9260; include/uapi/linux/if_ether.h.
 */

export const RECORD_HEADER_BYTES = 64;
export const RECORD_FRAME_BYTES = 8;
export const RECORD_EPOCH = 12;
const RECORD_VNET = 54;
const VNET_GSO_TYPE = 1;
const VNET_GSO_SIZE = 4;
const GSO_ECN = 0x80;
const GSO_UDP_L4 = 5;

/** A byte stream. */
export const KIND_TCP = 1;
/** One IP payload after the other: UDP, ICMP, other protocols, fragments. */
export const KIND_DATAGRAM = 2;
/** Neither IPv4 nor IPv6: compared as a whole. */
export const KIND_FRAME = 3;
/** Cut off, contradictory or beyond this parser: compared as a whole, among its like. */
export const KIND_UNPARSED = 4;
/** ARP and IPv6 neighbour discovery: not compared. The BPF programs keep them from the rings. */
export const KIND_BYPASS = 5;

/**
 * Words of a flow key: 0 kind << 24 | fragment << 16 | IP version << 8 | protocol; 1 ports, or ICMP
 * type/code/identifier, or the EtherType; 2 VLAN tags (outer low, inner high half); 3-6 source; 7-10
 * destination (IP, or MAC in two words). A fragment's key has no ports; fragments that can only be compared as
 * they are have KEY_FRAGMENT_AS_IS too (see fragments.ts).
 */
export const KEY_WORDS = 11;
export const KEY_KIND = 0;
export const KEY_PORTS = 1;
export const KEY_VLAN = 2;
export const KEY_SOURCE = 3;
export const KEY_DESTINATION = 7;
export const KEY_FRAGMENT = 0x10000;
export const KEY_FRAGMENT_AS_IS = 0x20000;

export const PROTOCOL_ICMP = 1;
export const PROTOCOL_TCP = 6;
export const PROTOCOL_UDP = 17;
export const PROTOCOL_ICMPV6 = 58;
export const PROTOCOL_SCTP = 132;
export const PROTOCOL_UDPLITE = 136;

const ETHERTYPE_IPV4 = 0x0800;
const ETHERTYPE_ARP = 0x0806;
const ETHERTYPE_IPV6 = 0x86dd;
const ETHERTYPE_VLAN = 0x8100;
const ETHERTYPE_VLAN_SERVICE = 0x88a8;
/** Below it the field is a length (IEEE 802.3), not a type. */
const ETHERTYPE_MIN = 0x0600;
const VLAN_TAGS_MAX = 2;
const VLAN_PRESENT = 0x1000;
const VLAN_SERVICE = 0x2000;
const EXTENSION_HEADERS_MAX = 8;

const FLAG_FIN = 0x01;
const FLAG_SYN = 0x02;
const FLAG_RST = 0x04;
const FLAG_ACK = 0x10;
const FLAG_URG = 0x20;

/** Preallocated and reused: the result of one parseRecord(). */
export class ParsedFrame {
  kind = 0;
  /** Byte offset of the record (struct colo_record) in the record memory. */
  record = 0;
  /** CLOCK_BOOTTIME. Exact below 2^53 ns (104 days); above, to a microsecond and better for years. */
  timeNs = 0;
  frameBytes = 0;
  /** The secondary's 16-bit epoch tag. */
  epoch = 0;
  readonly key = new Int32Array(KEY_WORDS);
  /** Byte offset in the record memory of what is compared, and its length. For TCP the payload. */
  data = 0;
  dataBytes = 0;
  /** Offset within the data and length of a checksum that is left out, or 0 bytes. */
  skipAt = 0;
  skipBytes = 0;
  /**
   * TCP SYN: negotiated options (MSS << 16 | window scale or 0xff << 8 | SACK permitted << 1 | timestamps);
   * fragment: offset in 8-byte units << 1 | more fragments; UDP segmentation offload: size of one datagram.
   * Else 0.
   */
  meta = 0;
  /**
   * TCP: flags byte, sequence space [sequence, end) with SYN and FIN counted, acknowledgement; signed 32-bit.
   */
  flags = 0;
  sequence = 0;
  end = 0;
  acknowledgement = 0;
  /** TCP with the URG flag: sequence number behind the urgent data. */
  urgent = 0;
  /** TCP: the window field as it stands there; -1 when the segment is in fragments, and for everything else. */
  window = -1;
  /** TCP: byte offset of the TCP header in the record memory. */
  transport = 0;
  /** After parsePlainTcp() only: of IP. */
  version = 0;
  /** Fragment: the identification that it shares with the others of its datagram. */
  identification = 0;
}

function u16be(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 8) | bytes[at + 1];
}

/** Signed. */
function i32be(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
}

/** The machines this runs on (x86-64, arm64) are little-endian; the record's own fields are in host order. */
function u32le(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}

/** Of the record at byte `offset`: CLOCK_BOOTTIME, see {@link ParsedFrame.timeNs}. */
export function recordTimeNs(view: DataView, offset: number): number {
  return view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 4294967296;
}

/**
 * Parses the record at byte `offset` of `bytes`. Never throws and never reads past the frame.
 *
 * With `datagramBytes`, for the first fragment of a datagram whose fragmented part (what follows the IPv4
 * header, or the IPv6 fragment header) has so many bytes in all: the result is that of the whole datagram, and
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
  frame.timeNs = u32le(bytes, offset) + u32le(bytes, offset + 4) * 4294967296;
  frame.epoch = u32le(bytes, offset + RECORD_EPOCH) & 0xffff;
  let frameBytes = u32le(bytes, offset + RECORD_FRAME_BYTES);
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

  if (frameBytes < 14) {
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

/**
 * parseRecord() for the usual frame, without the flow's key: TCP with ACK and neither SYN, FIN, RST nor URG, whole,
 * untagged, over IPv4 without options or IPv6 without extension headers. Returns false for every other one, and for
 * whatever is not as it should be; then nothing of `frame` counts.
 */
export function parsePlainTcp(view: DataView, offset: number, frame: ParsedFrame): boolean {
  const start = offset + RECORD_HEADER_BYTES;
  const frameBytes = view.getUint32(offset + RECORD_FRAME_BYTES, true);
  if (frameBytes < 54 || start + frameBytes > view.byteLength) return false;
  const etherType = view.getUint16(start + 12);
  let at: number;
  let end: number;
  if (etherType === ETHERTYPE_IPV4) {
    if (view.getUint8(start + 14) !== 0x45 || view.getUint8(start + 23) !== PROTOCOL_TCP) return false;
    if ((view.getUint16(start + 20) & 0x3fff) !== 0) return false;
    at = start + 34;
    end = start + 14 + view.getUint16(start + 16);
    frame.version = 4;
  } else if (etherType === ETHERTYPE_IPV6) {
    if (view.getUint8(start + 14) >> 4 !== 6 || view.getUint8(start + 20) !== PROTOCOL_TCP) return false;
    at = start + 54;
    end = at + view.getUint16(start + 18);
    frame.version = 6;
  } else return false;
  if (end > start + frameBytes || at + 20 > end) return false;
  const data = at + (view.getUint8(at + 12) >> 4) * 4;
  if (data < at + 20 || data > end) return false;
  const flags = view.getUint8(at + 13);
  if ((flags & (FLAG_FIN | FLAG_SYN | FLAG_RST | FLAG_ACK | FLAG_URG)) !== FLAG_ACK) return false;
  frame.flags = flags;
  frame.transport = at;
  frame.timeNs = recordTimeNs(view, offset);
  frame.epoch = view.getUint32(offset + RECORD_EPOCH, true) & 0xffff;
  frame.sequence = view.getInt32(at + 4);
  frame.acknowledgement = view.getInt32(at + 8);
  frame.window = view.getUint16(at + 14);
  frame.data = data;
  frame.dataBytes = end - data;
  frame.end = (frame.sequence + frame.dataBytes) | 0;
  return true;
}

/** fill() is a call into the engine, several times as slow for so few words. */
function clearKey(key: Int32Array): void {
  for (let word = 0; word < KEY_WORDS; word++) key[word] = 0;
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
  if ((fragment & 0x3fff) === 0) {
    return parseTransport(bytes, record, payload, payloadEnd, payloadEnd - payload, 4, protocol, frame);
  }
  if (datagramBytes > 0 && (fragment & 0x1fff) === 0) {
    return parseTransport(bytes, record, payload, payloadEnd, datagramBytes, 4, protocol, frame);
  }
  frame.identification = u16be(bytes, at + 4);
  return fragmentOf(payload, payloadEnd, 4, protocol, fragment & 0x1fff, (fragment >> 13) & 1, frame);
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
  if (payloadBytes === 0 && next === 0) return false;
  let header = at + 40;
  // Bytes of the datagram that begin at `header`; known to be more than this fragment holds behind its header.
  let rest = 0;
  for (let headers = 0; headers <= EXTENSION_HEADERS_MAX; headers++) {
    if (next === 44) {
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
    } else if (next === 0 || next === 43 || next === 60) {
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

function skipChecksum(protocol: number, frame: ParsedFrame): void {
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

/** Bytes can be read up to `end`; the transport header and what follows it have `total` bytes, at least as many. */
function parseTransport(
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
    if ((bytes[record + RECORD_VNET + VNET_GSO_TYPE] & ~GSO_ECN) === GSO_UDP_L4) {
      const size = record + RECORD_VNET + VNET_GSO_SIZE;
      frame.meta = bytes[size] | (bytes[size + 1] << 8);
    }
  } else if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) {
    if (at + 4 > end) return false;
    const type = bytes[at];
    const v6 = protocol === PROTOCOL_ICMPV6;
    if (v6 && type >= 133 && type <= 137) {
      frame.kind = KIND_BYPASS;
      return true;
    }
    const echo = v6 ? type === 128 || type === 129 : type === 0 || type === 8 || type === 13 || type === 14;
    const identifier = echo && at + 6 <= end ? u16be(bytes, at + 4) : 0;
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
  const syn = (flags & FLAG_SYN) !== 0;
  const rst = (flags & FLAG_RST) !== 0;
  // No stack sends these; nothing can be said about the stream, so they are compared as they are.
  if ((flags & (FLAG_SYN | FLAG_RST | FLAG_ACK)) === 0) return false;
  if (syn && (flags & (FLAG_FIN | FLAG_RST)) !== 0) return false;
  frame.kind = KIND_TCP;
  frame.key[KEY_KIND] = (KIND_TCP << 24) | (version << 8) | PROTOCOL_TCP;
  frame.key[KEY_PORTS] = i32be(bytes, at);
  // Urgent data of a SYN or RST means nothing to anybody.
  frame.flags = (rst ? flags & ~FLAG_FIN : flags) & ~(rst || syn ? FLAG_URG : 0);
  frame.sequence = i32be(bytes, at + 4);
  frame.acknowledgement = (flags & FLAG_ACK) !== 0 ? i32be(bytes, at + 8) : 0;
  frame.window = total === end - at ? u16be(bytes, at + 14) : -1;
  frame.transport = at;
  frame.data = at + headerBytes;
  frame.dataBytes = total - headerBytes;
  if ((frame.flags & FLAG_URG) !== 0) frame.urgent = (frame.sequence + u16be(bytes, at + 18)) | 0;
  if (rst) {
    frame.end = frame.sequence;
  } else {
    frame.end = (frame.sequence + frame.dataBytes + (syn ? 1 : 0) + (flags & FLAG_FIN)) | 0;
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
