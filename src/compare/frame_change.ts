/**
 * How a TCP frame is to differ, when it is sent, from the one that the primary VM sent. One object, used
 * again and again: what is in it holds until the call that handed it out returns.
 */
import { SEGMENT_FIN, type SegmentPool } from "./segment_pool.ts";

export class FrameChange {
  /** Nothing is to be sent: all that the frame says has been said. */
  silent = false;
  /** Byte offset in the record memory of the payload that is sent, and its length. */
  payload = 0;
  payloadBytes = 0;
  /** Of the first byte sent. */
  sequence = 0;
  /** Whether a FIN, if the frame has one, is sent. */
  fin = false;
  acknowledgement = 0;
  /** The window field. */
  window = 0;

  /** What is left of a held segment. */
  setRest(pool: SegmentPool, item: number): void {
    this.silent = false;
    this.payload = pool.data[item];
    this.payloadBytes = pool.dataBytes[item];
    this.sequence = pool.sequence[item];
    this.fin = (pool.flags[item] & SEGMENT_FIN) !== 0;
    this.acknowledgement = pool.acknowledgement[item];
    this.window = pool.window[item];
  }
}
