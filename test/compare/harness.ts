import { expect } from "bun:test";
import { Comparer, type ComparerOptions, type Divergence } from "../../src/compare/comparer.ts";

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
    view.setBigUint64(offset, BigInt(timeNs), true);
    view.setUint32(offset + 8, frame.length, true);
    view.setUint32(offset + 12, epoch, true);
    view.setUint8(offset + 55, gso.type ?? 0);
    view.setUint16(offset + 58, gso.size ?? 0, true);
    this.bytes.set(frame, offset + 64);
    this.at = (offset + 64 + frame.length + 7) & ~7;
    return offset;
  }

  /** Makes a record unreadable, as if the ring had been written on. */
  spoil(offset: number): void {
    this.bytes.fill(0xdd, offset, offset + 64 + this.view.getUint32(offset + 8, true));
  }

  /** A copy of a record's frame. */
  frame(offset: number): Uint8Array {
    return this.bytes.slice(offset + 64, offset + 64 + this.view.getUint32(offset + 8, true));
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

  constructor(options: Partial<ComparerOptions> & { bytes?: number } = {}) {
    const { bytes = 1 << 20, ...rest } = options;
    this.primary = new Records(bytes, PRIMARY_BASE);
    this.secondary = new Records(bytes, SECONDARY_BASE);
    this.epoch = options.epoch ?? 0;
    this.comparer = new Comparer({
      primary: this.primary,
      secondary: this.secondary,
      memcmp: memcmpOf(this.primary, this.secondary),
      seed: 1,
      ...rest,
      sink: {
        release: (slot) => {
          if (this.wasReleased.has(slot)) throw new Error(`primary slot ${slot} was released twice`);
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
    const slot = this.primarySlots++;
    const offset = this.primary.put(frame, options.timeNs ?? this.tick(), 0, options.gso);
    this.primaryOffsets.push(offset);
    this.comparer.addPrimary(slot, offset);
    this.check();
    return slot;
  }

  /** Adds a secondary frame of the current epoch; returns its slot. */
  s(frame: Uint8Array, options: { epoch?: number; gso?: { type?: number; size?: number } } = {}): number {
    const slot = this.secondarySlots++;
    const offset = this.secondary.put(frame, this.tick(), options.epoch ?? this.epoch, options.gso);
    this.secondaryOffsets.push(offset);
    this.comparer.addSecondary(slot, offset);
    this.check();
    return slot;
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

  private tick(): number {
    this.nowNs += 1000;
    return this.nowNs;
  }

  /** The counters' invariants. */
  check(): void {
    const { stats } = this.comparer;
    expect(stats.primaryAdded).toBe(this.primarySlots);
    expect(stats.secondaryAdded).toBe(this.secondarySlots);
    expect(stats.releasedFrames).toBe(this.released.length);
    expect(stats.finishedFrames).toBe(this.finished.length);
    expect(stats.heldFrames).toBe(stats.primaryAdded - stats.releasedFrames);
    expect(stats.pendingFrames).toBe(stats.secondaryAdded - stats.finishedFrames);
    const { releasedByComparison, releasedByCheckpoint, releasedAlone } = stats;
    const { releasedBypass, releasedPassthrough } = stats;
    const uncompared = releasedByCheckpoint + releasedAlone + releasedBypass + releasedPassthrough;
    expect(releasedByComparison + uncompared).toBe(stats.releasedFrames);
    expect(stats.divergences).toBe(this.divergences.length);
  }
}
