/**
 * What the comparer needs of a frame, and how it is read from a record of the packet rings (struct
 * colo_record of bpf/colo.h, then the frame).
 */
import { RECORD } from "../ffi/layout.ts";
import { KEY_WORDS } from "./flow_key.ts";

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
  /**
   * TCP: the window field as it stands there; -1 when the segment is in fragments, and for everything else.
   */
  window = -1;
  /** TCP: byte offset of the TCP header in the record memory. */
  transport = 0;
  /** After parsePlainTcp() only: of IP. */
  version = 0;
  /** Fragment: the identification that it shares with the others of its datagram. */
  identification = 0;
}

/** Of the record at byte `offset`: CLOCK_BOOTTIME, see {@link ParsedFrame.timeNs}. */
export function recordTimeNs(view: DataView, offset: number): number {
  return (
    view.getUint32(offset + RECORD.time_ns, true) +
    view.getUint32(offset + RECORD.time_ns + 4, true) * 4294967296
  );
}

export function u16be(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 8) | bytes[at + 1];
}

/** Signed. */
export function i32be(bytes: Uint8Array, at: number): number {
  return (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
}

/** The machines this runs on (x86-64, arm64) are little-endian; the record's own fields are in host order. */
export function u32le(bytes: Uint8Array, at: number): number {
  return (bytes[at] | (bytes[at + 1] << 8) | (bytes[at + 2] << 16) | (bytes[at + 3] << 24)) >>> 0;
}
