/** Shuts a guest down: it is asked to, and its QEMU is ended if it does not. */
import type { Logger } from "../host/log.ts";
import type { QmpClient } from "../qmp/client.ts";

const STEP_MS = 100;
const QUIT_TIMEOUT_MS = 10_000;

/** `runs`: whether the VM still runs on this host. QEMU's SHUTDOWN event does the rest. Never rejects. */
export async function powerDown(
  qmp: QmpClient,
  runs: () => boolean,
  limitMs: number,
  log: Logger,
): Promise<void> {
  try {
    await qmp.execute("system_powerdown");
    const deadline = performance.now() + limitMs;
    while (runs() && performance.now() < deadline) await Bun.sleep(STEP_MS);
    if (!runs()) return;
    log.warn("the guest did not shut down in time; its QEMU is ended", { limitMs });
    await qmp.execute("quit", undefined, { timeoutMs: QUIT_TIMEOUT_MS });
  } catch (error) {
    if (runs()) log.warn("the VM could not be shut down", { error });
  }
}
