/**
 * Who may send for a VM, and whether somebody else could take over: the one record that both agents write, by
 * compare-and-swap only (design rule: one primary).
 *
 * Invariants:
 * - only `holder` lets the VM's output onto the network;
 * - the holder continues alone only after it has written `replicaValid: false`;
 * - another agent takes over only from a record with `replicaValid: true`, and only after the holder's lease
 *   has run out or has been given up; it writes itself as holder with `replicaValid: false`;
 * - it takes over only with a replica of the record's `generation`. So of a primary and a secondary that lose
 *   each other, one compare-and-swap wins and the other one stops.
 */
import { z } from "zod";

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);

/** Names of agents and VMs: part of paths and keys, so nothing else gets through. */
export const identifier = z.string().regex(/^[a-z0-9][a-z0-9-]{0,31}$/, "must be 1-32 of a-z, 0-9 and -");

export const vmRecordUpdate = z.strictObject({
  /** Counts changes of holder. */
  term: count,
  /**
   * Counts attempts to protect the VM: a fencing token that tells this replica from an earlier, stale one.
   */
  generation: count,
  /** Name of the agent that may send. */
  holder: identifier,
  /** The secondary's replica covers everything that was released, so it may take over. */
  replicaValid: z.boolean(),
});

export const vmRecord = vmRecordUpdate.extend({
  /**
   * The arbiter's stamp of the last write, compared by the compare-and-swap. It only grows, by one or more; 0
   * stands for "there is no record".
   */
  revision: count,
});

export type VmRecord = z.output<typeof vmRecord>;
export type VmRecordUpdate = z.output<typeof vmRecordUpdate>;
