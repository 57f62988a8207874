/** The main thread's handle on one data-path worker. */
import type { ReportedDivergence } from "../divergence/recorder.ts";
import { closeFd } from "../ffi/libc.ts";
import { createEventfd, signalEventfd } from "../ffi/poll.ts";
import { Command, SharedBlock, type WorkerReport, type WorkerSetup } from "./shared.ts";

export interface WorkerEvents {
  diverged(divergence: ReportedDivergence, epoch: number): void;
  failed(message: string): void;
}

export class WorkerHandle {
  readonly shared = new SharedBlock();
  /** Rejects if the worker cannot be started. */
  readonly ready: Promise<void>;
  readonly #wakeFd = createEventfd();
  readonly #worker: Worker;
  /** Settles when the newest command is done. */
  #last: Promise<unknown> = Promise.resolve();
  #waiting:
    | { sequence: number; resolve: (count: number) => void; reject: (error: Error) => void }
    | undefined;
  #ended: Error | undefined;

  constructor(setup: Omit<WorkerSetup, "buffer" | "wakeFd">, events: WorkerEvents) {
    try {
      this.#worker = new Worker(new URL("./worker.ts", import.meta.url).href);
    } catch (error) {
      closeFd(this.#wakeFd);
      throw error;
    }
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.ready = promise;
    promise.catch(() => undefined); // whoever waits for `ready` gets the error
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

  /**
   * Gives the worker a command; it must be ready and have done the one before. Resolves with what it has
   * counted.
   */
  command(command: Command, argumentA = 0, argumentB = 0): Promise<number> {
    if (this.#ended !== undefined) return Promise.reject(this.#ended);
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    this.#waiting = { sequence: this.shared.post(command, argumentA, argumentB), resolve, reject };
    this.#last = promise.catch(() => undefined); // close() only waits for its end
    signalEventfd(this.#wakeFd);
    return promise;
  }

  /** Ends the worker when it has done its last command; its thread has closed everything then. */
  async close(): Promise<void> {
    await this.#last;
    // A worker that did not start has nothing open, and one that failed has closed it.
    await this.ready.then(() => this.command(Command.Quit)).catch(() => undefined);
    this.#ended ??= new Error("the data path was closed");
    this.#worker.terminate();
    closeFd(this.#wakeFd);
  }
}
