/** What the test tells an end of the connections to do, and what that answers: one JSON object a line. */

/** How an end sends, reads and is set up; none of it changes which bytes it sends. */
export interface Manner {
  noDelay: boolean;
  /** Bytes that are written at a time. */
  writeBytesMin: number;
  writeBytesMax: number;
  /** It pauses about once in so many bytes that it has written, and read; up to so long. */
  writePauseBytes: number;
  readPauseBytes: number;
  pauseMsMax: number;
  /** Which of those that the kernel allows in a namespace, counted from 0 and round again. */
  congestionControl: number;
  /** First receive buffer, bytes: the window that is offered at the start. */
  receiveBytes: number;
  /** 1: with an offset of the connection's own, 2: without (Documentation/networking/ip-sysctl.rst). */
  timestamps: 1 | 2;
  /** Lower than the interface's: smaller segments, though the SYN announces the same. */
  routeMtu: number;
  /** `ethtool -K` words. */
  offloads: string[];
}

export interface Task {
  kind: "accept" | "open";
  /** To connect to. */
  host: string;
  /** One connection for each. */
  ports: number[];
  /** Of all connections it opens; they go to different ports. */
  localPort: number;
  /** For each connection. */
  sendBytes: number[];
  receiveBytes: number[];
  sendSeed: number;
  receiveSeed: number;
  /** Says "mark" when this many bytes have been received, over all connections. */
  mark: number;
  manner: Manner;
  mannerSeed: number;
}

export type Order = { order: "start"; task: Task } | { order: "progress" } | { order: "abort" };

export type Answer =
  | { answer: "ready" | "mark" | "done" | "aborted" }
  /** `detail` says what was wrong. */
  | { answer: "failed"; detail: string }
  | { answer: "progress"; received: number[]; sent: number[] };
