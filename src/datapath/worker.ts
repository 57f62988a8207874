/**
 * The data path of one VM, or one worker's share of it, in a thread of its own: packet rings -> comparer -> packet
 * socket. Workers of a VM share nothing but the flags in its state: which frames are whose is decided by the BPF
 * programs (bpf/worker.h), and each worker has its own commands to obey (handle.ts).
 *
 * It never returns to its event loop while it runs: it drains, looks on for a moment if that promises anything
 * (BusyWait), then sleeps in epoll_wait on the doorbell (rung by the BPF programs only while `consumer_sleeping` is set)
 * and on the main thread's eventfd.
 */
import { Comparer, parseRules } from "../compare/comparer.ts";
import type { Divergence } from "../compare/divergence.ts";
import type { FrameChange } from "../compare/frame_change.ts";
import { Intake } from "../compare/intake.ts";
import { recordTimeNs } from "../compare/parsed_frame.ts";
import { RECORD, RECORD_HEADER_BYTES, RECORD_SEND_OFFSET, SLEEP } from "../ffi/layout.ts";
import { bootTimeNsNumber, memcmp } from "../ffi/libc.ts";
import { LiveFrames } from "../ffi/live_frames.ts";
import { PacketSocket } from "../ffi/packet_socket.ts";
import { Waiter } from "../ffi/poll.ts";
import { Ring } from "../ffi/ring.ts";
import { StateView } from "../ffi/state_view.ts";
import { BusyWait } from "./busy_wait.ts";
import { evidenceOf } from "./evidence.ts";
import { ReleaseQueue } from "./release_queue.ts";
import {
  BATCH_RECORDS,
  Command,
  SharedBlock,
  STAT_INDEX,
  type WorkerReport,
  type WorkerSetup,
} from "./shared.ts";

declare const self: Worker;

/** Replayed frames are sent at least this often. */
const REPLAY_BATCH = 64;
/** Each round puts back what has come during the one before. */
const REPLAY_ROUNDS_MAX = 32;
const SLEEP_MS_MAX = 1_000;
/**
 * While both VMs send the same, a large frame of one of them need not wake the worker: the other's will. That is relied on for so long
 * after a frame was released, and for so long it is asleep at most: what only one of them has sent is noticed by then.
 */
const PAIRED_SLEEP_MS = 10;
/**
 * A program that found input diverted may put its frame into the ring only after the diversion is over and the ring was
 * seen empty. For so long it is looked for, this often.
 */
const LATE_INPUT_NS = 50_000_000;
const LATE_INPUT_SLEEP_MS = 1;
/** Held segments are sent in parts after this time, or a tenth of the time after which they cost a checkpoint. */
const PART_AFTER_MS_MAX = 20;
/** VMs that wait for each other cost a checkpoint after this share of the time that one of them may be late. */
const CROSSED_WAIT_SHARE = 5;
/** Deadlines of waiting frames are looked at this often while there is work. */
const EXPIRE_INTERVAL_NS = 5_000_000;

const report = (message: WorkerReport) => self.postMessage(message);

class DataPathLoop {
  readonly #shared: SharedBlock;
  readonly #stats: Float64Array;
  readonly #state: StateView;
  readonly #primary: Ring;
  readonly #secondary: Ring;
  readonly #inject: PacketSocket;
  readonly #live: LiveFrames;
  /** Diverted input and the way back for it, with the first worker. */
  readonly #input: { readonly ring: Ring; readonly socket: PacketSocket } | undefined;
  readonly #waiter: Waiter;
  readonly #busyWait = new BusyWait();
  readonly #comparer: Comparer;
  readonly #intake: Intake;
  readonly #releases: ReleaseQueue;
  /** Slots of the input ring queued for sending, to be given back after the flush. */
  readonly #replayed = new Int32Array(REPLAY_BATCH);
  /** Records of the secondary taken while nothing was compared; those of the primary are `released_late`. */
  #passedSecondary = 0;
  #epoch = 0;
  /**
   * closed: nothing is known yet; what an earlier agent left of the primary's stays in the ring. resuming: what either has left
   * stays, until a checkpoint covers it. alone: what is held is released.
   */
  #mode: "closed" | "resuming" | "comparing" | "alone" = "closed";
  #nowNs = 0;
  #lastExpireNs = 0;
  /** When a frame was last released because both VMs had sent it. */
  #lastComparedNs = 0;
  #lastCompared = 0;
  #lateInputUntilNs = 0;
  #lastSequence = 0;
  #quit = false;

  constructor(setup: WorkerSetup) {
    this.#shared = new SharedBlock(setup.buffer);
    this.#stats = this.#shared.stats;
    const { rings, input } = setup;
    this.#state = new StateView(setup.stateFd, setup.worker);
    this.#primary = new Ring(rings.primary);
    this.#secondary = new Ring(rings.secondary);
    this.#inject = new PacketSocket(setup.injectIfindex);
    this.#live = new LiveFrames(setup.liveFrames, setup.worker);
    if (input !== undefined) {
      this.#input = {
        ring: new Ring(input),
        socket: new PacketSocket(setup.tapIfindex, { mark: setup.replayMark }),
      };
    }
    this.#waiter = new Waiter(rings.doorbellFd, setup.wakeFd);
    this.#releases = new ReleaseQueue(this.#primary, this.#inject, this.#live);
    this.#comparer = new Comparer({
      primary: this.#primary,
      secondary: this.#secondary,
      sink: {
        release: (slot, change) => this.#release(slot, change),
        part: (slot, change) => this.#releases.part(slot, change),
        finish: (slot) => this.#secondary.done(slot),
        diverged: (found: Divergence) => {
          const divergence = evidenceOf(found, this.#primary, this.#secondary);
          report({ type: "diverged", epoch: this.#epoch, divergence });
        },
      },
      memcmp,
      maxWaitNs: setup.maxWaitMs * 1e6,
      partAfterNs: Math.min(PART_AFTER_MS_MAX, setup.maxWaitMs / 10) * 1e6,
      crossedAfterNs: (setup.maxWaitMs / CROSSED_WAIT_SHARE) * 1e6,
      rules: parseRules(setup.rules),
      limits: setup.limits,
    });
    this.#intake = new Intake(this.#comparer, this.#primary, this.#secondary);
  }

  run(): void {
    while (!this.#quit) {
      if (this.#turn() > 0) continue;
      const idleSinceNs = this.#nowNs;
      if (!this.#spin()) this.#sleep();
      this.#busyWait.waited(bootTimeNsNumber() - idleSinceNs);
    }
    this.#waiter.close();
    this.#inject.close();
    this.#live.close();
    this.#input?.socket.close();
    for (const ring of [this.#primary, this.#secondary, this.#input?.ring]) ring?.close();
    this.#state.close();
  }

  /** One look at everything; returns how much there was to do. */
  #turn(): number {
    this.#nowNs = bootTimeNsNumber();
    let work = this.#takeRecords();
    this.#flush();
    if (this.#nowNs < this.#lateInputUntilNs) work += this.#replayLateInput();
    if (this.#mode === "comparing" && this.#nowNs - this.#lastExpireNs >= EXPIRE_INTERVAL_NS) {
      this.#lastExpireNs = this.#nowNs;
      this.#comparer.expire(this.#nowNs);
      this.#flush();
    }
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
    const count = this.#discard(this.#secondary, limit);
    this.#passedSecondary += count;
    return count;
  }

  #release(slot: number, change: FrameChange | null = null): void {
    const offset = this.#primary.offset(slot);
    const view = this.#primary.view;
    const heldSince = recordTimeNs(view, offset);
    this.#shared.observeHold(Math.max(0, this.#nowNs - heldSince) / 1e9);
    if (change === null) {
      this.#releases.release(slot);
    } else {
      if (change.silent) this.#stats[STAT_INDEX.sent_in_parts]! += 1;
      this.#releases.releaseChanged(slot, change);
    }
  }

  #flush(): void {
    this.#releases.flush();
    this.#stats[STAT_INDEX.send_failed] = this.#releases.failedFrames;
    this.#stats[STAT_INDEX.live_frames] = this.#live.sent;
    this.#stats[STAT_INDEX.joined_frames] = this.#releases.joinedFrames;
  }

  /** Puts diverted input back in order, until none is left and the diversion is over. */
  #replayInput(): number {
    const input = this.#input;
    if (input === undefined) return 0;
    let count = 0;
    // What arrives while we replay is diverted too, so that new input goes its own way again only when the ring is empty;
    // or when so much comes that it never would be. Then some is late, for both VMs alike.
    for (let round = 0; round < REPLAY_ROUNDS_MAX && input.ring.unreadBytes() > 0; round++) {
      count += this.#replayOnce(input);
    }
    this.#state.divertInput = false;
    this.#lateInputUntilNs = bootTimeNsNumber() + LATE_INPUT_NS;
    return count + this.#replayOnce(input);
  }

  /** Puts back what was diverted so late that replayInput() did not find it. */
  #replayLateInput(): number {
    const input = this.#input;
    if (input === undefined) return 0;
    const until = input.ring.producedTo();
    // In this order: with the next checkpoint begun meanwhile, nothing in front of `until` is of its diversion.
    if (this.#state.divertInput) return 0;
    const count = this.#replayOnce(input, until);
    this.#stats[STAT_INDEX.replayed_frames]! += count;
    return count;
  }

  /** Puts back what is in the ring in front of `until`, or at this moment. */
  #replayOnce(
    { ring, socket }: { readonly ring: Ring; readonly socket: PacketSocket },
    until = ring.producedTo(),
  ): number {
    let count = 0;
    const view = ring.view;
    for (;;) {
      let queued = 0;
      while (queued < REPLAY_BATCH && !ring.hasRead(until)) {
        const slot = ring.next();
        if (slot < 0) break;
        const offset = ring.offset(slot);
        const bytes =
          RECORD_HEADER_BYTES - RECORD_SEND_OFFSET + view.getUint32(offset + RECORD.frame_bytes, true);
        socket.queue(ring.address + offset + RECORD_SEND_OFFSET, bytes);
        this.#replayed[queued++] = slot;
      }
      if (queued === 0) return count;
      socket.flush();
      for (let i = 0; i < queued; i++) ring.done(this.#replayed[i]!);
      count += queued;
    }
  }

  /** The primary's records up to the newest one of this moment: a VM that sends on and on must not keep a command going. */
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

  /** Drops what is in a ring. */
  #discard(ring: Ring, limit = Number.POSITIVE_INFINITY): number {
    let count = 0;
    for (; count < limit; count++) {
      const slot = ring.next();
      if (slot < 0) break;
      ring.done(slot);
    }
    return count;
  }

  #obey(): void {
    const sequence = this.#shared.sequence();
    this.#lastSequence = sequence;
    let count = 0;
    switch (this.#shared.command()) {
      case Command.Start:
        this.#epoch = this.#shared.argument(1);
        // What a former pairing left behind belongs to no comparison of this one.
        this.#comparer.releaseAll();
        this.#comparer.checkpoint(0, this.#epoch);
        this.#mode = "comparing";
        break;
      case Command.Resume:
        this.#mode = "resuming";
        break;
      case Command.BeginCheckpoint:
        this.#comparer.beginCheckpoint(this.#shared.argument(0));
        break;
      case Command.Checkpoint: {
        if (this.#mode === "resuming") this.#mode = "comparing";
        // Everything that the primary sent before it stopped is in the ring already: the boundary is in the past.
        this.#drainWhatIsThere();
        this.#epoch = this.#shared.argument(1);
        const { released } = this.#comparer.checkpoint(this.#shared.argument(0), this.#epoch);
        count = released;
        break;
      }
      case Command.ReleaseAlone:
        count = this.#comparer.releaseAll();
        this.#mode = "alone";
        this.#drainWhatIsThere();
        break;
      case Command.ReplayInput:
        count = this.#replayInput();
        this.#stats[STAT_INDEX.replayed_frames]! += count;
        break;
      case Command.Discard:
        count = this.#discard(this.#primary);
        if (this.#input !== undefined) count += this.#discard(this.#input.ring);
        break;
      case Command.Quit:
        this.#quit = true;
        break;
      case Command.None:
        break;
    }
    this.#flush();
    this.#publish();
    report({ type: "done", sequence, count });
  }

  /** Waits a moment for the next record; true if there is one. */
  #spin(): boolean {
    if (this.#busyWait.ns === 0) return false;
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
    if (this.#turn() === 0) {
      const deadlineNs =
        this.#mode === "comparing" ? this.#comparer.nextDeadlineNs() : Number.POSITIVE_INFINITY;
      const waitMs = Math.ceil((deadlineNs - this.#nowNs) / 1e6);
      if (waitMs > 0) {
        this.#stats[STAT_INDEX.wakeups]! += 1;
        let longest = isPaired ? PAIRED_SLEEP_MS : SLEEP_MS_MAX;
        if (this.#nowNs < this.#lateInputUntilNs) longest = LATE_INPUT_SLEEP_MS;
        this.#waiter.wait(Math.min(waitMs, longest));
      }
      if (this.#mode === "comparing") {
        this.#nowNs = bootTimeNsNumber();
        this.#lastExpireNs = this.#nowNs;
        this.#comparer.expire(this.#nowNs);
      }
    }
    this.#state.consumerSleeping = SLEEP.NONE;
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

self.onmessage = (message: MessageEvent<WorkerSetup>) => {
  try {
    const loop = new DataPathLoop(message.data);
    report({ type: "ready" });
    loop.run();
  } catch (error) {
    report({ type: "failed", message: (error as Error).stack ?? String(error) });
  }
};
