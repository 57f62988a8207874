/**
 * How long a worker polls for its next record before it sleeps. A wake-up costs about 30 us, so polling pays
 * where records follow each other closely. Elsewhere it takes CPU time from the VMs.
 *
 * The rule is that of KVM for a halted processor (Documentation/virt/kvm/halt-polling.rst). A wait that a
 * longer poll would have covered makes the next poll longer; a wait that was far longer ends the polling.
 */

/** The longest poll. */
const LONGEST_NS = 50_000;
/** The first one after none; each further one is twice as long. */
const FIRST_NS = 10_000;
/** Waits up to this are short: the longest poll, and the wake-up that a wait without one adds. */
const SHORT_WAIT_NS = 2 * LONGEST_NS;

export class BusyWait {
  #ns = 0;

  /** How long to poll now, in ns; 0: not at all. */
  get ns(): number {
    return this.#ns;
  }

  /** There was no work for `waitNs`, polling and sleeping together. */
  waited(waitNs: number): void {
    if (waitNs <= this.#ns) return;
    if (waitNs > SHORT_WAIT_NS) this.#ns = 0;
    else this.#ns = Math.min(LONGEST_NS, Math.max(FIRST_NS, 2 * this.#ns));
  }
}
