/**
 * The main thread's handle on the data path of one VM: one worker, or several that share its flows. A command
 * goes to all of them and is done when all have done it: no worker compares with an epoch that another has
 * left.
 */
import type { DataPlane } from "../ffi/data_plane.ts";
import { Command, DataPathStats, type WorkerSetup } from "./shared.ts";
import { type WorkerEvents, WorkerHandle } from "./worker_handle.ts";

export interface DataPathEvents extends WorkerEvents {
  /** `epoch`: the one in force when the frames were compared. */
  diverged: WorkerEvents["diverged"];
  /** A worker has stopped and releases nothing of its flows. Called at most one time. */
  failed: WorkerEvents["failed"];
}

interface DataPathSetup
  extends Omit<WorkerSetup, "buffer" | "wakeFd" | "worker" | "rings" | "input" | "liveFrames" | "stateFd"> {
  /** Has to stay open for as long as the data path. */
  dataPlane: Pick<DataPlane, "workers" | "input" | "liveFrames" | "stateFd">;
}

export class DataPath {
  /** The numbers of all workers together. */
  readonly shared: DataPathStats;
  readonly #workers: readonly WorkerHandle[];
  readonly #ready: Promise<unknown>;
  #last: Promise<unknown> = Promise.resolve();
  #ended: Error | undefined;

  /**
   * Starts the workers, in the network namespace of the calling thread. Does not throw: see {@link ready}.
   */
  constructor({ dataPlane, ...setup }: DataPathSetup, events: DataPathEvents) {
    const failed = (message: string) => {
      if (this.#ended !== undefined) return;
      this.#ended = new Error(message);
      events.failed(message);
    };
    const diverged = events.diverged.bind(events);
    const { stateFd, input, liveFrames } = dataPlane;
    const workers: WorkerHandle[] = [];
    const ready: Promise<void>[] = [];
    try {
      for (const [worker, rings] of dataPlane.workers.entries()) {
        const own = { ...setup, worker, rings, input: worker === 0 ? input : undefined, liveFrames, stateFd };
        workers.push(new WorkerHandle(own, { diverged, failed }));
        ready.push(workers[worker].ready);
      }
    } catch (error) {
      // Workers that have started need close(), so this constructor must not throw.
      ready.push(Promise.reject(error));
    }
    this.#workers = workers;
    this.shared = new DataPathStats(workers.map(({ shared }) => shared));
    this.#ready = Promise.all(ready);
    this.#ready.catch(() => undefined); // each command waits for it and fails with its reason
  }

  /** Rejects if a worker cannot be started; the others run until close(). */
  async ready(): Promise<void> {
    await this.#ready;
  }

  /** Starts comparing with `epoch`. */
  start(epoch: number): Promise<number> {
    return this.#command(Command.Start, 0, epoch);
  }

  /**
   * Records of an earlier agent, and new ones, stay in the rings until the next {@link checkpoint}: it is not
   * known which of them were compared.
   */
  resume(): Promise<number> {
    return this.#command(Command.Resume);
  }

  /** A checkpoint follows: primary frames newer than `horizonNs` are not compared until it is loaded. */
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

  /** Replays diverted input through the mirror and ends the diversion. Resolves with the number of frames. */
  replayInput(): Promise<number> {
    return this.#command(Command.ReplayInput);
  }

  /**
   * Drops the frames that an earlier agent left held or diverted: the VM that sent them is gone. Resolves
   * with their number.
   */
  discard(): Promise<number> {
    return this.#command(Command.Discard);
  }

  /** Resolves when all workers have answered: the data path lives. */
  ping(): Promise<number> {
    return this.#command(Command.None);
  }

  /** Ends all workers, also those beside one that has failed or did not start. */
  async close(): Promise<void> {
    await this.#last;
    this.#ended ??= new Error("the data path was closed");
    await Promise.all(this.#workers.map((worker) => worker.close()));
  }

  /** One command after the other; resolves with the sum of what the workers have counted. */
  #command(command: Command, argumentA = 0, argumentB = 0): Promise<number> {
    const run = this.#last.then(async () => {
      await this.#ready;
      if (this.#ended !== undefined) throw this.#ended;
      const counts = await Promise.all(
        this.#workers.map((worker) => worker.command(command, argumentA, argumentB)),
      );
      return counts.reduce((sum, count) => sum + count, 0);
    });
    this.#last = run.catch(() => undefined); // the next command only waits for its end
    return run;
  }
}
