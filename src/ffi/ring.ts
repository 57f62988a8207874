/**
 * Reads a BPF ring buffer in place (kernel/bpf/ringbuf.c). Records stay in the ring until they are done, in
 * any order; the kernel gets the space back from the oldest one on.
 *
 * The kernel maps the data area twice in a row, so a record never wraps. All positions are kept modulo 2^32:
 * a ring is much smaller than that.
 */
import { RECORD_HEADER_BYTES } from "./layout.ts";
import { Mapping, PAGE_BYTES, PROT_READ } from "./libc.ts";
import type { Address } from "./native.ts";

const HEADER_BYTES = 8;
const BUSY = 0x8000_0000;
const DISCARDED = 0x4000_0000;
const LENGTH_MASK = 0x3fff_ffff;
/** The smallest thing a ring of this project holds: header and an 8-byte token of the doorbell. */
const SMALLEST_RECORD_BYTES = HEADER_BYTES + 8;
/** The smallest record of a packet ring: header, struct colo_record, no frame. */
const SMALLEST_PACKET_BYTES = HEADER_BYTES + RECORD_HEADER_BYTES;

const SLOT_FREE = 0;
const SLOT_READ = 1;
const SLOT_DONE = 2;

/** What {@link Ring} is opened with, in any thread. */
export interface RingSetup {
  fd: number;
  /** A power of two, and a multiple of the page size: as the ring was made. */
  bytes: number;
}

export class Ring {
  /** The data area, twice in a row. Never use Atomics on it: it is mapped read-only. */
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Of bytes[0]. */
  readonly address: Address;
  /** Slot ids are below this number (a power of two); a slot id is used again once it is done. */
  readonly slots: number;

  readonly #consumer: Mapping;
  readonly #data: Mapping;
  readonly #consumerWords: Int32Array;
  readonly #consumerPosition: BigInt64Array;
  readonly #producerWords: Int32Array;
  readonly #words: Int32Array;
  readonly #sizeMask: number;
  readonly #slotMask: number;

  /** By slot: where the record begins (its kernel header), what it occupies, and how far it has got. */
  readonly #offsets: Uint32Array;
  readonly #sizes: Uint32Array;
  readonly #states: Uint8Array;
  #oldestSlot = 0;
  #nextSlot = 0;
  #pending = 0;

  /**
   * Low and high half of the position up to which the kernel has the space back, and low half of the next
   * read.
   */
  #consumedLow: number;
  #consumedHigh: number;
  #readLow: number;

  constructor({ fd, bytes: byteLength }: RingSetup) {
    if (byteLength < PAGE_BYTES || byteLength > 2 ** 30 || (byteLength & (byteLength - 1)) !== 0) {
      throw new Error(`A ring has a power of two bytes between ${PAGE_BYTES} and 2^30, not ${byteLength}.`);
    }
    this.#consumer = new Mapping(PAGE_BYTES, fd);
    this.#data = new Mapping(PAGE_BYTES + 2 * byteLength, fd, PROT_READ, PAGE_BYTES);
    this.#consumerWords = new Int32Array(this.#consumer.buffer, 0, 2);
    this.#consumerPosition = new BigInt64Array(this.#consumer.buffer, 0, 1);
    this.#producerWords = new Int32Array(this.#data.buffer, 0, 2);
    this.bytes = new Uint8Array(this.#data.buffer, PAGE_BYTES, 2 * byteLength);
    this.view = new DataView(this.#data.buffer, PAGE_BYTES, 2 * byteLength);
    this.#words = new Int32Array(this.#data.buffer, PAGE_BYTES, byteLength / 4);
    this.address = this.#data.address + PAGE_BYTES;
    this.#sizeMask = byteLength - 1;

    const smallest = byteLength <= PAGE_BYTES ? SMALLEST_RECORD_BYTES : SMALLEST_PACKET_BYTES;
    this.slots = 2 ** Math.ceil(Math.log2(byteLength / smallest));
    this.#slotMask = this.slots - 1;
    this.#offsets = new Uint32Array(this.slots);
    this.#sizes = new Uint32Array(this.slots);
    this.#states = new Uint8Array(this.slots);

    this.#consumedLow = Atomics.load(this.#consumerWords, 0);
    this.#consumedHigh = Atomics.load(this.#consumerWords, 1);
    this.#readLow = this.#consumedLow;
  }

  /**
   * Slot id of the next unread record, -1 if there is none (or the next one is still being written).
   * Allocation free. Ids are handed out in ring order, counting up modulo {@link slots}.
   */
  next(): number {
    for (;;) {
      // An Atomics.load in each round: without one the engine takes the plain loads below out of a caller's
      // loop.
      Atomics.load(this.#consumerWords, 0);
      if (((this.#producerWords[0] - this.#readLow) | 0) === 0) return -1;
      const offset = this.#readLow & this.#sizeMask;
      const header = this.#words[offset >>> 2];
      if ((header & BUSY) !== 0) return -1;
      const size = ((header & LENGTH_MASK) + HEADER_BYTES + 7) & ~7;
      const slot = this.#nextSlot;
      if (this.#states[slot] !== SLOT_FREE) {
        throw new Error("The ring holds more records than it has room for: it was opened with a wrong size.");
      }
      this.#nextSlot = (slot + 1) & this.#slotMask;
      this.#readLow = (this.#readLow + size) | 0;
      this.#offsets[slot] = offset;
      this.#sizes[slot] = size;
      this.#states[slot] = SLOT_READ;
      this.#pending++;
      if ((header & DISCARDED) === 0) return slot;
      this.done(slot);
    }
  }

  /** Offset in {@link bytes} of the record (of its colo_record in a packet ring). */
  offset(slot: number): number {
    return this.#offsets[slot] + HEADER_BYTES;
  }

  /** The record is no longer needed. In any order; once for each slot that next() returned. */
  done(slot: number): void {
    if (this.#states[slot] !== SLOT_READ)
      throw new Error(`Slot ${slot} has not been read or is done already.`);
    this.#states[slot] = SLOT_DONE;
    this.#pending--;
    if (slot === this.#oldestSlot) this.#giveBack();
  }

  /** Records that were read and are not done. */
  pending(): number {
    return this.#pending;
  }

  /** Bytes that were written and not yet read, headers included. */
  unreadBytes(): number {
    Atomics.load(this.#consumerWords, 0);
    return (this.#producerWords[0] - this.#readLow) >>> 0;
  }

  /** The place behind the newest record, for {@link hasRead}. */
  producedTo(): number {
    Atomics.load(this.#consumerWords, 0);
    return this.#producerWords[0];
  }

  /** Whether next() has returned everything up to a place of producedTo(). */
  hasRead(place: number): boolean {
    return ((this.#readLow - place) | 0) >= 0;
  }

  /** Bytes that the kernel cannot write to yet: unread, and read but not given back. */
  usedBytes(): number {
    Atomics.load(this.#consumerWords, 0);
    return (this.#producerWords[0] - this.#consumedLow) >>> 0;
  }

  /** Unmaps the ring. What was not done stays in it for whoever opens it next. */
  close(): void {
    this.#consumer.close();
    this.#data.close();
  }

  #giveBack(): void {
    let low = this.#consumedLow >>> 0;
    let slot = this.#oldestSlot;
    while (this.#states[slot] === SLOT_DONE) {
      this.#states[slot] = SLOT_FREE;
      low += this.#sizes[slot];
      slot = (slot + 1) & this.#slotMask;
    }
    this.#oldestSlot = slot;
    this.#consumedLow = low | 0;
    if (low < 2 ** 32) {
      Atomics.store(this.#consumerWords, 0, low | 0);
      return;
    }
    // Once in 4 GiB both halves change. They have to do so together: the kernel reads them as one number.
    this.#consumedHigh = (this.#consumedHigh + 1) | 0;
    Atomics.store(
      this.#consumerPosition,
      0,
      (BigInt(this.#consumedHigh) << 32n) | BigInt(this.#consumedLow >>> 0),
    );
  }
}

/** Drops up to `limit` unread records of a ring; returns how many. */
export function discardRecords(ring: Ring, limit = Number.POSITIVE_INFINITY): number {
  let count = 0;
  for (; count < limit; count++) {
    const slot = ring.next();
    if (slot < 0) break;
    ring.done(slot);
  }
  return count;
}
