/** Records of a whole run in memory, laid out as the BPF programs lay them out in a packet ring. */
import type { RecordSource } from "../compare/intake.ts";
import { RECORD, RECORD_HEADER_BYTES, RECORD_SEND_OFFSET, SOURCE } from "../ffi/layout.ts";
import { Mapping } from "../ffi/libc.ts";
import type { Traffic } from "./segments.ts";

/** The kernel's own header before each record (kernel/bpf/ringbuf.c). */
const RING_HEADER_BYTES = 8;

/** Read like a ring, in which everything is there from the beginning. */
export class RecordedTraffic implements RecordSource {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly address: number;
  /** Byte offset of each record, in order. */
  readonly offsets: Uint32Array;
  readonly #mapping: Mapping;
  #next = 0;

  constructor(traffic: Traffic, source: number = SOURCE.PRIMARY) {
    const stride = recordStride(traffic.bytesMax);
    this.#mapping = new Mapping(traffic.count * stride);
    this.bytes = new Uint8Array(this.#mapping.buffer);
    this.view = new DataView(this.#mapping.buffer);
    this.address = this.#mapping.address;
    this.offsets = new Uint32Array(traffic.count);
    const { view, bytes } = this;
    let at = 0;
    for (let i = 0; i < traffic.count; i++) {
      const record = at + RING_HEADER_BYTES;
      traffic.lay(bytes, record + RECORD_SEND_OFFSET);
      const sendBytes = traffic.patch(view, record + RECORD_SEND_OFFSET, i, 0);
      const frameBytes = sendBytes - (RECORD_HEADER_BYTES - RECORD_SEND_OFFSET);
      // All of it: what was laid down before may have reached further than its segment.
      bytes.fill(0, record, record + RECORD_SEND_OFFSET);
      view.setUint32(record + RECORD.time_ns, i + 1, true);
      view.setUint32(record + RECORD.frame_bytes, frameBytes, true);
      view.setUint32(record + RECORD.source, source, true);
      this.offsets[i] = record;
      at += recordStride(sendBytes);
    }
  }

  next(): number {
    return this.#next < this.offsets.length ? this.#next++ : -1;
  }

  offset(slot: number): number {
    return this.offsets[slot];
  }

  /** The next record is the first one again. */
  rewind(): void {
    this.#next = 0;
  }

  /** Nothing of it may be used afterwards. */
  close(): void {
    this.#mapping.close();
  }
}

/** What a ring spends on a frame of `sendBytes` (virtio_net_hdr included). */
export function recordStride(sendBytes: number): number {
  return (RING_HEADER_BYTES + RECORD_SEND_OFFSET + sendBytes + 7) & ~7;
}
