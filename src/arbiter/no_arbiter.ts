/**
 * A pair of hosts without an arbiter: there are no records, so nobody takes a VM over without an
 * administrator.
 */
import type { VmRecord } from "../failover/vm_record.ts";
import type { Arbiter, SwapResult } from "./arbiter.ts";

export class NoArbiter implements Arbiter {
  readonly configured = false;
  readonly description = "no arbiter";

  async read(): Promise<VmRecord | undefined> {
    return undefined;
  }

  /** Nothing stores the record, so it never comes into force. */
  async compareAndSwap(): Promise<SwapResult> {
    return { swapped: false, current: undefined };
  }
}
