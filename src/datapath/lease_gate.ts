/**
 * The lease, as a worker sees it. The kernel drops frames that are released after the lease has run out
 * (bpf/lease.h). A worker therefore releases nothing then: frames stay in the rings and in the comparer until
 * the agent extends the lease.
 *
 * Commands that release frames are carried out when the lease holds again, in their order. They are answered
 * at once: the agent's rounds must continue, because only they extend the lease.
 */
import type { StateView } from "../ffi/state_view.ts";
import type { Command } from "./shared.ts";

/** The lease counts as over this early: a frame needs some time from here to the kernel's check. */
const MARGIN_NS = 10_000_000;

interface DeferredCommand {
  readonly command: Command;
  readonly argumentA: number;
  readonly argumentB: number;
}

export class LeaseGate {
  readonly #deferred: DeferredCommand[] = [];

  constructor(private readonly state: Pick<StateView, "leaseDeadlineNumber">) {}

  /** @param nowNs CLOCK_BOOTTIME */
  isShut(nowNs: number): boolean {
    return nowNs > this.state.leaseDeadlineNumber - MARGIN_NS;
  }

  defer(command: DeferredCommand): void {
    this.#deferred.push(command);
  }

  get hasDeferred(): boolean {
    return this.#deferred.length > 0;
  }

  /** The oldest of the deferred commands; undefined if there is none. */
  nextDeferred(): DeferredCommand | undefined {
    return this.#deferred.shift();
  }
}
