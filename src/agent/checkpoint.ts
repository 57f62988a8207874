/**
 * Checkpoints, as the primary's agent runs them: one after the other, whatever asks for them.
 *
 * divert input -> all taps read empty -> ask QEMU -> STOP -> secondary has loaded -> release what was held ->
 * RESUME -> put diverted input back
 *
 * Which primary frames a checkpoint covers is decided by their own time stamp against the STOP event's, never
 * by when the agent got round to them: between STOP and RESUME the VM sends nothing, so the boundary has
 * slack.
 */

import { requestCheckpoint } from "../colo/index.ts";
import type { VmConfig } from "../config/config.ts";
import type { Logger } from "../host/log.ts";
import type { Comparison, InputBarrier } from "../proxy/proxy.ts";
import type { QmpClient } from "../qmp/client.ts";
import type { Tuning } from "./tuning.ts";

/** What a checkpoint can be made for; docs/metrics.md explains each. */
export const CHECKPOINT_CAUSES = [
  "prime",
  "restart",
  "periodic",
  "divergence",
  "missing",
  "overflow",
  "requested",
] as const;
export type CheckpointCause = (typeof CHECKPOINT_CAUSES)[number];

export interface CheckpointReport {
  cause: CheckpointCause;
  /** The epoch that begins with it. */
  epoch: number;
  /** STOP to RESUME of the primary VM. */
  pauseMs: number;
  /** From the decision to the return of diverted input. */
  totalMs: number;
  /** Waiting for all taps to be read empty; part of the total. */
  drainMs: number;
  /** Whether they were. */
  inputDrained: boolean;
  releasedFrames: number;
  replayedFrames: number;
}

interface CheckpointParts {
  config: Omit<VmConfig["checkpoint"], "period_ms">;
  tuning: Pick<Tuning, "periodMs" | "onChange">;
  qmp: QmpClient;
  proxy: {
    readonly inputBarrier?: Pick<InputBarrier, "divertInput" | "drainInput" | "replayInput">;
    readonly comparison?: Pick<Comparison, "beginCheckpoint" | "releaseCheckpoint">;
  };
  log: Logger;
  /** Asks the secondary's agent whether its taps have been read empty. */
  drainPeer(mirroredFrames: number[], timeoutMs: number): Promise<boolean>;
  onReport(report: CheckpointReport): void;
  /** The pair is broken: a deadline passed or QEMU refused. */
  onBroken(reason: string): void;
}

export class Checkpoints {
  readonly #abort = new AbortController();
  readonly #parts: CheckpointParts;
  #epoch: number;
  #requested: CheckpointCause | undefined;
  #wake: (() => void) | undefined;
  #loaded: { resolve: (epoch: number) => void } | undefined;
  #lastEndMs = performance.now();
  /** Waits for the checkpoint after which there is to be none. */
  #last: { resolve: () => void; reject: (error: Error) => void } | undefined;
  #running: Promise<void> | undefined;
  /** Until it is resolved none begins. */
  #paused: PromiseWithResolvers<void> | undefined;
  #underWay: Promise<unknown> | undefined;

  constructor(parts: CheckpointParts, epoch: number) {
    this.#parts = parts;
    this.#epoch = epoch;
  }

  get epoch(): number {
    return this.#epoch;
  }

  /** Makes one checkpoint now; for priming, before {@link begin}. */
  runOnce(cause: CheckpointCause): Promise<CheckpointReport> {
    return this.#run(cause);
  }

  /** From now on checkpoints are made when asked for and when the period is over. */
  begin(): void {
    this.#running = this.#loop();
  }

  /** Asks for a checkpoint; requests that arrive before it has begun are one. */
  request(cause: CheckpointCause): void {
    this.#requested ??= cause;
    this.#wake?.();
  }

  /**
   * Makes one more checkpoint, the last one; resolves when it is over. What asks for another is not heard.
   */
  async last(cause: CheckpointCause): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#last = { resolve, reject };
    this.request(cause);
    await promise;
  }

  /** Begins no other one until {@link goOn}; resolves when none is under way. */
  async pause(): Promise<void> {
    this.#paused ??= Promise.withResolvers<void>();
    await this.#underWay;
  }

  goOn(): void {
    this.#paused?.resolve();
    this.#paused = undefined;
  }

  /** The secondary's agent reports that its VM has loaded the state and runs in `epoch`. */
  peerLoaded(epoch: number): void {
    // The report of one that an earlier agent had asked for may come late.
    if (epoch > this.#epoch) this.#loaded?.resolve(epoch);
  }

  /** Ends everything at once; a checkpoint under way is given up. */
  async stop(): Promise<void> {
    this.#abort.abort(new Error("checkpoints were ended"));
    this.#last?.reject(new Error("checkpoints were ended"));
    this.goOn();
    this.#wake?.();
    await this.#running?.catch(() => undefined); // the loop reports its own errors
  }

  async #loop(): Promise<void> {
    const { config, onBroken } = this.#parts;
    try {
      while (!this.#abort.signal.aborted) {
        const cause = await this.#nextCause();
        if (this.#abort.signal.aborted) return;
        const rest = this.#lastEndMs + config.min_interval_ms - performance.now();
        if (rest > 0) await Bun.sleep(rest);
        await this.#paused?.promise;
        if (this.#abort.signal.aborted) return;
        const last = this.#last;
        this.#underWay = this.#run(cause);
        await this.#underWay;
        if (last === undefined) continue;
        last.resolve();
        return;
      }
    } catch (error) {
      this.#last?.reject(error as Error);
      if (!this.#abort.signal.aborted) onBroken((error as Error).message);
    }
  }

  #nextCause(): Promise<CheckpointCause> {
    if (this.#requested !== undefined) return Promise.resolve(this.#requested);
    return new Promise((resolve) => {
      const { tuning } = this.#parts;
      let timer: Timer | undefined;
      const settle = (cause: CheckpointCause) => {
        clearTimeout(timer);
        unlisten();
        this.#wake = undefined;
        resolve(cause);
      };
      const arm = () => {
        clearTimeout(timer);
        const left = Math.max(0, this.#lastEndMs + tuning.periodMs - performance.now());
        timer = setTimeout(() => settle("periodic"), left);
      };
      const unlisten = tuning.onChange(arm);
      arm();
      this.#wake = () => settle(this.#requested ?? "requested");
    });
  }

  async #run(cause: CheckpointCause): Promise<CheckpointReport> {
    const { config, qmp, proxy, log } = this.#parts;
    const { signal } = this.#abort;
    const begun = performance.now();
    this.#requested = undefined;

    const { inputBarrier, comparison } = proxy;
    const inputDrained = inputBarrier === undefined || (await this.#drainInput(inputBarrier));
    const drainMs = performance.now() - begun;

    const stopped = qmp.waitFor("STOP", () => true, config.stop_timeout_ms, { signal });
    const resumed = qmp.waitFor("RESUME", () => true, config.stop_timeout_ms + config.load_timeout_ms, {
      signal,
    });
    const loaded = this.#waitLoaded(config.stop_timeout_ms + config.load_timeout_ms);
    await comparison?.beginCheckpoint();
    await requestCheckpoint(qmp);
    const stop = await stopped;
    // Frames that waited for their twin are covered from here on; a request they caused until now is
    // answered.
    this.#epoch = await loaded;
    this.#requested = undefined;
    const releasedFrames = (await comparison?.releaseCheckpoint(stop.timestampNs, this.#epoch)) ?? 0;
    const resume = await resumed;
    const replayedFrames = (await inputBarrier?.replayInput()) ?? 0;

    this.#lastEndMs = performance.now();
    const report: CheckpointReport = {
      cause,
      epoch: this.#epoch,
      pauseMs: Number(resume.timestampNs - stop.timestampNs) / 1e6,
      totalMs: this.#lastEndMs - begun,
      drainMs,
      inputDrained,
      releasedFrames,
      replayedFrames,
    };
    log.debug("checkpoint", { ...report });
    this.#parts.onReport(report);
    return report;
  }

  /** Holds input back and waits until both VMs have read the same; false if one of them was late. */
  async #drainInput(barrier: Pick<InputBarrier, "divertInput" | "drainInput">): Promise<boolean> {
    const { input_drain_ms: limitMs } = this.#parts.config;
    const mirrored = barrier.divertInput();
    const [own, peer] = await Promise.all([
      barrier.drainInput(limitMs),
      this.#parts.drainPeer(mirrored, limitMs),
    ]);
    return own && peer;
  }

  #waitLoaded(timeoutMs: number): Promise<number> {
    const { promise, resolve, reject } = Promise.withResolvers<number>();
    const timer = setTimeout(
      () => reject(new Error(`the secondary did not load the checkpoint within ${timeoutMs} ms`)),
      timeoutMs,
    );
    const abort = () => reject(this.#abort.signal.reason as Error);
    this.#abort.signal.addEventListener("abort", abort, { once: true });
    this.#loaded = { resolve };
    const settled = promise.finally(() => {
      clearTimeout(timer);
      this.#abort.signal.removeEventListener("abort", abort);
      this.#loaded = undefined;
    });
    settled.catch(() => undefined); // nobody waits for it when the STOP before it does not come
    return settled;
  }
}
