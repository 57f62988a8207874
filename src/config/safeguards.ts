/** [fence] and [watchdog]: what turns a host off that has failed. */
import { z } from "zod";
import { absolutePath, milliseconds } from "./values.ts";

export const fenceConfig = z.strictObject({
  /** Program and arguments. Exit status 0 means that the peer is off. */
  command: z
    .array(z.string())
    .min(1, "needs a program")
    .refine((words) => words[0]?.startsWith("/") ?? true, "must begin with the absolute path of a program"),
  /** After this time the command counts as failed, and its process group is killed. */
  timeout_ms: milliseconds(100, 600_000).default(30_000),
  /** true: no VM of the peer's runs here before the command has succeeded. */
  required: z.boolean().default(true),
});

export type FenceConfig = z.output<typeof fenceConfig>;

export const watchdogConfig = z.strictObject({
  device: absolutePath.default("/dev/watchdog"),
  /** The device resets the host when the main loop has not completed a round for this long. */
  timeout_s: z.number().int().min(1).max(3_600).default(10),
  /** true: the agent does not start without it. */
  required: z.boolean().default(true),
});

export type WatchdogConfig = z.output<typeof watchdogConfig>;
