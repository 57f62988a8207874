/**
 * The numbers of a TCP segment as it left, which are not always those that the primary VM gave it. One
 * object, used again and again: what is in it holds until the call that it was handed to returns.
 */
import type { ParsedFrame } from "./parsed_frame.ts";
import type { SegmentPool } from "./segment_pool.ts";

export class SentSegment {
  /** The TCP flags, low byte; other marks of the pool may be set too. */
  flags = 0;
  /** Sequence space, SYN and FIN included, as signed 32-bit integers. */
  sequence = 0;
  end = 0;
  acknowledgement = 0;
  /** CLOCK_BOOTTIME when the primary VM sent it. */
  timeNs = 0;
  /** The window field; -1 if it is not one whole segment. */
  window = -1;
  /** Sequence number behind the urgent data that the URG flag announces. */
  urgent = 0;

  /** As it is held in the pool. */
  setHeld(pool: SegmentPool, item: number): void {
    this.flags = pool.flags[item];
    this.sequence = pool.sequence[item];
    this.end = pool.end[item];
    this.acknowledgement = pool.acknowledgement[item];
    this.timeNs = pool.timeNs[item];
    this.window = pool.window[item];
    this.urgent = pool.urgent[item];
  }

  /** As it was parsed. */
  setFrame(frame: ParsedFrame): void {
    this.flags = frame.flags;
    this.sequence = frame.sequence;
    this.end = frame.end;
    this.acknowledgement = frame.acknowledgement;
    this.timeNs = frame.timeNs;
    this.window = frame.window;
    this.urgent = frame.urgent;
  }
}
