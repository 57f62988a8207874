/** Labs of a benchmark: how they differ from others, none left from an earlier run, none left behind. */
import { Lab } from "../lab/lab.ts";
import { QemuPair } from "./qemu_pair.ts";
import type { BenchContext } from "./result.ts";

/**
 * For the agents' [agent] table: a machine that is busy with a benchmark, or with others' work beside it,
 * must not make them take each other for lost. Nothing that is measured depends on it.
 */
export const PATIENT_AGENTS = `
[heartbeat]
timeout_ms = 15000
lease_ms = 15000`;
/** For the agents' checkpoint table, with the same purpose. */
export const PATIENT_CHECKPOINTS = "stop_timeout_ms = 30000";

async function takeDown(names: readonly string[]): Promise<void> {
  for (const name of names) {
    await Lab.down(name);
    await QemuPair.down(name);
  }
}

/**
 * Runs `action`, which may start labs and QEMU pairs of these names; before and after it there are none. A
 * SIGINT or SIGTERM ends it at its next step, since in the middle of one a process may have been started that
 * nobody has written down yet.
 */
export async function withLabs<Result>(
  names: readonly string[],
  context: BenchContext,
  action: (context: BenchContext) => Promise<Result>,
): Promise<Result> {
  let interrupted = false;
  const interrupt = () => {
    interrupted = true;
    context.progress("interrupted; removing everything");
  };
  const progress = (text: string) => {
    if (interrupted) throw new Error("interrupted");
    context.progress(text);
  };
  process.on("SIGINT", interrupt);
  process.on("SIGTERM", interrupt);
  try {
    await takeDown(names);
    return await action({ ...context, progress });
  } finally {
    await takeDown(names);
    process.off("SIGINT", interrupt);
    process.off("SIGTERM", interrupt);
    if (interrupted) process.exit(130);
  }
}
