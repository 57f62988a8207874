/** Labs of a benchmark: none left from an earlier run, none left behind, also when it is interrupted. */
import { Lab } from "../lab/lab.ts";
import { QemuPair } from "./qemu_pair.ts";

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
