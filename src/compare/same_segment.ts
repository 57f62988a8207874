/**
 * Whether the records of the primary and the secondary that come next hold the same TCP segment: of one
 * connection, with the same sequence number and length, without a tag, options or extension headers of IP,
 * and with no flag but ACK, PSH and those of ECN. Looks at both headers at once, a word at a time, which is
 * several times as fast as parsing each.
 *
 * Acknowledgement, window, checksums, identification, flow label, PSH and TCP's options may differ. So may
 * class of service and lifetime, as far as the comparer is concerned, but where they do the answer is "no".
 */
import { RECORD, RECORD_HEADER_BYTES } from "../ffi/layout.ts";
import { PROTOCOL_TCP } from "../packet/protocol_numbers.ts";
import type { RecordMemory } from "./options.ts";

/*
 * Words of a frame in the byte order of the machine (little-endian, as parse.ts says): the first byte on the
 * wire is the lowest. The records begin at multiples of 8 bytes (kernel/bpf/ringbuf.c), and so do the frames
 * behind their headers.
 */
const TYPE_AND_VERSION = 12 / 4;
/** EtherType 0x0800, version 4, header of 20 bytes; the class of service is the fourth byte. */
const IPV4_MASK = 0x00ffffff;
const IPV4 = 0x00450008;
/** EtherType 0x86dd, version 6; the rest is class of service and flow label. */
const IPV6_MASK = 0x00f0ffff;
const IPV6 = 0x0060dd86;
/** Flags and offset of fragmentation but for DF, and the protocol; the lifetime is the third byte. */
const IPV4_FRAGMENT = 20 / 4;
const IPV4_WHOLE_MASK = 0xff00ff3f | 0;
const IPV4_WHOLE_TCP = 0x06000000;
const IPV4_LENGTH = 16 / 4; // and the identification
const IPV4_ADDRESSES = 24 / 4; // the checksum first
const IPV6_LENGTH = 16 / 4; // the flow label first
const IPV6_NEXT_HEADER = 20 / 4; // hop limit, and the addresses from its third byte on
const IPV4_TRANSPORT = 34;
const IPV6_TRANSPORT = 54;
/**
 * Of a TCP header that begins in the middle of word 0: words 3 and 4 hold acknowledgement, length, flags,
 * window.
 */
const TCP_OFFSET_AND_FLAGS = 3;
const PLAIN_MASK = 0x37000000; // URG, ACK, RST, SYN, FIN
const PLAIN = 0x10000000; // ACK
const SAME_MASK = PLAIN_MASK | 0x00f00000; // and the length of the header
const TCP_BYTES_MIN = 20;

export class SameSegment {
  /** Of IP. */
  version = 0;
  /** Where TCP begins, and its payload, counted from the beginning of the records; the same for both. */
  transport = 0;
  payload = 0;
  payloadBytes = 0;

  readonly #primary: Int32Array;
  readonly #secondary: Int32Array;

  constructor(primary: RecordMemory, secondary: RecordMemory) {
    this.#primary = wordsOf(primary);
    this.#secondary = wordsOf(secondary);
  }

  /**
   * Offsets are those of the records in their memories, in bytes.
   *
   * @param epoch that the secondary's record must have
   */
  match(primaryOffset: number, secondaryOffset: number, epoch: number): boolean {
    if (((primaryOffset | secondaryOffset) & 3) !== 0) return false;
    const primary = this.#primary;
    const secondary = this.#secondary;
    const p = (primaryOffset + RECORD_HEADER_BYTES) >>> 2;
    const s = (secondaryOffset + RECORD_HEADER_BYTES) >>> 2;
    const frameBytes = wordOf(primary, primaryOffset, RECORD.frame_bytes);
    if (wordOf(secondary, secondaryOffset, RECORD.frame_bytes) !== frameBytes) return false;
    if ((wordOf(secondary, secondaryOffset, RECORD.epoch) & 0xffff) !== epoch) return false;
    if (frameBytes < IPV4_TRANSPORT + TCP_BYTES_MIN) return false;
    const words = frameBytes >>> 2;
    if (p + words > primary.length || s + words > secondary.length) return false;

    const type = primary[p + TYPE_AND_VERSION];
    let transport: number;
    let end: number;
    if ((type & IPV4_MASK) === IPV4) {
      const fragment = primary[p + IPV4_FRAGMENT];
      if ((fragment & IPV4_WHOLE_MASK) !== IPV4_WHOLE_TCP) return false;
      if (secondary[s + TYPE_AND_VERSION] !== type || secondary[s + IPV4_FRAGMENT] !== fragment) return false;
      const length = primary[p + IPV4_LENGTH] & 0xffff;
      if ((secondary[s + IPV4_LENGTH] & 0xffff) !== length) return false;
      if ((primary[p + IPV4_ADDRESSES] ^ secondary[s + IPV4_ADDRESSES]) >>> 16 !== 0) return false;
      if (primary[p + IPV4_ADDRESSES + 1] !== secondary[s + IPV4_ADDRESSES + 1]) return false;
      transport = IPV4_TRANSPORT;
      end = 14 + swapped(length);
    } else if ((type & IPV6_MASK) === IPV6) {
      if (((secondary[s + TYPE_AND_VERSION] ^ type) & IPV6_MASK) !== 0) return false;
      const length = primary[p + IPV6_LENGTH] >>> 16;
      if (secondary[s + IPV6_LENGTH] >>> 16 !== length) return false;
      if ((primary[p + IPV6_NEXT_HEADER] & 0xff) !== PROTOCOL_TCP) return false;
      for (let word = IPV6_NEXT_HEADER; word < IPV6_TRANSPORT >>> 2; word++) {
        if (primary[p + word] !== secondary[s + word]) return false;
      }
      transport = IPV6_TRANSPORT;
      end = transport + swapped(length);
    } else return false;

    // The end of the addresses, the ports, the sequence number; the length of the header, and what makes it a
    // plain one.
    const pt = p + (transport >>> 2);
    const st = s + (transport >>> 2);
    if (end > frameBytes || transport + TCP_BYTES_MIN > end) return false;
    if (primary[pt] !== secondary[st] || primary[pt + 1] !== secondary[st + 1]) return false;
    if (((primary[pt + 2] ^ secondary[st + 2]) & 0xffff) !== 0) return false;
    const terms = primary[pt + TCP_OFFSET_AND_FLAGS];
    if ((terms & PLAIN_MASK) !== PLAIN) return false;
    if (((terms ^ secondary[st + TCP_OFFSET_AND_FLAGS]) & SAME_MASK) !== 0) return false;
    const payload = transport + ((terms >>> 20) & 0x0f) * 4;
    if (payload < transport + TCP_BYTES_MIN || payload > end) return false;
    this.version = transport === IPV4_TRANSPORT ? 4 : 6;
    this.transport = RECORD_HEADER_BYTES + transport;
    this.payload = RECORD_HEADER_BYTES + payload;
    this.payloadBytes = end - payload;
    return true;
  }
}

function wordsOf({ view }: RecordMemory): Int32Array {
  return new Int32Array(view.buffer, view.byteOffset, view.byteLength >>> 2);
}

function wordOf(words: Int32Array, record: number, at: number): number {
  return words[(record + at) >>> 2];
}

/** 16 bits of network order that were read as a number of the machine. */
function swapped(value: number): number {
  return ((value & 0xff) << 8) | (value >>> 8);
}
