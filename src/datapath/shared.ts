/**
 * What the main thread and the data-path worker share: one block of shared memory with counters and a
 * histogram that the worker writes and the main thread reads at any time, and the commands and reports
 * between them.
 *
 * Commands go through shared memory plus an eventfd, not through the worker's message queue: the worker
 * blocks in epoll_wait and never returns to its event loop. Reports come back as ordinary messages.
 */
import type { ComparerLimits } from "../compare/comparer.ts";
import type { RuleLines } from "../compare/rules.ts";
import type { ReportedDivergence } from "../divergence/recorder.ts";
import type { LiveFramesSetup } from "../ffi/live_frames.ts";
import type { RingSetup } from "../ffi/ring.ts";
import type { WorkerRings } from "../ffi/worker_rings.ts";

/** Numbers the worker keeps up to date, one Float64 each (exact below 2^53). */
export const STAT_NAMES = [
  "primary_frames",
  "secondary_frames",
  "held_frames",
  "secondary_pending_frames",
  "released_compared",
  "released_checkpoint",
  "released_bypass",
  "released_passthrough",
  "released_alone",
  /** Found in the ring when the VM ran alone already. */
  "released_late",
  /** TCP windows made smaller, and parts of TCP frames sent before the rest (src/compare/tcp_terms.ts). */
  "windows_clamped",
  "parts_sent",
  /** Held segments of which nothing was left to send when they were released. */
  "sent_in_parts",
  /** Segments that left as part of a larger frame (release_queue.ts). */
  "joined_frames",
  /** Frames that left in runs of live frames (src/ffi/live_frames.ts). */
  "live_frames",
  "secondary_stale",
  "send_failed",
  "replayed_frames",
  "flows",
  "hold_seconds_sum",
  "hold_count",
  "wakeups",
] as const;
export type StatName = (typeof STAT_NAMES)[number];

/** Upper bounds of the hold-time histogram in seconds; one more bucket for what is above. */
export const HOLD_BUCKETS_SECONDS = [
  0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2,
] as const;

export const STAT_INDEX = Object.fromEntries(STAT_NAMES.map((name, index) => [name, index])) as Record<
  StatName,
  number
>;
/** Places that are written for each frame. */
const { hold_seconds_sum: HOLD_SUM, hold_count: HOLD_COUNT } = STAT_INDEX;
const HISTOGRAM_START = STAT_NAMES.length;
const STATS_LENGTH = HISTOGRAM_START + HOLD_BUCKETS_SECONDS.length + 1;

export enum Command {
  None = 0,
  /** argumentA: the boundary in ns of CLOCK_BOOTTIME, argumentB: the new epoch. */
  Checkpoint = 1,
  /** Releases everything held: the VM runs alone. */
  ReleaseAlone = 2,
  /** Puts diverted input back and clears the divert flag. */
  ReplayInput = 3,
  /** argumentB: the epoch with which comparison starts, everything older is forgotten. */
  Start = 4,
  Quit = 5,
  /** argumentA: the horizon; newer primary frames wait for the checkpoint without being compared. */
  BeginCheckpoint = 6,
  /** Drops what an earlier agent left in the rings of the primary and of diverted input. */
  Discard = 7,
  /** Everything stays in the rings until the next checkpoint. */
  Resume = 8,
}

const COMMAND_SLOT_INTS = 2; // sequence number, command
const COMMAND_SLOT_FLOATS = 2; // arguments

/** The shared block, as seen from either side. */
export class SharedBlock {
  readonly stats: Float64Array;
  readonly #ints: Int32Array;
  readonly #arguments: Float64Array;

  constructor(readonly buffer: SharedArrayBuffer = SharedBlock.allocate()) {
    this.stats = new Float64Array(buffer, 0, STATS_LENGTH);
    this.#arguments = new Float64Array(buffer, STATS_LENGTH * 8, COMMAND_SLOT_FLOATS);
    this.#ints = new Int32Array(buffer, (STATS_LENGTH + COMMAND_SLOT_FLOATS) * 8, COMMAND_SLOT_INTS);
  }

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer((STATS_LENGTH + COMMAND_SLOT_FLOATS + COMMAND_SLOT_INTS) * 8);
  }

  /**
   * Main thread: places a command; the previous one must have been reported done. Returns its sequence
   * number.
   */
  post(command: Command, argumentA: number, argumentB: number): number {
    this.#arguments[0] = argumentA;
    this.#arguments[1] = argumentB;
    this.#ints[1] = command;
    return Atomics.add(this.#ints, 0, 1) + 1;
  }

  /** Worker: the sequence number of the newest command. */
  sequence(): number {
    return Atomics.load(this.#ints, 0);
  }

  command(): Command {
    return this.#ints[1] as Command;
  }

  argument(index: 0 | 1): number {
    return this.#arguments[index]!;
  }

  /** Worker: counts one frame that was held for `seconds`. */
  observeHold(seconds: number): void {
    let bucket = 0;
    while (bucket < HOLD_BUCKETS_SECONDS.length && seconds > HOLD_BUCKETS_SECONDS[bucket]!) bucket++;
    this.stats[HISTOGRAM_START + bucket]! += 1;
    this.stats[HOLD_SUM]! += seconds;
    this.stats[HOLD_COUNT]! += 1;
  }

  stat(name: StatName): number {
    return this.stats[STAT_INDEX[name]]!;
  }

  /** A block of its own with the numbers of this moment. */
  copy(): SharedBlock {
    const copy = new SharedBlock();
    copy.stats.set(this.stats);
    return copy;
  }

  /** Frames per bucket, not cumulated; the last entry counts those above every bound. */
  holdBuckets(): number[] {
    return Array.from(this.stats.subarray(HISTOGRAM_START, STATS_LENGTH));
  }
}

/** The numbers of all workers of a VM together. */
export class DataPathStats {
  constructor(private readonly workers: readonly SharedBlock[]) {}

  stat(name: StatName): number {
    return this.workers.reduce((sum, worker) => sum + worker.stat(name), 0);
  }

  /** The numbers of this moment: the workers go on counting, these stay. */
  snapshot(): DataPathStats {
    return new DataPathStats(this.workers.map((worker) => worker.copy()));
  }

  /** As {@link SharedBlock.holdBuckets}. */
  holdBuckets(): number[] {
    const buckets = this.workers.map((worker) => worker.holdBuckets());
    return buckets[0].map((_, i) => buckets.reduce((sum, own) => sum + own[i], 0));
  }
}

/** What a worker is started with. */
export interface WorkerSetup {
  buffer: SharedArrayBuffer;
  /** Counted from 0. */
  worker: number;
  rings: WorkerRings;
  /** Only the first worker puts diverted input back. */
  input: RingSetup | undefined;
  liveFrames: LiveFramesSetup;
  stateFd: number;
  wakeFd: number;
  injectIfindex: number;
  tapIfindex: number;
  replayMark: number;
  maxWaitMs: number;
  /** Held segments are sent in parts after this time. Default: 20, or a tenth of maxWaitMs if less. */
  partAfterMs?: number;
  /** As in the configuration; checked there. */
  rules: RuleLines;
  limits: Pick<ComparerLimits, "heldFramesMax" | "heldFramesPerFlowMax" | "flowsMax">;
}

export type WorkerReport =
  | { type: "ready" }
  | { type: "done"; sequence: number; count: number }
  | { type: "diverged"; epoch: number; divergence: ReportedDivergence }
  | { type: "failed"; message: string };
