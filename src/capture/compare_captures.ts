/**
 * Compares two captures: the comparer of the live path, fed from files.
 *
 * Feeding: the capture with less waiting data is read next, so that both keep pace by their contents and not
 * by their clocks. Memory: waiting frames are in two windows of fixed size (frame_window.ts). When a window
 * is full, its oldest frame's flow is reported as not comparable and dropped; the others continue. If both
 * windows are full of waiting frames, one capture has frames before the other's start. It is the one with
 * more left to read, and its oldest frame is dropped.
 *
 * TCP frames are handed over as soon as the numbers of their streams are known on both sides
 * (sequence_map.ts), until then they are parked in their window.
 */

import { KIND_BYPASS, KIND_TCP } from "../compare/flow_key.ts";
import { parseRecord } from "../compare/parse.ts";
import { ParsedFrame } from "../compare/parsed_frame.ts";
import { parseRules, type RuleLines } from "../compare/rules.ts";
import { SEGMENT_ACK } from "../compare/segment_pool.ts";
import { CaptureComparer, type SideCounts } from "./capture_comparer.ts";
import { CaptureReader } from "./capture_reader.ts";
import { type Connection, ConnectionTable, directionOf, type FrameQueue } from "./connections.ts";
import { CaptureError } from "./error.ts";
import { FrameWindow } from "./frame_window.ts";
import { GuestFilter } from "./guest_filter.ts";
import type { CaptureReport, CaptureSummary } from "./report.ts";
import { cutBefore, translate } from "./segment_numbers.ts";
import { isLoneReset, observe, type Stream, type StreamPair } from "./sequence_map.ts";

export interface CompareCapturesOptions {
  primary: string;
  secondary: string;
  /** Only frames that one of these IP addresses sends are compared; all if there is none. */
  guests?: readonly string[];
  /** What is taken out of the comparison, as in the agent's configuration. */
  rules?: RuleLines;
  /** MiB of frames on each side that may wait for their counterparts. Default 64. */
  windowMib?: number;
  /** Divergences that are reported with their details. Default 20. */
  limit?: number;
}

export const WINDOW_MIB_DEFAULT = 64;
export const WINDOW_MIB_MAX = 4096;
export const DIVERGENCES_DEFAULT = 20;

/** A window counts as full for the choice of which capture gives way. */
const FULL_SHARE = 7 / 8;
/**
 * Secondary frames of a direction that wait for the other direction's own segments, before acknowledgements
 * have to do.
 */
const PARKED_FOR_ACKNOWLEDGEMENT_MAX = 64;

class Side {
  readonly window: FrameWindow;
  /** By slot: the connection's id, or -1. */
  readonly connectionOf: Int32Array;
  ended = false;
  ignored = 0;
  filtered = 0;
  beforeStart = 0;

  constructor(
    readonly name: "primary" | "secondary",
    readonly reader: CaptureReader,
    windowBytes: number,
  ) {
    this.window = new FrameWindow(windowBytes);
    this.connectionOf = new Int32Array(this.window.framesMax).fill(-1);
  }

  get isPrimary(): boolean {
    return this.name === "primary";
  }

  isFull(): boolean {
    const { window } = this;
    return (
      window.liveBytes >= window.bytes.length * FULL_SHARE || window.frames >= window.framesMax * FULL_SHARE
    );
  }
}

/**
 * Reads both captures to their ends and says how they differ.
 * @throws CaptureError when one of them cannot be read, has no frames, or has frames that were cut off when
 * they were captured
 */
export function compareCaptures(options: CompareCapturesOptions): CaptureReport {
  const primary = new CaptureReader(options.primary);
  try {
    const secondary = new CaptureReader(options.secondary);
    try {
      return new CaptureComparison(primary, secondary, options).run();
    } finally {
      secondary.close();
    }
  } finally {
    primary.close();
  }
}

class CaptureComparison {
  readonly #primary: Side;
  readonly #secondary: Side;
  readonly #comparer: CaptureComparer;
  readonly #connections: ConnectionTable;
  /** Connections of which frames are parked. */
  readonly #parked = new Set<Connection>();
  readonly #filter: GuestFilter;
  readonly #frame = new ParsedFrame();
  readonly #windowMib: number;
  /** Frames read: the comparer's clock. */
  #now = 0;

  constructor(primary: CaptureReader, secondary: CaptureReader, options: CompareCapturesOptions) {
    const { guests = [], windowMib = WINDOW_MIB_DEFAULT, limit = DIVERGENCES_DEFAULT } = options;
    const rules = parseRules(options.rules ?? {});
    this.#windowMib = windowMib;
    this.#filter = new GuestFilter(guests);
    this.#primary = new Side("primary", primary, windowMib * 2 ** 20);
    this.#secondary = new Side("secondary", secondary, windowMib * 2 ** 20);
    this.#connections = new ConnectionTable(
      this.#primary.window.framesMax + this.#secondary.window.framesMax,
    );
    this.#comparer = new CaptureComparer({
      primary: this.#primary.window,
      secondary: this.#secondary.window,
      limit,
      rules,
      host: {
        done: (side, slot) => this.#done(this.#sideOf(side), slot),
        locate: (side, frame) => this.#locate(this.#sideOf(side), frame),
      },
    });
  }

  run(): CaptureReport {
    const primary = this.#primary;
    const secondary = this.#secondary;
    try {
      for (let side = this.#next(); side !== undefined; side = this.#next()) this.#advance(side);
      this.#settleAll();
      this.#comparer.finish();
      for (const side of [primary, secondary]) {
        if (side.window.frames > 0) {
          throw new Error(`${side.window.frames} frames of ${side.reader.path} were left without a verdict`);
        }
      }
      this.#refuseNothing();
      return this.#report();
    } finally {
      primary.window.close();
      secondary.window.close();
    }
  }

  #sideOf(side: "primary" | "secondary"): Side {
    return side === "primary" ? this.#primary : this.#secondary;
  }

  /** Which capture to read on; undefined when both are at their end. */
  #next(): Side | undefined {
    const primary = this.#primary;
    const secondary = this.#secondary;
    if (primary.ended) return secondary.ended ? undefined : secondary;
    if (secondary.ended) return primary;
    if (primary.isFull() && secondary.isFull()) {
      return primary.reader.bytesLeft >= secondary.reader.bytesLeft ? primary : secondary;
    }
    return primary.window.liveBytes <= secondary.window.liveBytes ? primary : secondary;
  }

  /** Reads a frame of this side and does with it what can be done. */
  #advance(side: Side): void {
    const { reader, window } = side;
    if (!reader.next()) {
      side.ended = true;
      // The other direction's own segments will not come from here any more.
      for (const connection of this.#parked) {
        this.#pairUp(connection);
        this.#drain(connection);
      }
      return;
    }
    this.#now++;
    let slot = window.place(reader.frameBytes, reader.frameNumber, this.#now);
    while (slot < 0) {
      this.#giveWay(side);
      slot = window.place(reader.frameBytes, reader.frameNumber, this.#now);
    }
    reader.write(window, window.frameAt(slot));
    this.#admit(side, slot);
  }

  #admit(side: Side, slot: number): void {
    const frame = this.#frame;
    parseRecord(side.window.bytes, side.window.offset(slot), frame);
    side.connectionOf[slot] = -1;
    if (frame.kind === KIND_TCP) {
      this.#admitSegment(side, slot);
    } else if (frame.kind === KIND_BYPASS) {
      side.ignored++;
      side.window.done(slot);
    } else if (!this.#filter.passes(frame)) {
      side.filtered++;
      side.window.done(slot);
    } else if (side.isPrimary) {
      this.#comparer.addPrimary(slot, frame, null);
    } else {
      this.#comparer.addSecondary(slot, frame, null);
    }
  }

  #admitSegment(side: Side, slot: number): void {
    const frame = this.#frame;
    const connections = this.#connections;
    const connection = connections.of(frame, this.#now);
    const direction = directionOf(frame.key);
    const ownDirection = connection.directions[direction];
    const otherDirection = connection.directions[1 - direction];
    const own = ownDirection[side.name];
    const other = otherDirection[side.name];
    const stream = observe(own, other, frame);
    const acknowledged = (frame.flags & SEGMENT_ACK) !== 0 ? other.current : null;
    const paired = this.#pairUp(connection);
    if (!this.#filter.passes(frame)) {
      side.filtered++;
      side.window.done(slot);
    } else {
      side.connectionOf[slot] = connection.id;
      connections.hold(connection.id);
      const queue = (side.isPrimary ? connection.parkedPrimary : connection.parkedSecondary)[direction];
      if (queue.length === 0 && this.#isReady(side, stream, acknowledged)) {
        this.#feed(side, slot, stream, acknowledged);
      } else {
        queue.push({ slot, stream, acknowledged });
        this.#parked.add(connection);
        if (!side.isPrimary && queue.length > PARKED_FOR_ACKNOWLEDGEMENT_MAX)
          otherDirection.pairUp(true, true);
      }
    }
    if (paired || (connection.parked > 0 && !side.isPrimary)) this.#drain(connection);
  }

  /** @param final what is known by now has to do */
  #pairUp(connection: Connection, final = false): boolean {
    const primaryFinal = final || this.#primary.ended;
    const secondaryFinal = final || this.#secondary.ended;
    const first = connection.directions[0].pairUp(primaryFinal, secondaryFinal);
    const second = connection.directions[1].pairUp(primaryFinal, secondaryFinal);
    return first || second;
  }

  #isReady(side: Side, stream: Stream | null, acknowledged: Stream | null): boolean {
    if (stream !== null && stream.pair === null) return false;
    return side.isPrimary || acknowledged === null || acknowledged.pair !== null;
  }

  /** Hands over what is parked of a connection as far as its numbers are known; true if anything was. */
  #drain(connection: Connection): boolean {
    let any = false;
    for (const [side, queues] of [
      [this.#primary, connection.parkedPrimary],
      [this.#secondary, connection.parkedSecondary],
    ] as const) {
      for (const queue of queues) if (this.#drainQueue(side, queue)) any = true;
    }
    if (connection.parked === 0) this.#parked.delete(connection);
    return any;
  }

  #drainQueue(side: Side, queue: FrameQueue): boolean {
    const { window } = side;
    let any = false;
    for (let head = queue.head; head !== undefined; head = queue.head) {
      const { slot, stream, acknowledged } = head;
      if (!this.#isReady(side, stream, acknowledged)) break;
      queue.shift();
      parseRecord(window.bytes, window.offset(slot), this.#frame);
      this.#feed(side, slot, stream, acknowledged);
      any = true;
    }
    return any;
  }

  /** Hands the frame just parsed to the comparer, in the primary's numbers. */
  #feed(side: Side, slot: number, stream: Stream | null, acknowledged: Stream | null): void {
    const frame = this.#frame;
    const comparer = this.#comparer;
    const pair = stream?.pair ?? null;
    if (!side.isPrimary) translate(frame, pair, acknowledged?.pair ?? null);
    if (pair?.hasStart && !cutBefore(frame, pair.start)) {
      side.beforeStart++;
      this.#done(side, slot);
      return;
    }
    if (side.isPrimary) {
      const { end } = frame;
      comparer.addPrimary(slot, frame, pair);
      if (pair !== null && !isLoneReset(frame)) pair.noteFed(end);
    } else {
      comparer.addSecondary(slot, frame, pair);
    }
  }

  /**
   * The connection of a segment that came in fragments, which cannot be parked: what is known by now has to
   * do.
   */
  #locate(side: Side, frame: ParsedFrame): StreamPair | null {
    const connection = this.#connections.of(frame, this.#now);
    const direction = directionOf(frame.key);
    const ownDirection = connection.directions[direction];
    const otherDirection = connection.directions[1 - direction];
    const own = ownDirection[side.name];
    const other = otherDirection[side.name];
    const stream = observe(own, other, frame);
    this.#pairUp(connection, true);
    if (stream !== null) ownDirection.stand(stream, side.isPrimary);
    const acknowledged = (frame.flags & SEGMENT_ACK) !== 0 ? other.current : null;
    const pair = stream?.pair ?? null;
    if (!side.isPrimary) translate(frame, pair, acknowledged?.pair ?? null);
    return pair;
  }

  #done(side: Side, slot: number): void {
    const connection = side.connectionOf[slot];
    if (connection >= 0) this.#connections.release(connection);
    side.window.done(slot);
  }

  /**
   * Makes room in a full window: the flow of its oldest frame is settled one way or the other, or at least
   * gets on.
   */
  #giveWay(side: Side): void {
    const slot = side.window.oldest();
    if (slot < 0) {
      throw new CaptureError(
        `${side.reader.where()} has ${side.reader.frameBytes} bytes, more than fit into a window of ` +
          `${this.#windowMib} MiB; give a larger --window.`,
      );
    }
    if (this.#comparer.isWaiting(side.name, slot)) {
      const ended = { primary: this.#primary.ended, secondary: this.#secondary.ended };
      const window = `not comparable within a window of ${this.#windowMib} MiB`;
      this.#comparer.giveUp(side.name, slot, ended, window);
      return;
    }
    this.#settle(this.#connections.byId(side.connectionOf[slot]));
  }

  /** Hands over everything of a connection that is parked, with the numbers that are known by now. */
  #settle(connection: Connection): void {
    this.#pairUp(connection, true);
    if (this.#drain(connection)) return;
    for (const direction of [0, 1] as const) {
      for (const [queue, isPrimary] of [
        [connection.parkedPrimary[direction], true],
        [connection.parkedSecondary[direction], false],
      ] as const) {
        const { head } = queue;
        if (head === undefined) continue;
        if (head.stream !== null) connection.directions[direction].stand(head.stream, isPrimary);
        if (head.acknowledged !== null) {
          connection.directions[1 - direction].stand(head.acknowledged, isPrimary);
        }
      }
    }
    this.#drain(connection);
  }

  #settleAll(): void {
    for (const connection of this.#parked) {
      while (connection.parked > 0) this.#settle(connection);
    }
  }

  /** Two captures of which nothing was compared are not the same. */
  #refuseNothing(): void {
    for (const { reader } of [this.#primary, this.#secondary]) {
      if (reader.frames === 0)
        throw new CaptureError(`${reader.path} has no frames: there is nothing to compare.`);
    }
    const primary = this.#primary;
    const secondary = this.#secondary;
    if (primary.filtered === primary.reader.frames && secondary.filtered === secondary.reader.frames) {
      throw new CaptureError(
        `no frame of the two captures is from ${this.#filter.guests.join(" or ")} (--guest).`,
      );
    }
  }

  #report(): CaptureReport {
    const comparer = this.#comparer;
    const primary = this.#primary;
    const secondary = this.#secondary;
    const { total, shown } = comparer.divergences;
    return {
      same: total === 0,
      primary: summaryOf(primary, comparer.primaryCounts),
      secondary: summaryOf(secondary, comparer.secondaryCounts),
      compared_bytes: comparer.comparedBytes,
      gap_bytes: comparer.gapBytes,
      window_mib: this.#windowMib,
      divergences_total: total,
      divergences: shown,
    };
  }
}

function summaryOf(side: Side, counts: SideCounts): CaptureSummary {
  const { reader } = side;
  return {
    file: reader.path,
    link_type: reader.linkTypeName,
    bytes: reader.bytes,
    flows: counts.flows,
    frames: reader.frames,
    frames_compared: counts.compared,
    frames_not_compared: counts.notCompared,
    frames_ignored: side.ignored + counts.ignored,
    frames_filtered: side.filtered,
    frames_before_start: side.beforeStart,
  };
}
