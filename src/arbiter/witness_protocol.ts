/**
 * What the agents and the embedded witness say to each other, as JSON over HTTP.
 *
 *   GET /v1/vm/NAME             -> 200 {record, agents} | 404
 *   PUT /v1/vm/NAME casRequest  -> 200 {record, agents} written
 *                                | 409 {record, agents} as it is, or null: another revision than expected
 *                                | 400, 403 {error}: refused for good
 *   GET /v1/health              -> 200 {records}
 *
 * Any other answer says nothing about a write. A PUT may be sent again: `write` names it, and the witness
 * answers 200 to a write that it has already executed.
 */
import { z } from "zod";
import { identifier, vmRecord, vmRecordUpdate } from "../failover/vm_record.ts";

const agents = z
  .tuple([identifier, identifier])
  .refine(([a, b]) => a !== b, "must be the names of two different agents");

export const casRequest = z.strictObject({
  expectedRevision: vmRecord.shape.revision,
  record: vmRecordUpdate,
  /** The two agents of the VM; stored with the first write, and compared from then on. */
  agents,
  /** Unique for each call of compareAndSwap. */
  write: z.uuid(),
});
export type CasRequest = z.output<typeof casRequest>;

export const storedRecord = z.strictObject({ record: vmRecord, agents });
export type StoredRecord = z.output<typeof storedRecord>;

export const refusal = z.object({ error: z.string() });
