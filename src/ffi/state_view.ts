/** struct colo_state, mapped: what the agent writes takes effect with the next frame. */

import { type Role, type Sleep, STATE, WORKERS_MAX } from "./layout.ts";
import { Mapping, PAGE_BYTES } from "./libc.ts";

export class StateView {
  readonly #mapping: Mapping;
  readonly #words: Int32Array;
  readonly #lease: BigInt64Array;

  readonly #sleeping: number;

  /**
   * @param fd DataPlane.stateFd; any thread of the process may map it
   * @param worker whose {@link consumerSleeping} this is, from 0
   */
  constructor(fd: number, worker = 0) {
    if (worker >= WORKERS_MAX) throw new RangeError(`There are at most ${WORKERS_MAX} workers.`);
    this.#sleeping = STATE.consumer_sleeping + 4 * worker;
    this.#mapping = new Mapping(PAGE_BYTES, fd);
    this.#words = new Int32Array(this.#mapping.buffer);
    this.#lease = new BigInt64Array(this.#mapping.buffer, STATE.lease_deadline_ns, 1);
  }

  /** CLOCK_BOOTTIME (bootTimeNs()) up to which frames may leave to the network. */
  get leaseDeadlineNs(): bigint {
    return Atomics.load(this.#lease, 0);
  }
  set leaseDeadlineNs(value: bigint) {
    Atomics.store(this.#lease, 0, value);
  }

  /** {@link leaseDeadlineNs} as a number, exact below 2^53 ns (104 days since boot). Allocation free. */
  get leaseDeadlineNumber(): number {
    for (;;) {
      const high = this.#load(STATE.lease_deadline_ns + 4);
      const low = this.#load(STATE.lease_deadline_ns);
      // The agent's thread writes both halves at once.
      if (this.#load(STATE.lease_deadline_ns + 4) === high) return high * 0x1_0000_0000 + low;
    }
  }

  get role(): Role {
    return this.#load(STATE.role) as Role;
  }
  set role(value: Role) {
    this.#store(STATE.role, value);
  }

  /** Tags what the secondary forwards; 16 bits of it travel. */
  get epoch(): number {
    return this.#load(STATE.epoch);
  }
  set epoch(value: number) {
    this.#store(STATE.epoch, value);
  }

  /** Connections learned in another epoch count as not there. */
  get rewriteEpoch(): number {
    return this.#load(STATE.rewrite_epoch);
  }
  set rewriteEpoch(value: number) {
    this.#store(STATE.rewrite_epoch, value);
  }

  /** While true, input of the primary goes to the input ring instead of the VM. */
  get divertInput(): boolean {
    return this.#load(STATE.divert_input) !== 0;
  }
  set divertInput(value: boolean) {
    this.#store(STATE.divert_input, value ? 1 : 0);
  }

  /** One of {@link Sleep}. Set before waiting for the doorbell; the program that rings it clears the flag. */
  get consumerSleeping(): number {
    return this.#load(this.#sleeping);
  }
  set consumerSleeping(value: Sleep) {
    this.#store(this.#sleeping, value);
  }

  /** False only while the map of connections is empty; the programs look there only if it is true. */
  get connectionsKept(): boolean {
    return this.#load(STATE.connections_kept) !== 0;
  }
  set connectionsKept(value: boolean) {
    this.#store(STATE.connections_kept, value ? 1 : 0);
  }

  close(): void {
    this.#mapping.close();
  }

  #load(offset: number): number {
    return Atomics.load(this.#words, offset >>> 2) >>> 0;
  }

  #store(offset: number, value: number): void {
    Atomics.store(this.#words, offset >>> 2, value | 0);
  }
}
