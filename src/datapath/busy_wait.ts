/**
 * How long a worker looks for its next record before it sleeps. Being woken up costs some 30 us, so where
 * records follow each other closely it is better to keep looking; where they do not, that takes time from the
 * VMs, whose output is what is waited for.
 *
 * The rule is that of KVM for a halted processor (Documentation/virt/kvm/halt-polling.rst): a wait that a
 * longer look would have caught makes the next look longer, one that was far too long for it ends the
 * looking.
 */

/** The longest look. */
const LONGEST_NS = 50_000;
/** The first one after none; each further one is twice as long. */
const FIRST_NS = 10_000;
/** Waits up to this are short: the longest look, and what being woken up adds to one without. */
const SHORT_WAIT_NS = 2 * LONGEST_NS;

export class BusyWait {
  #ns = 0;

  /** For how long to look now, in ns; 0: not at all. */
  get ns(): number {
    return this.#ns;
  }

  /** There was nothing to do for `waitNs`, looking and sleeping together. */
  waited(waitNs: number): void {
    if (waitNs <= this.#ns) return;
    if (waitNs > SHORT_WAIT_NS) this.#ns = 0;
    else this.#ns = Math.min(LONGEST_NS, Math.max(FIRST_NS, 2 * this.#ns));
  }
}
