/** Changes to what was parsed of a TCP segment before it is compared; the frame itself stays as it is. */
import type { ParsedFrame } from "../compare/parsed_frame.ts";
import { SEGMENT_ACK, SEGMENT_FIN, SEGMENT_SYN } from "../compare/segment_pool.ts";
import type { StreamPair } from "./sequence_map.ts";

/** Gives a segment of the secondary the primary's numbers. */
export function translate(
  frame: ParsedFrame,
  pair: StreamPair | null,
  acknowledged: StreamPair | null,
): void {
  if (pair !== null) {
    frame.sequence = (frame.sequence - pair.offset) | 0;
    frame.end = (frame.end - pair.offset) | 0;
  }
  if ((frame.flags & SEGMENT_ACK) === 0) return;
  if (acknowledged === null || acknowledged.primary === null) {
    // The primary's capture has nothing of what is acknowledged, so it has no acknowledgement to compare with
    // either.
    frame.flags &= ~SEGMENT_ACK;
    frame.acknowledgement = 0;
  } else {
    frame.acknowledgement = (frame.acknowledgement - acknowledged.offset) | 0;
  }
}

/** Leaves out what of a segment lies in front of `start`; false if that is all of it. */
export function cutBefore(frame: ParsedFrame, start: number): boolean {
  if (frame.end === frame.sequence) return true;
  const before = (start - frame.sequence) | 0;
  if (before <= 0) return true;
  if (((frame.end - start) | 0) <= 0) return false;
  const syn = (frame.flags & SEGMENT_SYN) !== 0 ? 1 : 0;
  // A FIN behind the payload stays.
  const fin = (frame.flags & SEGMENT_FIN) !== 0 ? 1 : 0;
  const bytes = Math.min(before - syn, frame.dataBytes);
  if (bytes + syn < before && fin === 0) return false;
  frame.flags &= ~SEGMENT_SYN;
  frame.data += bytes;
  frame.dataBytes -= bytes;
  frame.sequence = start;
  return true;
}
