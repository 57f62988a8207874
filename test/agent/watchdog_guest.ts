/** What runs in the virtual machine of watchdog_guest.test.ts, on a kernel with softdog. */

import { openWatchdog } from "../../src/agent/watchdog.ts";
import { createLogger } from "../../src/host/log.ts";

const TIMEOUT_S = 2;
const log = createLogger("info");
const config = { device: "/dev/watchdog", timeout_s: TIMEOUT_S, required: true };

function say(text: string): void {
  process.stdout.write(`guest: ${text}\n`);
}

const watchdog = openWatchdog(config, log)!;
say("armed");
try {
  openWatchdog(config, log);
} catch (error) {
  say(`second: ${(error as Error).message}`);
}
for (let i = 0; i < 12; i++) {
  await Bun.sleep((TIMEOUT_S * 1_000) / 4);
  watchdog.kick();
}
say("kept alive for three timeouts");
watchdog.close();
await Bun.sleep(3 * TIMEOUT_S * 1_000);
say("disarmed for three timeouts");
openWatchdog(config, log)!.kick();
say("armed again");
process.kill(process.pid, "SIGKILL");
