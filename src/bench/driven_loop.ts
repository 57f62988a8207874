/**
 * The loop of a data-path worker (src/datapath/loop.ts), turned by a benchmark: its rings are filled while it
 * takes nothing, so that the clock runs for comparison and release alone.
 */
import { COMPARER_LIMITS } from "../compare/comparer.ts";
import { DataPathLoop } from "../datapath/loop.ts";
import { Command, SharedBlock, type WorkerReport, type WorkerSetup } from "../datapath/shared.ts";
import { closeFd } from "../ffi/libc.ts";
import { createEventfd } from "../ffi/poll.ts";

/** No frame waits this long: nothing is reported late or sent in parts. */
const MAX_WAIT_MS = 3_600_000;

/** The steps of a loop; Done: it has taken the last one. */
export enum Task {
  Done = 0,
  Begin = 1,
  Drain = 2,
  ReleaseAlone = 3,
  Rest = 4,
  Quit = 5,
}

/** The rest of a worker's setup is the same for each loop here. */
export type DrivenLoopSetup = Pick<
  WorkerSetup,
  "buffer" | "worker" | "rings" | "liveFrames" | "stateFd" | "injectIfindex"
>;

/** Belongs into the network namespace of the taps, with everything that it does. */
export class DrivenLoop {
  readonly #loop: DataPathLoop;
  readonly #commands: SharedBlock;
  readonly #wakeFd = createEventfd();
  #divergence: string | undefined;

  constructor(setup: DrivenLoopSetup) {
    this.#commands = new SharedBlock(setup.buffer);
    const report = (message: WorkerReport) => {
      if (message.type !== "diverged") return;
      this.#divergence ??= `${message.divergence.class}: ${message.divergence.detail}`;
    };
    try {
      this.#loop = new DataPathLoop(
        {
          ...setup,
          input: undefined,
          wakeFd: this.#wakeFd,
          // For replayed input, which there is not.
          tapIfindex: 0,
          replayMark: 0,
          maxWaitMs: MAX_WAIT_MS,
          // The rings are filled before: every frame is older than any such time.
          partAfterMs: Number.POSITIVE_INFINITY,
          rules: {},
          limits: COMPARER_LIMITS,
        },
        report,
      );
      this.rest();
    } catch (error) {
      closeFd(this.#wakeFd);
      throw error;
    }
  }

  /**
   * Takes nothing from the rings until the next step.
   *
   * @throws Error if equal frames have diverged
   */
  rest(): void {
    if (this.#divergence !== undefined) throw new Error(`Equal frames diverged: ${this.#divergence}.`);
    this.#obey(Command.Resume);
  }

  /**
   * Forgets the streams that were compared: the next ones do not continue them. Then {@link drain} compares.
   */
  begin(): void {
    this.#obey(Command.Start);
  }

  /** Releases the primary's frames unseen. */
  releaseAlone(): void {
    this.#obey(Command.ReleaseAlone);
    this.drain();
  }

  /** Takes all that is in the rings. */
  drain(): void {
    while (this.#loop.turn() > 0);
  }

  take(task: Task): void {
    if (task === Task.Begin) this.begin();
    else if (task === Task.Drain) this.drain();
    else if (task === Task.ReleaseAlone) this.releaseAlone();
    else if (task === Task.Rest) this.rest();
    else if (task === Task.Quit) this.close();
  }

  close(): void {
    this.#loop.close();
    closeFd(this.#wakeFd);
  }

  #obey(command: Command): void {
    this.#commands.post(command, 0, 0);
    this.#loop.turn();
  }
}

/** Places in the shared Int32Array: the task, and whether the thread has failed. */
export const SHARED = { task: 0, failed: 1 } as const;
export const SHARED_INTS = 2;

export interface ReleaseThreadSetup {
  loop: DrivenLoopSetup;
  tasks: SharedArrayBuffer;
}
