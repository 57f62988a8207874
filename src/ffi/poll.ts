/**
 * Sleeps until the kernel rings the doorbell or another thread signals an eventfd.
 *
 * To sleep without missing a record: set StateView.consumerSleeping, look at the rings once more, then wait.
 * The BPF program clears the flag when it rings.
 */
import { Arena, check, closeFd, EINTR, errno, libc, SystemError } from "./libc.ts";
import type { Address } from "./native.ts";
import { Ring } from "./ring.ts";

const EPOLL_CTL_ADD = 1;
const EPOLLIN = 1;
const EPOLL_EVENT_BYTES = 12; // packed on x86-64 (include/uapi/linux/eventpoll.h)
const EVENTS_MAX = 2;
const EFD_NONBLOCK = 0o4000;
const EFD_CLOEXEC = 0o2000000;
const EPOLL_CLOEXEC = 0o2000000;

/** Size of a doorbell ring: a page, the smallest that the kernel makes (kernel/bpf/ringbuf.c). */
export const DOORBELL_BYTES = 4096;

export class Waiter {
  readonly #doorbell: Ring;
  readonly #wakeFd: number;
  readonly #epollFd: number;
  readonly #arena = new Arena(4096);
  readonly #events: Address;
  readonly #counter: Address;

  /**
   * @param doorbellFd WorkerRings.doorbellFd
   * @param wakeFd an eventfd of createEventfd(), for signalEventfd() from other threads
   */
  constructor(doorbellFd: number, wakeFd: number) {
    this.#doorbell = new Ring({ fd: doorbellFd, bytes: DOORBELL_BYTES });
    this.#wakeFd = wakeFd;
    this.#epollFd = check(libc.epoll_create1(EPOLL_CLOEXEC), "Cannot create an epoll instance");
    const events = this.#arena.allocate(EPOLL_EVENT_BYTES * EVENTS_MAX);
    this.#events = this.#arena.address + events;
    this.#counter = this.#arena.address + this.#arena.allocate(8);
    this.#arena.view.setUint32(events, EPOLLIN, true);
    for (const fd of [doorbellFd, wakeFd]) {
      check(libc.epoll_ctl(this.#epollFd, EPOLL_CTL_ADD, fd, this.#events), "Cannot watch a doorbell");
    }
  }

  /**
   * Returns after the doorbell, a signal, or `timeoutMs` (whole milliseconds; -1 waits for ever). Both are
   * drained. Blocks the thread it is called on.
   *
   * @returns false if the time ran out
   */
  wait(timeoutMs: number): boolean {
    const ready = libc.epoll_wait(this.#epollFd, this.#events, EVENTS_MAX, timeoutMs);
    if (ready < 0 && errno() !== EINTR) throw new SystemError("Cannot wait for the doorbell");
    if (ready <= 0) return false;
    for (let slot = this.#doorbell.next(); slot >= 0; slot = this.#doorbell.next()) this.#doorbell.done(slot);
    libc.read(this.#wakeFd, this.#counter, 8);
    return true;
  }

  /** Leaves both descriptors open: they belong to the caller. */
  close(): void {
    closeFd(this.#epollFd);
    this.#doorbell.close();
    this.#arena.close();
  }
}

/** A non-blocking eventfd. */
export function createEventfd(): number {
  return check(libc.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), "Cannot create an eventfd");
}

const one = new Arena(4096);
one.view.setBigUint64(0, 1n, true);

/** Wakes whoever waits for `fd`, now or at the next wait. From any thread. */
export function signalEventfd(fd: number): void {
  libc.write(fd, one.address, 8);
}
