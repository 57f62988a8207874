/** A loop's pauses: each ends early when something has happened, and all end when the loop is to end. */
export class Waiter {
  #wake: (() => void) | undefined;
  #woken = false;
  #closed = false;

  get closed(): boolean {
    return this.#closed;
  }

  /**
   * Waits `ms`, or until {@link wake}; without a limit where `ms` is undefined. A wake that came before
   * counts.
   */
  async pause(ms: number | undefined): Promise<void> {
    if (!this.#woken && !this.#closed) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      await promise;
      clearTimeout(timer);
      this.#wake = undefined;
    }
    this.#woken = false;
  }

  wake(): void {
    this.#woken = true;
    this.#wake?.();
  }

  close(): void {
    this.#closed = true;
    this.wake();
  }
}
