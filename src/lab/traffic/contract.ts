/** What the lab's client is asked for, and what it reports: JSON on its command line and standard output. */

export interface ClientOptions {
  host: string;
  /** Ends by itself after this; without it, when standard input closes. */
  seconds?: number;
  /** Upper limit of what is sent or asked for. */
  bytesPerSecond?: number;
  /** Pause between two requests of the request-and-answer kinds. */
  pauseMs?: number;
  /** Of the bulk kinds: pieces of 256 KiB under way at a time. Default 1. */
  piecesAhead?: number;
  /** Of the kind "blocks": the numbers of the blocks to read. */
  blocks?: readonly number[];
  /**
   * Of the kind "duplex": wrong bytes and broken connections are counted, and the client continues, on a new
   * connection if need be. Default: the first of them ends it with an error.
   */
  counting?: boolean;
}

export type ClientKind =
  | "duplex"
  | "random"
  | "disk"
  | "files"
  | "blocks"
  | "source"
  | "sink"
  | "http"
  | "connect"
  | "clock"
  | "udp";

export interface ClientReport {
  kind: ClientKind;
  type: "progress" | "end" | "error";
  /** Since the client began. */
  elapsedMs: number;
  /** Bytes sent and received (TCP payload, UDP payload). */
  sent: number;
  received: number;
  /** Bytes that were not those of the pattern. With one the client ends, unless it is counting. */
  wrongBytes: number;
  /** Connections after the first. There is none unless the client is counting. */
  reconnects: number;
  /** Requests answered, blocks acknowledged, datagrams returned. */
  answers: number;
  /**
   * UDP: datagrams sent and not returned, those included that came back when this client's socket was full.
   */
  lost: number;
  /** UDP: datagrams of this network namespace that a full socket dropped (RFC 4113, udpInErrors). */
  noRoom: number;
  /** Longest time without anything received since the last mark, and when it ended, in ms since the start. */
  longestGapMs: number;
  longestGapEndMs: number;
  /** Marks so far. */
  marks: number;
  /** Times from request to answer in ms: median and 99th percentile; only at the end. */
  latencyMs?: { p50: number; p99: number; max: number };
  message?: string;
}
