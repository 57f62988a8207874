/** Small questions and steps on one QEMU that several COLO procedures share. */
import { isDeepStrictEqual } from "node:util";
import type { z } from "zod";
import type { QmpClient } from "./client.ts";
import { QmpCommandError, QmpError } from "./errors.ts";
import {
  coloStatus,
  migrateInfo,
  type NamedBlockNode,
  namedBlockNodes,
  query,
  runState,
  type YankInstance,
  yankInstances,
} from "./query.ts";

/** A COLO procedure failed; `step` says where, `cause` why, `leftovers` what could not be undone. */
export class ColoProcedureError extends QmpError {
  override name = "ColoProcedureError";

  constructor(
    readonly step: string,
    cause: unknown,
    /** Sentences; empty when QEMU is as it was before. */
    readonly leftovers: readonly string[] = [],
  ) {
    const undone =
      leftovers.length === 0 ? "" : ` It could not be undone completely: ${leftovers.join("; ")}.`;
    super(`${step} failed: ${messageOf(cause)}${undone}`, { cause });
  }
}

/** "On demand only": the largest value the parameter takes, 49 days in ms (qapi/migration.json, uint32). */
export const CHECKPOINT_DELAY_NEVER_MS = 4_294_967_295;

export const COLO_CAPABILITIES = ["x-colo", "return-path", "events"] as const;

/** query-migrate's status in which no migration runs and a new one may be started. */
export const MIGRATION_ENDED: ReadonlySet<string> = new Set(["none", "completed", "failed", "cancelled"]);

type RunStatus = z.output<typeof runState>;

export function runStatus(client: QmpClient): Promise<RunStatus> {
  return query(client, runState, "query-status");
}

export interface MigrationStatus {
  status: string;
  errorDescription: string | undefined;
  transferredBytes: number;
  remainingBytes: number;
}

export async function migrationStatus(client: QmpClient): Promise<MigrationStatus> {
  const reply = await query(client, migrateInfo, "query-migrate");
  return {
    status: reply.status,
    errorDescription: reply["error-desc"],
    transferredBytes: reply.ram?.transferred ?? 0,
    remainingBytes: reply.ram?.remaining ?? 0,
  };
}

/**
 * This QEMU's side of a COLO pair; also "secondary" while it waits for a failover after the primary is gone.
 */
export async function coloMode(client: QmpClient): Promise<"none" | "primary" | "secondary"> {
  return (await query(client, coloStatus, "query-colo-status")).mode;
}

export async function setCapabilities(
  client: QmpClient,
  names: readonly string[],
  state: boolean,
): Promise<void> {
  const capabilities = names.map((capability) => ({ capability, state }));
  await client.execute("migrate-set-capabilities", { capabilities });
}

export function blockNodes(client: QmpClient): Promise<NamedBlockNode[]> {
  return query(client, namedBlockNodes, "query-named-block-nodes", { flat: true });
}

/**
 * Cuts the connections among `wanted` that QEMU has open, out of band: this works while the main loop hangs
 * on one of them.
 * @returns those that were cut
 */
export async function yank(
  client: QmpClient,
  wanted: readonly YankInstance[],
  timeoutMs = 2_000,
): Promise<YankInstance[]> {
  const options = { oob: true, timeoutMs };
  const present = await query(client, yankInstances, "query-yank", undefined, options);
  const instances = wanted.filter((one) => present.some((other) => isDeepStrictEqual(one, other)));
  for (const instance of instances) {
    try {
      await client.execute("yank", { instances: [instance] }, options);
    } catch (error) {
      // It ended by itself between the two commands.
      if (!(error instanceof QmpCommandError)) throw error;
    }
  }
  return instances;
}

export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}

/** As `promise`, or the signal's reason if that comes first. */
export function orAborted<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  const aborted = new Promise<never>((_, reject) => {
    if (signal.aborted) reject(signal.reason as Error);
    signal.addEventListener("abort", () => reject(signal.reason as Error), { once: true });
  });
  return Promise.race([promise, aborted]);
}
