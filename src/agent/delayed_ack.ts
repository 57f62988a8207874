/** The kernel's delayed ACKs on the way to the peer would make each checkpoint wait for a timer. */
import { disableDelayedAck } from "../host/links.ts";
import type { Logger } from "../host/log.ts";

/**
 * Turns them off for the route to `host`; a link that was down has lost its routes, so this is called again
 * and again.
 */
export function quickenAcks(host: string, log: Logger): void {
  disableDelayedAck(host).catch((error) =>
    log.warn("the route to the peer keeps delayed ACKs: checkpoints take 30 ms longer", { error }),
  );
}
