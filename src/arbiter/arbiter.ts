/** What the agents need of an arbiter: one linearizable compare-and-swap register per VM. */
import type { VmRecord, VmRecordUpdate } from "../failover/vm_record.ts";

/**
 * The arbiter's answer did not arrive. Nothing is known: a write may have happened, may happen later, or
 * never. Read again before deciding anything.
 */
export class ArbiterUnreachableError extends Error {
  override name = "ArbiterUnreachableError";
}

/**
 * The arbiter has refused for a reason that asking again does not change (certificate, permission, foreign
 * record); the message says what to do. A write has not happened and will not.
 */
export class ArbiterRefusedError extends Error {
  override name = "ArbiterRefusedError";
}

/**
 * `swapped: false`: this write is not in force and can no longer come into force; `current` is what stands
 * there.
 */
export type SwapResult =
  | { swapped: true; record: VmRecord }
  | { swapped: false; current: VmRecord | undefined };

export interface Arbiter {
  /** false: the configuration names none (no_arbiter.ts). */
  readonly configured: boolean;

  /** For messages: what it is and where. */
  readonly description: string;

  /**
   * The record of `vm` as it is now (linearizable), undefined when there is none. Throws
   * {@link ArbiterUnreachableError} or {@link ArbiterRefusedError}.
   */
  read(vm: string): Promise<VmRecord | undefined>;

  /**
   * Writes `record` if the stored revision is still `expectedRevision` (0: there is none yet). When it
   * returns `swapped: true`, the write is durable. Throws {@link ArbiterUnreachableError} or {@link
   * ArbiterRefusedError}.
   */
  compareAndSwap(vm: string, expectedRevision: number, record: VmRecordUpdate): Promise<SwapResult>;
}

/** The two agents of a VM. A record belongs to the two that made it. */
export type AgentPair = readonly [self: string, peer: string];

export function samePair(a: readonly string[], b: readonly string[]): boolean {
  return a.length === b.length && a.every((name) => b.includes(name));
}

/** Why a record of other agents is not used. */
export function foreignRecord(vm: string, owners: readonly string[], asking: readonly string[]): string {
  return (
    `the record of VM ${vm} belongs to the agents ${owners.join(" and ")}, not to ${asking.join(" and ")}: ` +
    "give the VM a name that no other pair uses at this arbiter, or remove the record if those agents are " +
    "gone"
  );
}
