import { Comparer, type ComparerOptions, type Divergence } from "../../src/compare/comparer.ts";
import { KIND_BYPASS } from "../../src/compare/flow_key.ts";
import type { FrameChange } from "../../src/compare/frame_change.ts";
import { parseRecord } from "../../src/compare/parse.ts";
import { ParsedFrame } from "../../src/compare/parsed_frame.ts";
import { RECORD, RECORD_HEADER_BYTES, VNET } from "../../src/ffi/layout.ts";

/**
 * Parses a frame that ends exactly where the memory ends, and checks that nothing beyond was read and that
 * the result stays inside of it.
 */
export function parseAtEnd(frame: Uint8Array, datagramBytes: number = 0): ParsedFrame {
  const bytes = new Uint8Array(RECORD_HEADER_BYTES + frame.length);
  new DataView(bytes.buffer).setUint32(8, frame.length, true);
  bytes.set(frame, RECORD_HEADER_BYTES);
  const guarded = new Proxy(bytes, {
    get(target, property) {
      if (typeof property === "string" && /^-?\d+$/.test(property)) {
        const at = Number(property);
        if (at < 0 || at >= target.length) throw new Error(`read at ${at} of ${target.length}`);
      }
      const value = Reflect.get(target, property, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  const parsed = new ParsedFrame();
  parseRecord(guarded, 0, parsed, datagramBytes);
  if (parsed.kind !== KIND_BYPASS) {
    const end = parsed.data + (datagramBytes === 0 ? parsed.dataBytes : parsed.skipAt + parsed.skipBytes);
    const inside = parsed.data >= RECORD_HEADER_BYTES && parsed.dataBytes >= 0 && end <= bytes.length;
    if (!inside || parsed.skipAt + parsed.skipBytes > parsed.dataBytes) {
      throw new Error(`what is to be compared is not in the frame: ${JSON.stringify(parsed)}`);
    }
  }
  return parsed;
}

/** Bytes that stand for a packet ring: records one behind the other. */
export class Records {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  private at = 0;

  constructor(
    bytes: number,
    readonly address: number,
  ) {
    this.bytes = new Uint8Array(bytes);
    this.view = new DataView(this.bytes.buffer);
  }

  /** Writes a record as the BPF programs do and returns its offset. */
  put(frame: Uint8Array, timeNs: number, epoch: number, gso: { type?: number; size?: number } = {}): number {
    const offset = this.at;
    const { view } = this;
    view.setBigUint64(offset + RECORD.time_ns, BigInt(timeNs), true);
    view.setUint32(offset + RECORD.frame_bytes, frame.length, true);
    view.setUint32(offset + RECORD.epoch, epoch, true);
    view.setUint8(offset + RECORD.vnet + VNET.gso_type, gso.type ?? 0);
    view.setUint16(offset + RECORD.vnet + VNET.gso_size, gso.size ?? 0, true);
    this.bytes.set(frame, offset + RECORD_HEADER_BYTES);
    this.at = (offset + RECORD_HEADER_BYTES + frame.length + 7) & ~7;
    return offset;
  }

  /** Makes a record unreadable, as if the ring had been written on. */
  spoil(offset: number): void {
    this.bytes.fill(
      0xdd,
      offset,
      offset + RECORD_HEADER_BYTES + this.view.getUint32(offset + RECORD.frame_bytes, true),
    );
  }

  /** A copy of a record's frame. */
  frame(offset: number): Uint8Array {
    return this.bytes.slice(
      offset + RECORD_HEADER_BYTES,
      offset + RECORD_HEADER_BYTES + this.view.getUint32(offset + RECORD.frame_bytes, true),
    );
  }

  rewind(): void {
    this.at = 0;
  }
}

const PRIMARY_BASE = 0x7f00_0000_0000;
const SECONDARY_BASE = 0x7e00_0000_0000;

/** memcmp over two Records whose addresses are made up; refuses to look outside of them. */
export function memcmpOf(primary: Records, secondary: Records): (a: number, b: number, n: number) => number {
  return (a, b, n) => {
    const from = a - primary.address;
    const to = b - secondary.address;
    if (n <= 0 || from < 0 || to < 0 || from + n > primary.bytes.length || to + n > secondary.bytes.length) {
      throw new Error(`memcmp outside of the records: ${from}, ${to}, ${n}`);
    }
    return Buffer.compare(primary.bytes.subarray(from, from + n), secondary.bytes.subarray(to, to + n));
  };
}

export const MS = 1e6;

/** What was sent of a primary frame that was not sent as it is. */
export interface Departure {
  slot: number;
  /** The frame is released with it, not only a part of it sent. */
  last: boolean;
  silent: boolean;
  sequence: number;
  payload: Uint8Array;
  fin: boolean;
  acknowledgement: number;
  window: number;
}

interface PutOptions {
  timeNs?: number;
  epoch?: number;
  gso?: { type?: number; size?: number };
}

/**
 * A comparer with two rings and a record of what it did. Slots count up from 0 on each side. Time is given in
 * ms and moves on by 1 µs with each frame. A record that is given back is spoilt at once, so that nothing can
 * look at it again.
 */
export class Bench {
  readonly primary: Records;
  readonly secondary: Records;
  readonly comparer: Comparer;
  readonly released: number[] = [];
  readonly finished: number[] = [];
  readonly divergences: Divergence[] = [];
  /** In the order of sending: slots of frames released as they are, and what was sent otherwise. */
  readonly departures: (number | Departure)[] = [];
  /** The frames that each divergence points to. */
  readonly evidence: { primary?: Uint8Array; secondary?: Uint8Array }[] = [];
  nowNs = 1000 * MS;
  epoch: number;
  private primarySlots = 0;
  private secondarySlots = 0;
  private readonly wasReleased = new Set<number>();
  private readonly wasFinished = new Set<number>();
  private readonly primaryOffsets: number[] = [];
  private readonly secondaryOffsets: number[] = [];

  /** With `parts`, the sink takes parts of frames. */
  constructor(options: Partial<ComparerOptions> & { bytes?: number; parts?: boolean } = {}) {
    const { bytes = 1 << 20, parts = false, ...rest } = options;
    this.primary = new Records(bytes, PRIMARY_BASE);
    this.secondary = new Records(bytes, SECONDARY_BASE);
    this.epoch = options.epoch ?? 0;
    this.comparer = new Comparer({
      primary: this.primary,
      secondary: this.secondary,
      memcmp: this.guardedMemcmp(),
      seed: 1,
      ...rest,
      sink: {
        ...(parts ? { permitPart: (slot, change) => this.depart(slot, change, false) } : {}),
        permit: (slot, change) => {
          if (this.wasReleased.has(slot)) throw new Error(`primary slot ${slot} was released twice`);
          if (change === null) this.departures.push(slot);
          else this.depart(slot, change, true);
          this.wasReleased.add(slot);
          this.released.push(slot);
          this.primary.spoil(this.primaryOffsets[slot]);
        },
        finish: (slot) => {
          if (this.wasFinished.has(slot)) throw new Error(`secondary slot ${slot} was finished twice`);
          this.wasFinished.add(slot);
          this.finished.push(slot);
          this.secondary.spoil(this.secondaryOffsets[slot]);
        },
        diverged: (divergence) => {
          this.divergences.push(divergence);
          const { primaryOffset, secondaryOffset } = divergence;
          this.evidence.push({
            ...(primaryOffset === undefined ? {} : { primary: this.primary.frame(primaryOffset) }),
            ...(secondaryOffset === undefined ? {} : { secondary: this.secondary.frame(secondaryOffset) }),
          });
        },
      },
    });
  }

  /** Adds a primary frame; returns its slot. */
  p(frame: Uint8Array, options: { timeNs?: number; gso?: { type?: number; size?: number } } = {}): number {
    const slot = this.putPrimary(frame, options);
    this.comparer.addPrimary(slot, this.primaryOffsets[slot]);
    this.check();
    return slot;
  }

  /** Adds a secondary frame of the current epoch; returns its slot. */
  s(frame: Uint8Array, options: { epoch?: number; gso?: { type?: number; size?: number } } = {}): number {
    const slot = this.putSecondary(frame, options);
    this.comparer.addSecondary(slot, this.secondaryOffsets[slot]);
    this.check();
    return slot;
  }

  /**
   * Adds a frame of each at once, as a pair if the comparer takes them so, else the secondary's first;
   * returns whether it was a pair.
   */
  pair(
    own: Uint8Array,
    theirs: Uint8Array,
    options: { timeNs?: number; epoch?: number; apart?: boolean } = {},
  ): boolean {
    const secondarySlot = this.putSecondary(theirs, options);
    const secondaryOffset = this.secondaryOffsets[secondarySlot];
    const primarySlot = this.putPrimary(own, options);
    const primaryOffset = this.primaryOffsets[primarySlot];
    const apart = options.apart ?? false;
    const { comparer } = this;
    const isPair = !apart && comparer.addPair(primarySlot, primaryOffset, secondarySlot, secondaryOffset);
    if (!isPair) {
      comparer.addSecondary(secondarySlot, secondaryOffset);
      comparer.addPrimary(primarySlot, primaryOffset);
    }
    this.check();
    return isPair;
  }

  /** A whole checkpoint, as the agent drives it. */
  checkpoint(boundaryNs = this.nowNs): { released: number; dropped: number } {
    this.epoch = (this.epoch + 1) & 0xffff;
    const result = this.comparer.checkpoint(boundaryNs, this.epoch);
    this.check();
    return result;
  }

  /** Lets time pass and reports timeouts. */
  wait(ms: number): void {
    this.nowNs += ms * MS;
    this.comparer.expire(this.nowNs);
    this.check();
  }

  isReleased(slot: number): boolean {
    return this.wasReleased.has(slot);
  }

  isFinished(slot: number): boolean {
    return this.wasFinished.has(slot);
  }

  get classes(): string[] {
    return this.divergences.map((divergence) => divergence.class);
  }

  private putPrimary(frame: Uint8Array, { timeNs = this.tick(), gso = {} }: PutOptions): number {
    this.primaryOffsets.push(this.primary.put(frame, timeNs, 0, gso));
    return this.primarySlots++;
  }

  private putSecondary(frame: Uint8Array, { epoch = this.epoch, gso = {} }: PutOptions): number {
    this.secondaryOffsets.push(this.secondary.put(frame, this.tick(), epoch, gso));
    return this.secondarySlots++;
  }

  private depart(slot: number, change: FrameChange, last: boolean): void {
    const { silent, sequence, payload, payloadBytes, fin, acknowledgement, window } = change;
    this.checkInside("primary", this.primaryOffsets, this.wasReleased, payload, payloadBytes, slot);
    const bytes = this.primary.bytes.slice(payload, payload + payloadBytes);
    this.departures.push({ slot, last, silent, sequence, payload: bytes, fin, acknowledgement, window });
  }

  /** memcmp that refuses to look at anything but frames that have not been given back. */
  private guardedMemcmp(): (a: number, b: number, n: number) => number {
    const memcmp = memcmpOf(this.primary, this.secondary);
    return (a, b, n) => {
      this.checkInside("primary", this.primaryOffsets, this.wasReleased, a - this.primary.address, n);
      this.checkInside("secondary", this.secondaryOffsets, this.wasFinished, b - this.secondary.address, n);
      return memcmp(a, b, n);
    };
  }

  private checkInside(
    side: "primary" | "secondary",
    offsets: number[],
    gone: Set<number>,
    from: number,
    n: number,
    only: number = -1,
  ): void {
    let slot = Math.max(0, only);
    for (let step = 2 ** Math.floor(Math.log2(offsets.length)); step >= 1; step /= 2) {
      if (only < 0 && slot + step < offsets.length && offsets[slot + step] <= from) slot += step;
    }
    const frame = offsets[slot] + RECORD_HEADER_BYTES;
    const end = frame + this[side].view.getUint32(offsets[slot] + 8, true);
    if (from < frame || from + n > end || gone.has(slot)) {
      throw new Error(`${from} to ${from + n} is outside of the ${side}'s frame ${slot}, ${frame} to ${end}`);
    }
  }

  private tick(): number {
    this.nowNs += 1000;
    return this.nowNs;
  }

  /** The counters' invariants. */
  check(): void {
    const { stats } = this.comparer;
    same("primaryAdded", stats.primaryAdded, this.primarySlots);
    same("secondaryAdded", stats.secondaryAdded, this.secondarySlots);
    same("releasedFrames", stats.releasedFrames, this.released.length);
    same("finishedFrames", stats.finishedFrames, this.finished.length);
    same("heldFrames", stats.heldFrames, stats.primaryAdded - stats.releasedFrames);
    same("pendingFrames", stats.pendingFrames, stats.secondaryAdded - stats.finishedFrames);
    const { releasedByComparison, releasedByCheckpoint, releasedAlone } = stats;
    const { releasedBypass, releasedPassthrough } = stats;
    const uncompared = releasedByCheckpoint + releasedAlone + releasedBypass + releasedPassthrough;
    same("released for one reason or another", releasedByComparison + uncompared, stats.releasedFrames);
    same("divergences", stats.divergences, this.divergences.length);
  }
}

/** expect() is too slow to be called after every frame. */
function same(name: string, is: number, should: number): void {
  if (is !== should) throw new Error(`${name} is ${is} and should be ${should}`);
}
