/** What the primary's and the secondary's duties for one VM share: its QEMU, its data plane, its standing. */
import type { DataPath } from "../datapath/handle.ts";
import type { DivergenceRecorder } from "../divergence/recorder.ts";
import type { DataPlane } from "../ffi/data_plane.ts";
import type { QmpClient } from "../qmp/client.ts";
import type { Authority } from "./authority.ts";
import { bootMs } from "./clock.ts";
import type { HeartbeatConfig, VmConfig } from "./config.ts";
import type { Logger } from "./log.ts";
import type { VmMetrics } from "./metrics.ts";
import type { Peer } from "./peer_api.ts";

/**
 * starting -> alone | waiting
 * holder:   alone -> protecting -> protected -> going_alone -> alone
 * other:    waiting -> incoming -> standby -> taking_over -> alone
 * stopped: this agent does nothing more for the VM; its output is dropped in the kernel.
 */
export type Phase =
  | "starting"
  | "alone"
  | "protecting"
  | "protected"
  | "going_alone"
  | "waiting"
  | "incoming"
  | "standby"
  | "taking_over"
  | "stopped";

export interface Machine {
  readonly config: VmConfig;
  readonly heartbeat: HeartbeatConfig;
  readonly qmp: QmpClient;
  readonly dataPlane: DataPlane;
  readonly dataPath: DataPath;
  readonly authority: Authority;
  readonly peer: Peer;
  /** This host's address on the replication link. */
  readonly replicationAddress: string;
  readonly log: Logger;
  readonly metrics: VmMetrics;
  readonly divergences: DivergenceRecorder;
  phase: Phase;
  /** Why the phase is "stopped", or the last failure of protection. */
  reason: string | undefined;
}

export function setPhase(machine: Machine, phase: Phase, reason?: string): void {
  const from = machine.phase;
  machine.phase = phase;
  machine.reason = reason;
  machine.log.info("phase", { from, to: phase, ...(reason === undefined ? {} : { reason }) });
}

/** Lets frames leave until `deadlineMs` (CLOCK_BOOTTIME) unless the lease is longer already. */
export function extendLease(machine: Machine, deadlineMs: number): void {
  const deadlineNs = BigInt(Math.floor(deadlineMs * 1e6));
  if (deadlineNs > machine.dataPlane.state.leaseDeadlineNs)
    machine.dataPlane.state.leaseDeadlineNs = deadlineNs;
}

/** The lease of a VM that runs alone: as long as this agent lives. */
export function extendOwnLease(machine: Machine): void {
  extendLease(machine, bootMs() + machine.heartbeat.lease_ms);
}

/** Nothing leaves any more. */
export function dropLease(machine: Machine): void {
  machine.dataPlane.state.leaseDeadlineNs = 0n;
}

/** Whether the phase is `phase` now: after an await it may be another than before. */
export function isIn(machine: Machine, phase: Phase): boolean {
  return machine.phase === phase;
}
