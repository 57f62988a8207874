/**
 * What a comparison of two captures has found: the shape of `colo-agent compare --json` (docs/compare.md).
 */
import type { DivergenceClass } from "../compare/divergence.ts";

/** A place in one capture. */
export interface CapturePlace {
  /** Number of the frame in the file, from 1, as tcpdump and Wireshark count. */
  frame: number;
  /** TCP: sequence number in this capture of the place in question. */
  sequence: number | null;
  /**
   * Offset of the first differing byte in the frame's payload; in a fragment's, what follows the IP header;
   * in frames that are not IP, the frame.
   */
  payload_offset: number;
  /** That byte, or null where the frame has none (a SYN, a FIN, an acknowledgement). */
  byte: number | null;
}

/**
 * Payload around the first differing byte, at most 32 bytes a side, in hexadecimal; both begin at the same
 * place.
 */
export interface CaptureContext {
  /** How many of the bytes are in front of the differing one. */
  before: number;
  /** Null when the frame is missing there. */
  primary: string | null;
  secondary: string | null;
}

export interface CaptureDivergence {
  class: DivergenceClass;
  /** One direction: "tcp 198.18.0.2:80 > 198.18.0.9:40000". */
  flow: string;
  /** TCP: payload bytes of this connection before the difference. Null for what is not a byte stream. */
  stream_offset: number | null;
  detail: string;
  /** Null when this capture has nothing at the place. */
  primary: CapturePlace | null;
  secondary: CapturePlace | null;
  context: CaptureContext | null;
  /**
   * Frames of the flow that were not compared: frames that waited when the difference was found, and all
   * later ones.
   */
  frames_not_compared: { primary: number; secondary: number };
}

/**
 * All counts are frames, but for `bytes` (of the frames, headers included) and `flows`. frames is the sum of
 * those below it.
 */
export interface CaptureSummary {
  file: string;
  link_type: string;
  bytes: number;
  /** Directions: a TCP connection is two. */
  flows: number;
  frames: number;
  /** Have a counterpart. */
  frames_compared: number;
  /** Of flows with a divergence, from there on. */
  frames_not_compared: number;
  /** ARP and IPv6 neighbour discovery, which is not compared, and what the rules take out. */
  frames_ignored: number;
  /** Not sent by a --guest. */
  frames_filtered: number;
  /** Of streams whose beginning is not in this or the other capture: in front of where both have them. */
  frames_before_start: number;
}

export interface CaptureReport {
  same: boolean;
  primary: CaptureSummary;
  secondary: CaptureSummary;
  /** Payload bytes that were compared. */
  compared_bytes: number;
  /** TCP payload bytes that neither capture has, in front of later segments. */
  gap_bytes: number;
  window_mib: number;
  /** All of them; `divergences` has the first ones up to the limit. */
  divergences_total: number;
  divergences: CaptureDivergence[];
}
