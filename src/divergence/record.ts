/**
 * A divergence as it is kept: what the two VMs did differently, what was done about it and what that cost.
 */
import type { DivergenceClass } from "../compare/divergence.ts";

export const RECORD_CLASSES = [
  "payload",
  "length",
  "missing_on_secondary",
  "missing_on_primary",
  "flags",
  "unparsed",
  "overflow",
  "boundary",
] as const satisfies readonly DivergenceClass[];

/** New divergences of a second that are stored; more are counted only. */
export const STORED_PER_SECOND = 100;

/** One direction of traffic, from the VM to somebody. */
export interface FlowDescription {
  /** For people: "tcp 198.18.0.2:80 > 198.18.0.9:40000". */
  text: string;
  /**
   * tcp, udp, icmp, icmpv6, sctp, udplite, the number of another IP protocol, "ethertype 0x88cc", or "any".
   */
  protocol: string;
  /** IP address without brackets, or MAC address; empty when the divergence is about all flows. */
  source: string;
  sourcePort?: number;
  destination: string;
  destinationPort?: number;
}

/**
 * Which bytes of a frame are not kept: those from `gapOffset` on, `gapBytes` of them. What was kept is the
 * bytes in front of the gap and, right behind them, the bytes after it; what then lacks of `frameBytes` is
 * cut off at the end.
 */
export interface FrameCut {
  /** Length of the whole frame. */
  frameBytes: number;
  gapOffset: number;
  gapBytes: number;
}

export interface CheckpointCost {
  /** The epoch that began with it. */
  epoch: number;
  /** STOP to RESUME of the primary VM. */
  pauseMs: number;
  /** From the decision to the return of diverted input. */
  totalMs: number;
}

export interface DivergenceRecord {
  /** Given by the store, growing. */
  id: number;
  vm: string;
  /** Wall clock, since 1970. */
  timeMs: number;
  /** In which the frames were compared. */
  epoch: number;
  flow: FlowDescription;
  class: DivergenceClass;
  /** TCP: payload bytes of this direction before the difference; 0 is the first byte after the SYN. */
  streamOffset?: number;
  /** Byte offset of the first differing byte in each frame. */
  difference?: { primaryFrameOffset: number; secondaryFrameOffset: number };
  /** From the Ethernet header on; see {@link primaryCut} for what is missing of it. */
  primaryFrame?: Uint8Array;
  primaryCut?: FrameCut;
  secondaryFrame?: Uint8Array;
  secondaryCut?: FrameCut;
  /** How long the oldest frame concerned had waited when the divergence was found. */
  waitedMs: number;
  /** What was done: "checkpoint 17", "released: the VM runs alone". */
  action: string;
  checkpoint?: CheckpointCost;
  detail: string;
  /** How often the same class was found in the same flow within a second after this one. */
  repeats: number;
  /**
   * Number of later divergences that were not stored because of the limit of that second.
   */
  crowdedOut: number;
  /** Payload has been taken out (redact.ts). */
  redacted?: true;
}

/** What {@link DivergenceStore.add} takes. Frames may be whole: the store cuts them. */
export type NewDivergence = Omit<DivergenceRecord, "id" | "repeats" | "crowdedOut" | "redacted">;

/** What is learnt later. */
export interface Outcome {
  action?: string;
  checkpoint?: CheckpointCost;
}

export interface ListOptions {
  vm?: string;
  /** Newest first. Default 100. */
  limit?: number;
  /** Only what was found at this time or later; ms since 1970. */
  since?: number;
}

export type TopBy = "port" | "protocol" | "flow";
export const TOP_BY = ["port", "protocol", "flow"] as const satisfies readonly TopBy[];

export interface TopOptions {
  by: TopBy;
  vm?: string;
  /** Default 10. */
  limit?: number;
}

/** One line of a ranking, over what is kept. */
export interface TopEntry {
  /** "tcp 443", "udp" or a flow's text. */
  key: string;
  /** Repeats counted. */
  divergences: number;
  /** Checkpoints they led to; one checkpoint often answers several. */
  checkpoints: number;
  /** Together, how long the VM stood still for them. */
  pauseMs: number;
  /** Of the newest, since 1970. */
  lastTimeMs: number;
}

export const LIST_LIMIT_DEFAULT = 100;
export const LIST_LIMIT_MAX = 10_000;
export const TOP_LIMIT_DEFAULT = 10;

/** Where records can be read. */
export interface DivergenceSource {
  list(options?: ListOptions): DivergenceRecord[];
  get(id: number): DivergenceRecord | undefined;
  top(options: TopOptions): TopEntry[];
}
