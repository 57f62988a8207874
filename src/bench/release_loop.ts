/**
 * What a data-path worker does with the records of its rings, for the benchmarks: the same comparer, release
 * queue and ways out, on records that are there already.
 */
import { Comparer } from "../compare/comparer.ts";
import { Intake } from "../compare/intake.ts";
import { recordTimeNs } from "../compare/parsed_frame.ts";
import { ReleaseQueue } from "../datapath/release_queue.ts";
import { BATCH_RECORDS } from "../datapath/shared.ts";
import { bootTimeNsNumber, memcmp } from "../ffi/libc.ts";
import { LiveFrames, type LiveFramesSetup } from "../ffi/live_frames.ts";
import { PacketSocket } from "../ffi/packet_socket.ts";
import { Ring, type RingSetup } from "../ffi/ring.ts";

export interface ReleaseLoopSetup {
  worker: number;
  primary: RingSetup;
  secondary: RingSetup;
  liveFrames: LiveFramesSetup;
  injectIfindex: number;
}

/** What a thread that runs a loop is told to do (release_thread.ts). */
export enum Task {
  Done = 0,
  CompareAndRelease = 1,
  Release = 2,
  Forget = 3,
  Quit = 4,
}

/**
 * Places in the shared Int32Array: the task, whether the thread has failed, and what its loop has counted so
 * far.
 */
export const SHARED = { task: 0, failed: 1, joinedFrames: 2, failedFrames: 3 } as const;
export const SHARED_INTS = 4;

export interface ReleaseThreadSetup {
  loop: ReleaseLoopSetup;
  buffer: SharedArrayBuffer;
}

/** Belongs into the network namespace of the taps, with everything that it does. */
export class ReleaseLoop {
  readonly #primary: Ring;
  readonly #secondary: Ring;
  readonly #inject: PacketSocket;
  readonly #live: LiveFrames;
  readonly #releases: ReleaseQueue;
  readonly #comparer: Comparer;
  readonly #intake: Intake;
  #nowNs = 0;
  #heldNs = 0;
  #divergence: string | undefined;

  constructor({ worker, primary, secondary, liveFrames, injectIfindex }: ReleaseLoopSetup) {
    this.#primary = new Ring(primary);
    this.#secondary = new Ring(secondary);
    this.#inject = new PacketSocket(injectIfindex);
    this.#live = new LiveFrames(liveFrames, worker);
    this.#releases = new ReleaseQueue(this.#primary, this.#inject, this.#live);
    this.#comparer = new Comparer({
      primary: this.#primary,
      secondary: this.#secondary,
      memcmp,
      sink: {
        release: (slot) => this.#release(slot),
        finish: (slot) => this.#secondary.done(slot),
        diverged: (divergence) => {
          this.#divergence ??= `${divergence.class}: ${divergence.detail}`;
        },
      },
      maxWaitNs: 3_600e9,
    });
    this.#intake = new Intake(this.#comparer, this.#primary, this.#secondary);
  }

  /** Segments that left as part of the frame before them, so far. */
  get joinedFrames(): number {
    return this.#releases.joinedFrames;
  }

  /** Frames that could not be sent, so far. */
  get failedFrames(): number {
    return this.#releases.failedFrames;
  }

  compareAndRelease(): void {
    for (let work = 1; work > 0; ) {
      this.#nowNs = bootTimeNsNumber();
      work = this.#intake.take(BATCH_RECORDS);
      this.#releases.flush();
    }
  }

  /** Releases what one VM has sent unseen. */
  release(): void {
    const ring = this.#primary;
    for (let slot = ring.next(); slot >= 0; slot = ring.next()) this.#release(slot);
    this.#releases.flush();
  }

  /**
   * Forgets the streams: the next ones do not continue them.
   *
   * @throws Error if what was the same has diverged
   */
  forget(): void {
    if (this.#divergence !== undefined) throw new Error(`Equal frames diverged: ${this.#divergence}.`);
    this.#comparer.releaseAll();
  }

  close(): void {
    for (const part of [this.#inject, this.#live, this.#primary, this.#secondary]) part.close();
  }

  #release(slot: number): void {
    const { view } = this.#primary;
    // The worker keeps a histogram of it.
    this.#heldNs += this.#nowNs - recordTimeNs(view, this.#primary.offset(slot));
    this.#releases.release(slot);
  }
}
