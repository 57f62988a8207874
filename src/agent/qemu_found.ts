/** What an agent that starts finds in its QEMU, which may have run under an earlier agent. */

import type { QemuFacts } from "../colo/check.ts";
import type { QemuHas } from "../failover/state.ts";
import type { QmpClient } from "../qmp/client.ts";
import { coloMode } from "../qmp/vm.ts";

/**
 * A QEMU that has loaded a replica, or part of one, can become nothing else any more: it is told from one
 * that waits untouched, and from one that has the VM (migration/colo.c: the mode says on which side of COLO a
 * QEMU is).
 *
 * @param leftInOrder the last agent left a replica to be followed again
 */
export async function whatQemuHas(qmp: QmpClient, facts: QemuFacts, leftInOrder: boolean): Promise<QemuHas> {
  if (facts.runState === "inmigrate") return facts.migrationStatus === "none" ? "incoming" : "replica";
  const mode = await coloMode(qmp);
  if (mode === "secondary") return leftInOrder && facts.runState === "running" ? "following" : "replica";
  return mode === "primary" && facts.migrationStatus === "colo" ? "protected" : "running";
}
