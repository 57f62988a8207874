/**
 * The data path of one VM, or one worker's share of it: packet rings -> comparer -> packet socket. Workers of
 * a VM share nothing but the flags in its state: the BPF programs decide which frames are whose
 * (bpf/worker.h), and each worker has its own commands to obey (handle.ts).
 *
 * run() does not return to the thread's event loop: it drains, polls for a moment if that promises anything
 * (BusyWait), then sleeps in epoll_wait on the doorbell (rung by the BPF programs only while
 * `consumer_sleeping` is set) and on the main thread's eventfd. The benchmarks call turn() instead, on
 * records that are there already.
 */
import { Comparer, parseRules } from "../compare/comparer.ts";
import type { FrameChange } from "../compare/frame_change.ts";
import { Intake } from "../compare/intake.ts";
import { recordTimeNs } from "../compare/parsed_frame.ts";
import { SLEEP } from "../ffi/layout.ts";
import { bootTimeNsNumber, memcmp } from "../ffi/libc.ts";
import { LiveFrames } from "../ffi/live_frames.ts";
import { PacketSocket } from "../ffi/packet_socket.ts";
import { Waiter } from "../ffi/poll.ts";
import { discardRecords, Ring } from "../ffi/ring.ts";
import { StateView } from "../ffi/state_view.ts";
import { BusyWait } from "./busy_wait.ts";
import { evidenceOf } from "./evidence.ts";
import { InputReplay, LATE_INPUT_SLEEP_MS } from "./input_replay.ts";
import { LeaseGate } from "./lease_gate.ts";
import { ReleaseQueue } from "./release_queue.ts";
import { Command, SharedBlock, STAT_INDEX, type WorkerReport, type WorkerSetup } from "./shared.ts";

/**
 * Records taken from one ring before the other is looked at; released frames are sent after each turn. With
 * more, more neighbours of a stream leave as one frame, and the first of them later.
 */
export const BATCH_RECORDS = 2048;
const SLEEP_MS_MAX = 1_000;
/**
 * While both VMs send the same data, a bulk frame of one of them need not wake the worker: the other's will.
 * The worker relies on that for this time after a release, and sleeps no longer at a time: it then notices a
 * frame that only one of them has sent.
 */
const PAIRED_SLEEP_MS = 10;
/** A worker without a lease checks at this interval whether the agent has extended it. */
const LEASE_LOOK_MS = 5;
/** Commands that release frames, and those that have to come before or behind them. */
const WAIT_FOR_LEASE: ReadonlySet<Command> = new Set([
  Command.Start,
  Command.BeginCheckpoint,
  Command.Checkpoint,
  Command.ReleaseAlone,
]);
/**
 * Held segments are sent in parts after this time, or a tenth of the time after which they cost a checkpoint.
 */
const PART_AFTER_MS_MAX = 20;
const PART_AFTER_SHARE = 10;
/**
 * VMs that wait for each other cost a checkpoint after this share of the time that one of them may be late.
 */
const CROSSED_WAIT_SHARE = 5;
/** The interval at which deadlines of waiting frames are checked while there is work. */
const EXPIRE_INTERVAL_NS = 5_000_000;

const partAfterMs = (maxWaitMs: number) => Math.min(PART_AFTER_MS_MAX, maxWaitMs / PART_AFTER_SHARE);

export class DataPathLoop {
  readonly #opened = new DisposableStack();
  readonly #shared: SharedBlock;
  readonly #stats: Float64Array;
  readonly #state: StateView;
  readonly #primary: Ring;
  readonly #secondary: Ring;
  readonly #live: LiveFrames;
  /** With the first worker. */
  readonly #input: InputReplay | undefined;
  readonly #waiter: Waiter;
  readonly #busyWait = new BusyWait();
  readonly #comparer: Comparer;
  readonly #intake: Intake;
  readonly #releases: ReleaseQueue;
  readonly #lease: LeaseGate;
  /** The lease had run out, and the rings have not been read empty since. */
  #isBehind = false;
  /** Records of the secondary taken while nothing was compared; those of the primary are `released_late`. */
  #passedSecondary = 0;
  #epoch = 0;
  /**
   * closed: nothing is known yet; the primary's frames of an earlier agent stay in the ring. resuming: both
   * VMs' frames stay, until a checkpoint covers them. alone: held frames are released.
   */
  #mode: "closed" | "resuming" | "comparing" | "alone" = "closed";
  #nowNs = 0;
  #lastExpireNs = 0;
  /** When a frame was last released because both VMs had sent it. */
  #lastComparedNs = 0;
  #lastCompared = 0;
  #lastSequence = 0;
  #quit = false;

  /**
   * Opens the rings and the sockets, in the network namespace of the calling thread.
   *
   * @param report to the main thread: "done" and "diverged"
   * @throws SystemError; nothing stays open then
   */
  constructor(
    setup: WorkerSetup,
    private readonly report: (message: WorkerReport) => void,
  ) {
    using opened = new DisposableStack();
    const open = <T extends { close(): void }>(part: T): T => opened.adopt(part, (each) => each.close());
    this.#shared = new SharedBlock(setup.buffer);
    this.#stats = this.#shared.stats;
    const { rings, input } = setup;
    this.#state = open(new StateView(setup.stateFd, setup.worker));
    this.#lease = new LeaseGate(this.#state);
    this.#primary = open(new Ring(rings.primary));
    this.#secondary = open(new Ring(rings.secondary));
    const inject = open(new PacketSocket(setup.injectIfindex));
    this.#live = open(new LiveFrames(setup.liveFrames, setup.worker));
    if (input !== undefined) {
      const ring = open(new Ring(input));
      const socket = open(new PacketSocket(setup.tapIfindex, { mark: setup.replayMark }));
      this.#input = new InputReplay(ring, socket, this.#state);
    }
    this.#waiter = open(new Waiter(rings.doorbellFd, setup.wakeFd));
    this.#releases = new ReleaseQueue(this.#primary, inject, this.#live);
    this.#comparer = new Comparer({
      primary: this.#primary,
      secondary: this.#secondary,
      sink: {
        permit: (slot, change) => this.#release(slot, change),
        permitPart: (slot, change) => this.#releases.enqueuePart(slot, change),
        finish: (slot) => this.#secondary.done(slot),
        diverged: (found) => {
          const divergence = evidenceOf(found, this.#primary, this.#secondary);
          this.report({ type: "diverged", epoch: this.#epoch, divergence });
        },
      },
      memcmp,
      maxWaitNs: setup.maxWaitMs * 1e6,
      partAfterNs: (setup.partAfterMs ?? partAfterMs(setup.maxWaitMs)) * 1e6,
      crossedAfterNs: (setup.maxWaitMs / CROSSED_WAIT_SHARE) * 1e6,
      rules: parseRules(setup.rules),
      limits: setup.limits,
    });
    this.#intake = new Intake(this.#comparer, this.#primary, this.#secondary);
    this.#opened.use(opened.move());
  }

  /** Until Command.Quit, which is reported when everything is closed. */
  run(): void {
    try {
      while (!this.#quit) {
        if (this.turn() > 0) continue;
        const idleSinceNs = this.#nowNs;
        if (!this.#spin()) this.#sleep();
        this.#busyWait.waited(bootTimeNsNumber() - idleSinceNs);
      }
    } finally {
      this.close();
    }
    this.report({ type: "done", sequence: this.#lastSequence, count: 0 });
  }

  close(): void {
    this.#opened.dispose();
  }

  /** One look at the rings and the commands; returns how much there was to do. Does not wait. */
  turn(): number {
    this.#nowNs = bootTimeNsNumber();
    let work = 0;
    if (this.#waitsForLease()) {
      this.#isBehind = true;
    } else {
      work += this.#obeyDeferred();
      const taken = this.#takeRecords();
      work += taken;
      // A frame that lay in the ring meanwhile is late only if its counterpart is not there.
      if (taken < BATCH_RECORDS) this.#isBehind = false;
      this.#flush();
    }
    if (this.#input?.looksForLate(this.#nowNs)) work += this.#countReplayed(this.#input.replayLate());
    if (this.#nowNs - this.#lastExpireNs >= EXPIRE_INTERVAL_NS) this.#expire();
    if (this.#shared.sequence() !== this.#lastSequence) {
      this.#obey();
      work++;
    }
    if (work > 0) {
      const { releasedByComparison } = this.#comparer.stats;
      if (releasedByComparison !== this.#lastCompared) this.#lastComparedNs = this.#nowNs;
      this.#lastCompared = releasedByComparison;
      this.#publish();
    }
    return work;
  }

  /** Whether the worker may have frames to release, and has no lease. */
  #waitsForLease(): boolean {
    const releases = this.#mode === "comparing" || this.#mode === "alone" || this.#lease.hasDeferred;
    return releases && this.#lease.isShut(this.#nowNs);
  }

  #expire(): void {
    if (this.#mode !== "comparing" || this.#isBehind) return;
    this.#lastExpireNs = this.#nowNs;
    this.#comparer.expire(this.#nowNs);
    this.#flush();
  }

  #takeRecords(): number {
    switch (this.#mode) {
      case "comparing":
        return this.#intake.take(BATCH_RECORDS);
      case "alone":
        return this.#passSecondary(BATCH_RECORDS) + this.#passPrimary(BATCH_RECORDS);
      case "closed":
        return this.#passSecondary(BATCH_RECORDS);
      case "resuming":
        return 0;
    }
  }

  /** Records of the primary while nothing is compared. */
  #passPrimary(limit: number): number {
    let count = 0;
    for (; count < limit; count++) {
      const slot = this.#primary.next();
      if (slot < 0) break;
      this.#release(slot);
    }
    this.#stats[STAT_INDEX.released_late]! += count;
    return count;
  }

  /** Records of the secondary while nothing is compared. */
  #passSecondary(limit: number): number {
    const count = discardRecords(this.#secondary, limit);
    this.#passedSecondary += count;
    return count;
  }

  #release(slot: number, change: FrameChange | null = null): void {
    const offset = this.#primary.offset(slot);
    const view = this.#primary.view;
    const heldSince = recordTimeNs(view, offset);
    this.#shared.observeHold(Math.max(0, this.#nowNs - heldSince) / 1e9);
    if (change === null) {
      this.#releases.enqueue(slot);
    } else {
      if (change.silent) this.#stats[STAT_INDEX.sent_in_parts]! += 1;
      this.#releases.enqueueChanged(slot, change);
    }
  }

  #flush(): void {
    this.#releases.flush();
    this.#stats[STAT_INDEX.send_failed] = this.#releases.failedFrames;
    this.#stats[STAT_INDEX.live_frames] = this.#live.sent;
    this.#stats[STAT_INDEX.joined_frames] = this.#releases.joinedFrames;
  }

  /**
   * The primary's records up to the newest of this moment: a VM that keeps sending must not delay a command.
   */
  #drainWhatIsThere(): void {
    const until = this.#primary.producedTo();
    do this.#flush();
    while (!this.#primary.hasRead(until) && this.#drainPrimary() > 0);
    this.#flush();
  }

  #drainPrimary(): number {
    if (this.#mode === "comparing") return this.#intake.takePrimary(BATCH_RECORDS);
    return this.#mode === "alone" ? this.#passPrimary(BATCH_RECORDS) : 0;
  }

  #countReplayed(frames: number): number {
    this.#stats[STAT_INDEX.replayed_frames]! += frames;
    return frames;
  }

  #obey(): void {
    const sequence = this.#shared.sequence();
    this.#lastSequence = sequence;
    const command = this.#shared.command();
    const argumentA = this.#shared.argument(0);
    const argumentB = this.#shared.argument(1);
    if (command === Command.Quit) {
      this.#quit = true;
      return;
    }
    const isShut = this.#lease.isShut(bootTimeNsNumber());
    if (!isShut) this.#obeyDeferred();
    let count = 0;
    if (isShut && WAIT_FOR_LEASE.has(command)) this.#lease.defer({ command, argumentA, argumentB });
    else count = this.#carryOut(command, argumentA, argumentB);
    this.#flush();
    this.#publish();
    this.report({ type: "done", sequence, count });
  }

  /** Carries out the commands that waited for the lease; returns how many there were. */
  #obeyDeferred(): number {
    let commands = 0;
    for (;;) {
      const next = this.#lease.nextDeferred();
      if (next === undefined) return commands;
      this.#carryOut(next.command, next.argumentA, next.argumentB);
      commands++;
    }
  }

  /** Returns what the command has counted. */
  #carryOut(command: Command, argumentA: number, argumentB: number): number {
    switch (command) {
      case Command.Start:
        this.#epoch = argumentB;
        // Frames of an earlier protection belong to no comparison of this one.
        this.#comparer.releaseAll();
        this.#comparer.checkpoint(0, this.#epoch);
        this.#mode = "comparing";
        return 0;
      case Command.Resume:
        this.#mode = "resuming";
        return 0;
      case Command.BeginCheckpoint:
        this.#comparer.beginCheckpoint(argumentA);
        return 0;
      case Command.Checkpoint:
        if (this.#mode === "resuming") this.#mode = "comparing";
        // Everything that the primary sent before it stopped is in the ring already: the boundary is in the
        // past.
        this.#drainWhatIsThere();
        this.#epoch = argumentB;
        return this.#comparer.checkpoint(argumentA, this.#epoch).released;
      case Command.ReleaseAlone: {
        const released = this.#comparer.releaseAll();
        this.#mode = "alone";
        this.#drainWhatIsThere();
        return released;
      }
      case Command.ReplayInput:
        return this.#countReplayed(this.#input?.replay() ?? 0);
      case Command.Discard:
        return discardRecords(this.#primary) + (this.#input?.discard() ?? 0);
      case Command.Quit:
      case Command.None:
        return 0;
    }
  }

  /** Waits a moment for the next record; true if there is one. */
  #spin(): boolean {
    if (this.#busyWait.ns === 0 || this.#waitsForLease()) return false;
    const until = this.#nowNs + this.#busyWait.ns;
    const readsPrimary = this.#mode === "comparing" || this.#mode === "alone";
    const readsSecondary = this.#mode !== "resuming";
    do {
      if (
        (readsPrimary && this.#primary.unreadBytes() > 0) ||
        (readsSecondary && this.#secondary.unreadBytes() > 0) ||
        this.#shared.sequence() !== this.#lastSequence
      ) {
        return true;
      }
    } while (bootTimeNsNumber() < until);
    return false;
  }

  #sleep(): void {
    const isPaired = this.#mode === "comparing" && this.#nowNs - this.#lastComparedNs < PAIRED_SLEEP_MS * 1e6;
    this.#state.consumerSleeping = isPaired ? SLEEP.PAIRED : SLEEP.ANY;
    // Once more after the flag is set: a record from between the last look and the flag rang no bell.
    if (this.turn() === 0) {
      const waitMs = Math.min(this.#untilDeadlineMs(), this.#sleepMsMax(isPaired));
      if (waitMs > 0) {
        this.#stats[STAT_INDEX.wakeups]! += 1;
        this.#waiter.wait(waitMs);
      }
      // Deadlines come after the next turn's records: one of them may be the counterpart of a frame that
      // waits.
      this.#lastExpireNs = Number.NEGATIVE_INFINITY;
    }
    this.#state.consumerSleeping = SLEEP.NONE;
  }

  #untilDeadlineMs(): number {
    if (this.#mode !== "comparing" || this.#isBehind) return Number.POSITIVE_INFINITY;
    return Math.ceil((this.#comparer.nextDeadlineNs() - this.#nowNs) / 1e6);
  }

  #sleepMsMax(isPaired: boolean): number {
    if (this.#input?.looksForLate(this.#nowNs)) return LATE_INPUT_SLEEP_MS;
    if (this.#waitsForLease()) return LEASE_LOOK_MS;
    return isPaired ? PAIRED_SLEEP_MS : SLEEP_MS_MAX;
  }

  #publish(): void {
    const stats = this.#comparer.stats;
    this.#stats[STAT_INDEX.primary_frames] =
      this.#intake.primaryFrames + this.#stats[STAT_INDEX.released_late]!;
    this.#stats[STAT_INDEX.secondary_frames] = this.#intake.secondaryFrames + this.#passedSecondary;
    this.#stats[STAT_INDEX.held_frames] = stats.heldFrames;
    this.#stats[STAT_INDEX.secondary_pending_frames] = stats.pendingFrames;
    this.#stats[STAT_INDEX.released_compared] = stats.releasedByComparison;
    this.#stats[STAT_INDEX.released_checkpoint] = stats.releasedByCheckpoint;
    this.#stats[STAT_INDEX.released_bypass] = stats.releasedBypass;
    this.#stats[STAT_INDEX.released_passthrough] = stats.releasedPassthrough;
    this.#stats[STAT_INDEX.released_alone] = stats.releasedAlone;
    this.#stats[STAT_INDEX.windows_clamped] = stats.clampedWindows;
    this.#stats[STAT_INDEX.parts_sent] = stats.parts;
    this.#stats[STAT_INDEX.secondary_stale] = stats.staleFrames;
    this.#stats[STAT_INDEX.flows] = stats.flows;
  }
}
