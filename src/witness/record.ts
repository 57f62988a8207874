/**
 * Who may send for a VM, and whether somebody else could take over: the one record that both agents write, by
 * compare-and-swap only (design rule: one primary).
 *
 * Invariants:
 *  - only `holder` lets the VM's output onto the network;
 *  - the holder goes on alone only after it has written `replicaValid: false`;
 *  - another agent takes over only from a record with `replicaValid: true`, and only after the holder's lease has
 *    run out or has been given up; it writes itself as holder with `replicaValid: false`.
 * So of a primary and a secondary that lose each other, one compare-and-swap wins and the other one stops.
 */
import { z } from "zod";

export const vmRecord = z.strictObject({
  /** Counts every successful write; the compare-and-swap compares it. 0 means: no record yet. */
  revision: z.number().int().min(0),
  /** Counts changes of holder. */
  term: z.number().int().min(0),
  /** Counts attempts to protect the VM: the replica that may take over is the one that this attempt has made. */
  generation: z.number().int().min(0).default(0),
  holder: z.string().min(1),
  replicaValid: z.boolean(),
});

export type VmRecord = z.output<typeof vmRecord>;
export type VmRecordUpdate = Omit<VmRecord, "revision">;

export const casRequest = z.strictObject({
  expectedRevision: z.number().int().min(0),
  record: vmRecord.omit({ revision: true }),
});
