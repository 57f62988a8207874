/**
 * The frames of one capture that have not found their counterpart yet: records (struct colo_record of
 * bpf/colo.h, then the frame) in a ring of fixed size. A frame can be given back in any order, its room is
 * free again when all older ones are: so the oldest frame that waits decides how far the capture can be read
 * on, and that is what "a window of N MiB" means.
 */

import type { RecordMemory } from "../compare/options.ts";
import { RECORD, RECORD_HEADER_BYTES } from "../ffi/layout.ts";
import { Mapping } from "../ffi/libc.ts";

const RECORD_ALIGNMENT = 8;
/** A window of N bytes has entries for N / this frames. */
const BYTES_PER_ENTRY = 1024;

export class FrameWindow implements RecordMemory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  /** There is never a slot at or above it. */
  readonly framesMax: number;
  /** Frames in the window, and their bytes with headers. */
  frames = 0;
  liveBytes = 0;
  readonly #mapping: Mapping;
  readonly #offsets: Float64Array;
  readonly #sizes: Int32Array;
  readonly #live: Uint8Array;
  readonly #numbers: Float64Array;
  /** Slots [#first, #first + #count) are in use, modulo framesMax; the first one is live. */
  #first = 0;
  #count = 0;
  #writeAt = 0;

  constructor(byteLength: number) {
    this.#mapping = new Mapping(byteLength);
    this.bytes = new Uint8Array(this.#mapping.buffer);
    this.view = new DataView(this.#mapping.buffer);
    this.address = this.#mapping.address;
    this.framesMax = Math.floor(byteLength / BYTES_PER_ENTRY);
    this.#offsets = new Float64Array(this.framesMax);
    this.#sizes = new Int32Array(this.framesMax);
    this.#live = new Uint8Array(this.framesMax);
    this.#numbers = new Float64Array(this.framesMax);
  }

  /**
   * Room for a frame: its slot, or -1 if the window is full. The header says how long the frame is and
   * `timeNs`; the frame is the caller's to write, at frameAt(slot).
   */
  place(frameBytes: number, frameNumber: number, timeNs: number): number {
    const size = Math.ceil((RECORD_HEADER_BYTES + frameBytes) / RECORD_ALIGNMENT) * RECORD_ALIGNMENT;
    const offset = this.#roomFor(size);
    if (offset < 0) return -1;
    const slot = (this.#first + this.#count) % this.framesMax;
    this.#count++;
    this.#writeAt = offset + size;
    this.#offsets[slot] = offset;
    this.#sizes[slot] = size;
    this.#live[slot] = 1;
    this.#numbers[slot] = frameNumber;
    this.frames++;
    this.liveBytes += size;
    this.bytes.fill(0, offset, offset + RECORD_HEADER_BYTES);
    this.view.setUint32(offset + RECORD.time_ns, timeNs >>> 0, true);
    this.view.setUint32(offset + RECORD.time_ns + 4, Math.floor(timeNs / 2 ** 32), true);
    this.view.setUint32(offset + RECORD.frame_bytes, frameBytes, true);
    return slot;
  }

  #roomFor(size: number): number {
    if (this.#count === 0) {
      // Beginning again at the front keeps the pages that are touched few.
      this.#writeAt = 0;
      return size <= this.bytes.length ? 0 : -1;
    }
    if (this.#count === this.framesMax) return -1;
    const oldest = this.#offsets[this.#first];
    if (this.#writeAt <= oldest) return size < oldest - this.#writeAt ? this.#writeAt : -1;
    if (size <= this.bytes.length - this.#writeAt) return this.#writeAt;
    return size < oldest ? 0 : -1;
  }

  /** Byte offset of the slot's record. */
  offset(slot: number): number {
    return this.#offsets[slot];
  }

  /** Byte offset of the slot's frame. */
  frameAt(slot: number): number {
    return this.#offsets[slot] + RECORD_HEADER_BYTES;
  }

  /** Number of the frame in its capture, from 1. */
  numberOf(slot: number): number {
    return this.#numbers[slot];
  }

  /** The frame is no longer needed. Its bytes stay as they are until the next place(). */
  done(slot: number): void {
    if (this.#live[slot] === 0) throw new Error(`slot ${slot} of a frame window was given back twice`);
    this.#live[slot] = 0;
    this.frames--;
    this.liveBytes -= this.#sizes[slot];
    while (this.#count > 0 && this.#live[this.#first] === 0) {
      this.#first = (this.#first + 1) % this.framesMax;
      this.#count--;
    }
  }

  /** Slot of the oldest frame that waits, -1 if none does. */
  oldest(): number {
    return this.#count === 0 ? -1 : this.#first;
  }

  /** The window must not be used afterwards. */
  close(): void {
    this.#mapping.close();
  }
}
