/**
 * From the secondary's TCP numbers to the primary's.
 *
 * The problem: the two captures show the same connections, but each machine chose its own initial sequence
 * numbers, and nobody has rewritten the secondary's, as the BPF programs do on the live path. The insight: a
 * connection's numbers differ by one constant for each direction. The constant of the sender's direction
 * applies to its sequence numbers, that of the other direction to its acknowledgement numbers. So the front
 * end follows both directions of every connection, also of those it does not compare.
 *
 * One direction of one connection is a *stream*. The n-th stream of a direction in one capture is the n-th in
 * the other: a SYN with a new number begins a new one. What is known of where a stream begins, from bad to
 * good:
 *
 *     HEARD    only an acknowledgement of it (its own direction is not in the capture, or comes later)
 *     SEEN     its first segment in the capture, without a SYN
 *     OPENED   its SYN, or what acknowledges the SYN alone: a SYN-ACK, or the first segment behind the
 *              other end's SYN
 *
 * Two streams with a SYN differ by the difference of their SYNs' numbers. For others the first segments
 * count: when their numbers are less than SAME_NUMBERS_BYTES apart, both captures have the same numbers (two
 * chance numbers are that close once in 512 times) and began at different moments, so that the comparison
 * begins where the later one does. Otherwise the first segments are taken for the same place.
 */
import type { ParsedFrame } from "../compare/parsed_frame.ts";
import { SEGMENT_ACK, SEGMENT_RST, SEGMENT_SYN } from "../compare/segment_pool.ts";

const HEARD = 1;
const SEEN = 2;
const OPENED = 3;

/** See above. */
const SAME_NUMBERS_BYTES = 2 ** 22;
/** A SYN-ACK acknowledges the SYN and at most what came with it (RFC 7413). */
const SYN_DATA_BYTES_MAX = 65_535;

/** More than any window of TCP that is in use. */
const LEAP_BYTES = 2 ** 26;
/** Streams of one direction that wait for their counterparts, at most. */
const UNPAIRED_MAX = 1024;

/** One direction of one connection in one capture. */
export class Stream {
  /** The stream of the other capture that it is compared with, once that is known. */
  pair: StreamPair | null = null;
  /** Another one of the same direction has begun. */
  over = false;
  /** Its SYN is in the capture. */
  hasSyn = false;
  /** The first acknowledgement of it, for when the other capture has nothing better. */
  heard = 0;
  isHeard = false;
  /** Bytes from `first` to the highest end seen: unwraps sequence numbers. */
  #highest = 0;
  /** The last end seen that lay far ahead of it. */
  #leap = Number.NEGATIVE_INFINITY;

  /**
   * @param first sequence number of the first payload byte
   * @param before the stream that this one follows in the same direction, for segments that come late
   */
  constructor(
    public first: number,
    public knowledge: number,
    public before: Stream | null,
  ) {}

  /**
   * Payload bytes of the stream in front of this sequence number; below 0 for one that lies before its first
   * byte.
   */
  position(sequence: number): number {
    return this.#highest + ((sequence - this.first - this.#highest) | 0);
  }

  note(end: number): void {
    const position = this.position(end);
    if (position <= this.#highest) return;
    // One damaged number must not count as gigabytes: a leap is believed when the next segment confirms it.
    const leaps = position - this.#highest > LEAP_BYTES;
    if (leaps && Math.abs(position - this.#leap) > LEAP_BYTES) this.#leap = position;
    else this.#highest = position;
  }
}

/** A stream of the primary and the one of the secondary that it is compared with. */
export class StreamPair {
  primary: Stream | null = null;
  secondary: Stream | null = null;
  /** The secondary's numbers minus the primary's. */
  offset = 0;
  /** Where the comparison begins, as a sequence number of the primary, if it begins without the SYN. */
  start = 0;
  hasStart = false;
  /** Highest end of a segment that was handed to the comparer, as a sequence number of the primary. */
  fedEnd = 0;
  hasFed = false;
  /** A difference was found; its further frames are not compared. */
  diverged = false;

  /** @param index number of the pair among those of its direction */
  constructor(readonly index: number) {}

  noteFed(end: number): void {
    if (!this.hasFed || ((end - this.fedEnd) | 0) > 0) this.fedEnd = end;
    this.hasFed = true;
  }

  /**
   * Offset in the stream, in payload bytes, of a sequence number of the primary. 0 is where the comparison
   * begins.
   */
  streamOffset(sequence: number): number {
    const stream = this.primary ?? this.secondary;
    if (stream === null) return 0;
    const position = stream.position(sequence);
    return Math.max(0, this.hasStart ? position - stream.position(this.start) : position);
  }
}

/**
 * A direction in one capture: the stream that its frames belong to now, and those without a counterpart yet.
 */
class DirectionSide {
  current: Stream | null = null;
  /**
   * The other end has sent a SYN; its first acknowledgement tells where this direction begins, if nothing
   * else does.
   */
  awaitsAnswer = false;
  readonly unpaired: Stream[] = [];

  begin(first: number, knowledge: number): Stream {
    const before = this.current;
    if (before !== null) {
      before.over = true;
      before.before = null;
    }
    const stream = new Stream(first, knowledge, before);
    this.current = stream;
    this.awaitsAnswer = false;
    // Only where the other capture lacks one connection after the other on these ports. They are reported as
    // missing.
    if (this.unpaired.length === UNPAIRED_MAX) this.unpaired.shift();
    this.unpaired.push(stream);
    return stream;
  }

  /** The current stream was acknowledged up to here. */
  hear(acknowledgement: number): void {
    const stream = this.current;
    if (stream === null || stream.isHeard) return;
    stream.heard = acknowledgement;
    stream.isHeard = true;
  }
}

/** One direction of a connection in both captures. */
export class Direction {
  readonly primary = new DirectionSide();
  readonly secondary = new DirectionSide();
  #pairs = 0;

  /**
   * Pairs the streams whose beginnings are known well enough; true if there were any.
   * @param primaryFinal also those of the primary of which only acknowledgements were seen: nothing better
   * will come
   * @param secondaryFinal the same for the secondary
   */
  pairUp(primaryFinal: boolean, secondaryFinal: boolean): boolean {
    const primaries = this.primary.unpaired;
    const secondaries = this.secondary.unpaired;
    const settled = (stream: Stream) => stream.knowledge >= SEEN || stream.over;
    let paired = false;
    while (primaries.length > 0 && secondaries.length > 0) {
      const primary = primaries[0];
      const secondary = secondaries[0];
      if (!primaryFinal && !settled(primary)) return paired;
      if (!secondaryFinal && !settled(secondary)) return paired;
      const primaryOpened = primary.knowledge === OPENED;
      if (primaryOpened !== (secondary.knowledge === OPENED)) {
        const [opened, seen] = primaryOpened ? [primary, secondary] : [secondary, primary];
        const behind = (seen.first - opened.first) | 0;
        if (behind < -1 || behind >= SAME_NUMBERS_BYTES) {
          // A connection that was over before the other capture began.
          this.stand(seen, !primaryOpened);
          (primaryOpened ? secondaries : primaries).shift();
          paired = true;
          continue;
        }
      }
      this.#join(primary, secondary);
      primaries.shift();
      secondaries.shift();
      paired = true;
    }
    return paired;
  }

  /**
   * Gives a stream a pair of its own, so that its frames can be compared with nothing. Its counterpart may
   * still join.
   */
  stand(stream: Stream, isPrimary: boolean): void {
    if (stream.pair !== null) return;
    stream.pair = new StreamPair(this.#pairs++);
    if (isPrimary) stream.pair.primary = stream;
    else stream.pair.secondary = stream;
  }

  #join(primary: Stream, secondary: Stream): void {
    const pair = primary.pair ?? secondary.pair ?? new StreamPair(this.#pairs++);
    primary.pair = pair;
    secondary.pair = pair;
    pair.primary = primary;
    pair.secondary = secondary;
    const apart = (secondary.first - primary.first) | 0;
    if (primary.knowledge === OPENED && secondary.knowledge === OPENED) {
      pair.offset = apart;
      pair.start = primary.first;
      pair.hasStart = !primary.hasSyn && !secondary.hasSyn;
      return;
    }
    const same = Math.abs(apart) < SAME_NUMBERS_BYTES;
    pair.offset = same ? 0 : apart;
    const alike = primary.knowledge === secondary.knowledge;
    if (!same && !alike && primary.isHeard && secondary.isHeard) {
      // A first segment and an acknowledgement need not be the same place; two acknowledgements are the
      // better guess.
      pair.offset = (secondary.heard - primary.heard) | 0;
    }
    pair.start = same && apart > 0 ? secondary.first : primary.first;
    pair.hasStart = true;
  }
}

/**
 * Whether a segment answers another one for which there is no connection (RFC 9293 3.10.7.1): its number is
 * not of a stream.
 */
export function isLoneReset(frame: ParsedFrame): boolean {
  return frame.sequence === 0 && (frame.flags & (SEGMENT_RST | SEGMENT_ACK)) === (SEGMENT_RST | SEGMENT_ACK);
}

/**
 * Notes what a segment says about both directions of its connection in its capture.
 *
 * @param own the segment's direction in this capture
 * @param other the opposite direction in this capture
 * @returns the stream that the segment belongs to; null for a lone reset
 */
export function observe(own: DirectionSide, other: DirectionSide, frame: ParsedFrame): Stream | null {
  const { flags, sequence, acknowledgement } = frame;
  const syn = (flags & SEGMENT_SYN) !== 0;
  if ((flags & SEGMENT_ACK) !== 0) {
    const heard = other.current;
    if (syn) {
      const past = heard === null ? -1 : (acknowledgement - heard.first) | 0;
      if (past < 0 || past > SYN_DATA_BYTES_MAX) other.begin(acknowledgement, OPENED);
    } else if (other.awaitsAnswer && own.current?.position(sequence) === 0) {
      other.begin(acknowledgement, OPENED);
    } else if (heard === null) {
      other.begin(acknowledgement, HEARD);
    }
    other.hear(acknowledgement);
  }
  if (isLoneReset(frame)) return null;
  let stream = own.current;
  if (syn) {
    const first = (sequence + 1) | 0;
    if (stream === null || stream.knowledge !== OPENED || stream.first !== first) {
      stream = own.begin(first, OPENED);
      if ((flags & SEGMENT_ACK) === 0) other.awaitsAnswer = true;
    }
    stream.hasSyn = true;
  } else if (stream === null) {
    stream = own.begin(sequence, SEEN);
  } else if (stream.knowledge === HEARD) {
    stream.knowledge = SEEN;
    if (stream.pair === null) stream.first = sequence;
  } else if (stream.knowledge === OPENED && stream.before !== null && stream.position(sequence) < -1) {
    // A segment of the connection before that was still on its way.
    if (stream.before.position(sequence) >= -1) return stream.before;
  }
  stream.note(frame.end);
  return stream;
}
