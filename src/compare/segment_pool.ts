/**
 * The frames that wait, a row each (rows.ts), with a free list, sized once. A "segment" here is any held
 * frame: a TCP segment, a datagram, or a frame compared as a whole.
 */

import { ID_STEP, Rows } from "./rows.ts";

export const SEGMENT_FIN = 0x01;
export const SEGMENT_SYN = 0x02;
export const SEGMENT_RST = 0x04;
export const SEGMENT_ACK = 0x10;
export const SEGMENT_URG = 0x20;
/** Primary: this SYN opens another connection than the segments queued before it. */
export const SEGMENT_OPENS = 0x100;
/**
 * Primary: takes part in the comparison (it belongs to the current connection and is not newer than the
 * horizon).
 */
export const SEGMENT_TRACKED = 0x200;
/** Primary: every byte of it has been produced by the secondary too. */
export const SEGMENT_VERIFIED = 0x400;
/** Primary: it is in the flow's list of unverified segments. */
export const SEGMENT_SORTED = 0x800;
/** Primary: something of it has been sent already, and is not described here any more (see TcpTerms). */
export const SEGMENT_PARTED = 0x1000;
/** One of several fragments that make up a datagram. They stand one behind the other in their flow's list. */
export const SEGMENT_PIECE = 0x8000;
/** ... and the first of them there. */
export const SEGMENT_FIRST_PIECE = 0x2000;
/** Primary: a piece whose datagram has lost others to a checkpoint. */
export const SEGMENT_BROKEN = 0x4000;

export class SegmentPool {
  readonly slot: Float64Array;
  readonly flow: Int32Array;
  /** Byte offset of the record in the record memory. */
  readonly record: Float64Array;
  /** CLOCK_BOOTTIME in ns when the kernel saw the frame. */
  readonly timeNs: Float64Array;
  /** Number of the frame in order of arrival at the comparer. */
  readonly arrival: Float64Array;
  /** TCP flags (low byte, as on the wire) and SEGMENT_* marks. */
  readonly flags: Int32Array;
  /**
   * Sequence space: [sequence, end), SYN and FIN included, as signed 32-bit integers: only differences count.
   * Pieces: `sequence` is their place in the datagram's fragmented part, in bytes.
   */
  readonly sequence: Int32Array;
  readonly end: Int32Array;
  readonly acknowledgement: Int32Array;
  /** TCP: the window field; -1 when the frame is not one whole segment. */
  readonly window: Int32Array;
  /** What is compared: `dataBytes` bytes at byte offset `data` of the record memory ... */
  readonly data: Float64Array;
  readonly dataBytes: Int32Array;
  /** ... without the `skipBytes` bytes at `data + skipAt` (a checksum), ... */
  readonly skipAt: Int32Array;
  readonly skipBytes: Int32Array;
  /** ... and this number, whose meaning depends on the protocol (see ParsedFrame.meta). */
  readonly meta: Int32Array;
  /** TCP: sequence number behind the urgent data that is announced; counts with SEGMENT_URG only. */
  readonly urgent: Int32Array;
  /** Fragments of an incomplete datagram: which one. */
  readonly identification: Int32Array;
  // Only of pieces. A datagram is what the pieces from firstPiece on hold, in this order, one behind the
  // other.
  /** Of the first piece in the flow's list: how many there are, and which is the first by place. */
  readonly pieces: Int32Array;
  readonly firstPiece: Int32Array;
  /** The next piece by place, -1 for the last. */
  readonly nextPiece: Int32Array;
  used = 0;
  /** Ids are those of its rows. */
  readonly rows: Rows;
  readonly #free: Int32Array;

  constructor(readonly capacity: number) {
    const rows = new Rows(capacity);
    this.rows = rows;
    this.slot = rows.float64();
    this.record = rows.float64();
    this.timeNs = rows.float64();
    this.arrival = rows.float64();
    this.data = rows.float64();
    this.flow = rows.int32();
    this.flags = rows.int32();
    this.sequence = rows.int32();
    this.end = rows.int32();
    this.acknowledgement = rows.int32();
    this.window = rows.int32();
    this.dataBytes = rows.int32();
    this.skipAt = rows.int32();
    this.skipBytes = rows.int32();
    this.meta = rows.int32();
    this.urgent = rows.int32();
    this.identification = rows.int32();
    this.pieces = rows.int32();
    this.firstPiece = rows.int32();
    this.nextPiece = rows.int32();
    // Followed by the links of the lists that the entries are in.
    rows.nextLine();
    this.#free = new Int32Array(capacity);
    for (let i = 0; i < capacity; i++) this.#free[i] = (capacity - 1 - i) * ID_STEP;
  }

  /** Index of a free entry, -1 when the pool is exhausted. */
  take(): number {
    if (this.used === this.capacity) return -1;
    this.used++;
    return this.#free[this.capacity - this.used];
  }

  give(item: number): void {
    this.#free[this.capacity - this.used] = item;
    this.used--;
  }
}
