/** [fence] and [watchdog]: what turns a host off that has failed. */
import { z } from "zod";
import { absolutePath, milliseconds } from "./values.ts";

export const fenceConfig = z
  .strictObject({
    command: z
      .array(z.string())
      .min(1, "needs a program")
      .refine((words) => words[0]?.startsWith("/") ?? true, "must begin with the absolute path of a program")
      .describe("Program and arguments that turn the peer off. Exit status 0 means that the peer is off."),
    timeout_ms: milliseconds(100, 600_000)
      .default(30_000)
      .describe("The command and its children are killed after this time, and the command counts as failed."),
    required: z
      .boolean()
      .default(true)
      .describe(
        "`true`: a takeover waits until the command succeeds. `false`: it continues after a failure.",
      ),
  })
  .describe("A command that turns a lost peer off ([arbiters.md](arbiters.md)). Optional.");

export type FenceConfig = z.output<typeof fenceConfig>;

export const watchdogConfig = z
  .strictObject({
    device: absolutePath.default("/dev/watchdog").describe("The watchdog's device."),
    timeout_s: z
      .number()
      .int()
      .min(1)
      .max(3_600)
      .default(10)
      .describe("The device resets the host if the main loop completes no round for this time."),
    required: z
      .boolean()
      .default(true)
      .describe("`true`: the agent does not start without the device. `false`: it starts with a warning."),
  })
  .describe("A watchdog that resets a host whose agent hangs ([arbiters.md](arbiters.md)). Optional.");

export type WatchdogConfig = z.output<typeof watchdogConfig>;
