/**
 * Commands whose answers are used: each is checked against a schema (QEMU's own is qapi/*.json) before it is.
 */
import { z } from "zod";
import type { QmpClient, QmpExecuteOptions } from "./client.ts";
import { QmpAnswerError } from "./errors.ts";

/**
 * Sends a command and returns the part of QEMU's answer that `schema` describes.
 * @throws QmpAnswerError if the answer does not have it; else as QmpClient.execute()
 */
export async function query<V>(
  client: Pick<QmpClient, "execute">,
  schema: z.ZodType<V>,
  command: string,
  args?: Readonly<Record<string, unknown>>,
  options?: QmpExecuteOptions,
): Promise<V> {
  const result = schema.safeParse(await client.execute(command, args, options));
  if (result.success) return result.data;
  const mistakes = result.error.issues.map(({ path, message }) => [...path.map(String), message].join(": "));
  throw new QmpAnswerError(command, mistakes.slice(0, MISTAKES_SHOWN).join("; "), { cause: result.error });
}

const MISTAKES_SHOWN = 3;

/** RunState of qapi/run-state.json, e.g. "running", "inmigrate", "colo". */
export const runState = z.object({ running: z.boolean(), status: z.string() });

/** query-migrate. QEMU gives no status before the first migration. */
export const migrateInfo = z.object({
  status: z.string().default("none"),
  "error-desc": z.string().optional(),
  /** Bytes. */
  ram: z.object({ transferred: z.number(), remaining: z.number() }).optional(),
});

/** query-colo-status. */
export const coloStatus = z.object({ mode: z.enum(["none", "primary", "secondary"]) });

/** query-named-block-nodes: the parts that are used here. */
export const namedBlockNodes = z.array(
  z.object({
    "node-name": z.string(),
    drv: z.string(),
    file: z.string(),
    /** Since QEMU 10.1. */
    children: z.array(z.object({ child: z.string(), "node-name": z.string() })).optional(),
    "dirty-bitmaps": z
      .array(z.object({ name: z.string().optional(), count: z.number(), recording: z.boolean() }))
      .optional(),
  }),
);
export type NamedBlockNode = z.output<typeof namedBlockNodes>[number];

/** query-jobs. Progress is in bytes for the jobs on block nodes. */
export const jobs = z.array(
  z.object({
    id: z.string(),
    status: z.string(),
    "current-progress": z.number(),
    "total-progress": z.number(),
    error: z.string().optional(),
  }),
);

/** qom-list. */
export const qomEntries = z.array(z.object({ name: z.string(), type: z.string() }));

/** query-yank and yank: a connection (qapi/yank.json). */
export const yankInstances = z.array(
  z.discriminatedUnion("type", [
    z.object({ type: z.literal("migration") }),
    z.object({ type: z.literal("block-node"), "node-name": z.string() }),
    z.object({ type: z.literal("chardev"), id: z.string() }),
  ]),
);
export type YankInstance = z.output<typeof yankInstances>[number];

/** query-chardev. */
export const chardevInfo = z.array(z.object({ label: z.string(), filename: z.string() }));
