/**
 * This agent's standing with the arbiter for one VM: the decisions of decision.ts, carried out by compare-and-swap.
 */

import {
  type Arbiter,
  ArbiterUnreachableError,
  type VmRecord,
  type VmRecordUpdate,
} from "../arbiter/index.ts";
import { decideReplicaValid, decideTakeover, type TakeoverFacts } from "./decision.ts";
import type { Logger } from "./log.ts";

const RETRY_MS = 300;

/** Another agent holds the VM, or may take it: this one must not let its output pass. */
export class AuthorityLostError extends Error {
  override name = "AuthorityLostError";
}

export class Authority {
  #record: VmRecord | undefined;

  constructor(
    private readonly vm: string,
    private readonly self: string,
    /** undefined: no arbiter is configured, so nobody ever takes over by itself. */
    private readonly arbiter: Arbiter | undefined,
    private readonly log: Logger,
  ) {}

  get record(): VmRecord | undefined {
    return this.#record;
  }

  get hasArbiter(): boolean {
    return this.arbiter !== undefined;
  }

  async refresh(): Promise<VmRecord | undefined> {
    if (this.arbiter !== undefined) this.#record = await this.arbiter.read(this.vm);
    return this.#record;
  }

  /**
   * Writes that the replica can (true) or cannot (false) take over. Tries again while the witness does not answer.
   * Throws {@link AuthorityLostError} when another agent holds the VM, or `signal`'s reason.
   */
  async writeReplicaValid(replicaValid: boolean, signal: AbortSignal): Promise<void> {
    if (this.arbiter === undefined) return;
    await this.#persist(signal, async (arbiter) => {
      const decision = decideReplicaValid(await this.#read(arbiter), this.self, replicaValid);
      if (decision.action === "stop") throw new AuthorityLostError(decision.reason);
      return decision.action === "keep" || this.#swap(arbiter, decision.expectedRevision, decision.record);
    });
  }

  /**
   * Takes the VM over. `facts` is asked afresh before every try; `beforeWrite` is called once, right before the first
   * write: from then on the write may have happened, and no heartbeat may be answered. Throws
   * {@link AuthorityLostError} when it must not be taken, or `signal`'s reason.
   */
  async takeOver(
    facts: () => Pick<TakeoverFacts, "nowMs" | "lastAnswerMs" | "leaseMs" | "marginMs" | "givenUp">,
    signal: AbortSignal,
    beforeWrite: () => void,
  ): Promise<void> {
    if (this.arbiter === undefined) {
      throw new AuthorityLostError(
        "no witness is configured, so nobody can tell a dead primary from a cut link: no automatic takeover",
      );
    }
    let committed = false;
    await this.#persist(signal, async (arbiter) => {
      const record = await this.#read(arbiter);
      if (committed && record?.holder === this.self) return true; // an earlier write whose answer was lost
      const decision = decideTakeover({ ...facts(), record, self: this.self });
      if (decision.action === "refuse") throw new AuthorityLostError(decision.reason);
      if (decision.action === "wait") {
        await Bun.sleep(decision.ms);
        return false;
      }
      signal.throwIfAborted();
      if (!committed) beforeWrite();
      committed = true;
      return this.#swap(arbiter, decision.expectedRevision, decision.record);
    });
  }

  async #read(arbiter: Arbiter): Promise<VmRecord | undefined> {
    this.#record = await arbiter.read(this.vm);
    return this.#record;
  }

  async #swap(arbiter: Arbiter, expectedRevision: number, record: VmRecordUpdate): Promise<boolean> {
    const result = await arbiter.compareAndSwap(this.vm, expectedRevision, record);
    this.#record = result.swapped ? result.record : result.current;
    return result.swapped;
  }

  async #persist(signal: AbortSignal, attempt: (arbiter: Arbiter) => Promise<boolean>): Promise<void> {
    for (;;) {
      signal.throwIfAborted();
      try {
        if (await attempt(this.arbiter!)) return;
      } catch (error) {
        if (!(error instanceof ArbiterUnreachableError)) throw error;
        this.log.warn("the witness does not answer; trying again", { error });
        await Bun.sleep(RETRY_MS);
      }
    }
  }
}
