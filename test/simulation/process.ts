/**
 * A process of a simulated host: it runs, stands still between two steps (SIGSTOP, a slow host), and ends.
 */
import type { Host } from "./host.ts";

export abstract class Process {
  alive = true;
  /** After so many steps more, between two of them, this happens. */
  interrupt: { afterActions: number; run: () => void } | undefined;
  /** What has come in: messages, timers, ends of procedures. */
  readonly #work: (() => void)[] = [];
  #working = false;
  #frozen = false;
  #thawedMs = 0;

  constructor(readonly host: Host) {}

  get world() {
    return this.host.world;
  }

  get frozen(): boolean {
    return this.#frozen;
  }

  /** When it last ran again after a freeze, by its host's clock. */
  protected get thawedMs(): number {
    return this.#thawedMs;
  }

  /** Whether the next step may be taken; what is to happen between two steps happens here. */
  protected mayContinue(): boolean {
    this.#countDown();
    return this.alive && !this.#frozen;
  }

  /** Takes the steps that were left when it stood still. */
  protected abstract proceed(): void;

  /** Work for the process: done at once, or when it runs again. */
  post(work: () => void): void {
    if (!this.alive) return;
    this.#work.push(work);
    this.#drain();
  }

  #drain(): void {
    if (this.#working) return;
    this.#working = true;
    this.proceed();
    while (this.alive && !this.#frozen) {
      const work = this.#work.shift();
      if (work === undefined) break;
      work();
    }
    this.#working = false;
  }

  freeze(): void {
    this.#frozen = true;
  }

  thaw(): void {
    this.#frozen = false;
    this.#thawedMs = this.host.clockMs;
    this.#drain();
  }

  #countDown(): void {
    const { interrupt } = this;
    if (interrupt === undefined || interrupt.afterActions-- > 0) return;
    this.interrupt = undefined;
    interrupt.run();
  }

  protected setTimer(ms: number, call: () => void): () => void {
    const { world, host } = this;
    let cancelled = false;
    const timer = world.after(ms / host.rate, () =>
      this.post(() => {
        if (!cancelled) call();
      }),
    );
    return () => {
      cancelled = true;
      world.queue.cancel(timer);
    };
  }
}
