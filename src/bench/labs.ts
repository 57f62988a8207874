/** Labs of a benchmark: how they differ from others, none left from an earlier run, none left behind. */
import { Lab } from "../lab/lab.ts";
import { QemuPair } from "./qemu_pair.ts";

/**
 * For the agents' [agent] table: a machine that is busy with a benchmark, or with others' work beside it, must not make them
 * take each other for lost. Nothing that is measured depends on it.
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

/** Runs `action`, which may start labs and QEMU pairs of these names; before and after it there are none. */
export async function withLabs<Result>(
  names: readonly string[],
  action: () => Promise<Result>,
): Promise<Result> {
  const interrupted = () => void takeDown(names).finally(() => process.exit(130));
  process.once("SIGINT", interrupted);
  process.once("SIGTERM", interrupted);
  try {
    await takeDown(names);
    return await action();
  } finally {
    process.off("SIGINT", interrupted);
    process.off("SIGTERM", interrupted);
    await takeDown(names);
  }
}
