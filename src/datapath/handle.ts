/** The main thread's handle on the data-path worker of one VM. */
import type { ReportedDivergence } from "../divergence/recorder.ts";
import { createEventfd, signalEventfd } from "../ffi/poll.ts";
import { Command, SharedBlock, type WorkerReport, type WorkerSetup } from "./shared.ts";

export interface DataPathEvents {
  /** `epoch`: the one in force when the frames were compared. */
  diverged(divergence: ReportedDivergence, epoch: number): void;
  /** The worker has stopped; nothing is released any more. */
  failed(message: string): void;
}

export class DataPath {
  readonly shared = new SharedBlock();
  readonly #wakeFd = createEventfd();
  readonly #worker: Worker;
  readonly #ready: Promise<void>;
  #last: Promise<unknown> = Promise.resolve();
  #waiting:
    | { sequence: number; resolve: (count: number) => void; reject: (error: Error) => void }
    | undefined;
  #ended: Error | undefined;

  constructor(setup: Omit<WorkerSetup, "buffer" | "wakeFd">, events: DataPathEvents) {
    this.#worker = new Worker(new URL("./worker.ts", import.meta.url).href);
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#ready = promise;
    promise.catch(() => undefined);
    const fail = (message: string) => {
      if (this.#ended !== undefined) return;
      this.#ended = new Error(message);
      reject(this.#ended);
      this.#waiting?.reject(this.#ended);
      events.failed(message);
    };
    this.#worker.onmessage = (message: MessageEvent<WorkerReport>) => {
      const report = message.data;
      if (report.type === "ready") resolve();
      else if (report.type === "diverged") events.diverged(report.divergence, report.epoch);
      else if (report.type === "failed") fail(report.message);
      else if (this.#waiting?.sequence === report.sequence) this.#waiting.resolve(report.count);
    };
    this.#worker.onerror = (error) => fail(`the data-path worker failed: ${error.message}`);
    this.#worker.postMessage({
      ...setup,
      buffer: this.shared.buffer,
      wakeFd: this.#wakeFd,
    } satisfies WorkerSetup);
  }

  ready(): Promise<void> {
    return this.#ready;
  }

  /** Starts comparing with `epoch`. */
  start(epoch: number): Promise<number> {
    return this.#command(Command.Start, 0, epoch);
  }

  /** A checkpoint is about to be asked for: primary frames newer than `horizonNs` are not compared until it is loaded. */
  beginCheckpoint(horizonNs: number): Promise<number> {
    return this.#command(Command.BeginCheckpoint, horizonNs);
  }

  /** A checkpoint has been loaded by the secondary. Resolves with the number of frames released. */
  checkpoint(boundaryNs: number, newEpoch: number): Promise<number> {
    return this.#command(Command.Checkpoint, boundaryNs, newEpoch);
  }

  /** Releases everything held. Resolves with the number of frames. */
  releaseAlone(): Promise<number> {
    return this.#command(Command.ReleaseAlone);
  }

  /** Puts diverted input back through the mirror and ends the diversion. Resolves with the number of frames. */
  replayInput(): Promise<number> {
    return this.#command(Command.ReplayInput);
  }

  /** Drops what an earlier agent left held or diverted, of a VM that is not to be seen again. Resolves with the number of frames. */
  discard(): Promise<number> {
    return this.#command(Command.Discard);
  }

  /** Resolves when the data path has looked at its commands: it lives. */
  ping(): Promise<number> {
    return this.#command(Command.None);
  }

  async close(): Promise<void> {
    if (this.#ended === undefined) await this.#command(Command.Quit).catch(() => undefined);
    this.#ended ??= new Error("the data path was closed");
    this.#worker.terminate();
  }

  #command(command: Command, argumentA = 0, argumentB = 0): Promise<number> {
    const run = this.#last.then(async () => {
      await this.#ready;
      if (this.#ended !== undefined) throw this.#ended;
      return new Promise<number>((resolve, reject) => {
        this.#waiting = { sequence: this.shared.post(command, argumentA, argumentB), resolve, reject };
        signalEventfd(this.#wakeFd);
      });
    });
    this.#last = run.catch(() => undefined);
    return run;
  }
}
