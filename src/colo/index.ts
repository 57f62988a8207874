/**
 * COLO on QEMU, one host's view at a time: each agent talks to its own QEMU only and the agents agree over
 * their own channel.
 *
 *   both        checkQemu
 *   secondary   prepareSecondary ─────────┐                      secondaryFailover, announceSelf
 *   primary                               └▶ startProtection ─▶ requestCheckpoint … primaryFailover
 */

export { removeTls, type StreamTls } from "../qmp/tls.ts";
export { ColoProcedureError } from "../qmp/vm.ts";
export type { DiskProgress, PrimaryDisk } from "../storage/mirror.ts";
export {
  checkQemu,
  inspectQemu,
  judgeVersion,
  type QemuFacts,
  QemuUnsuitableError,
  type VersionVerdict,
} from "./check.ts";
export {
  clearProtection,
  connections,
  type PrimaryFailover,
  type Protection,
  type ProtectionHooks,
  type ProtectionOptions,
  primaryFailover,
  requestCheckpoint,
  startProtection,
  undoProtection,
} from "./protect.ts";
export {
  announceSelf,
  endReplica,
  type NbdServer,
  type PrepareSecondaryOptions,
  prepareSecondary,
  type SecondaryFailover,
  secondaryDisksCommitted,
  secondaryFailover,
} from "./replica.ts";
