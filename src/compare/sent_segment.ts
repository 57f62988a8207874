/**
 * The numbers of a released TCP segment, which may differ from the primary VM's. One reused object: its
 * contents are valid only during the call that receives it.
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
