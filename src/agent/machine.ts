/** What the primary's and the secondary's procedures for one VM share: its QEMU, its data plane, its peer. */
import type { DataPath } from "../datapath/handle.ts";
import type { DivergenceRecorder } from "../divergence/recorder.ts";
import type { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import type { QmpClient } from "../qmp/client.ts";
import type { PrimaryDisk } from "../qmp/colo.ts";
import type { VmConfig } from "./config.ts";
import type { Logger } from "./log.ts";
import type { VmMetrics } from "./metrics.ts";
import type { Peer, SecondaryAddresses } from "./peer_api.ts";

export interface Machine {
  readonly config: VmConfig;
  readonly qmp: QmpClient;
  readonly dataPlane: DataPlane;
  readonly dataPath: DataPath;
  readonly peer: Peer;
  /** This host's address on the replication link. */
  readonly replicationAddress: string;
  readonly log: Logger;
  readonly metrics: VmMetrics;
  readonly divergences: DivergenceRecorder;
}

/** Lets frames leave until `deadlineMs` (CLOCK_BOOTTIME) unless the lease is longer already. */
export function extendLease({ dataPlane }: Machine, deadlineMs: number): void {
  const deadlineNs = BigInt(Math.floor(deadlineMs * 1e6));
  if (deadlineNs > dataPlane.state.leaseDeadlineNs) dataPlane.state.leaseDeadlineNs = deadlineNs;
}

/** Nothing of this VM leaves this host any more, and nothing reaches it. */
export function block({ dataPlane }: Machine): void {
  dataPlane.state.role = ROLE.BLOCKED;
  dataPlane.state.leaseDeadlineNs = 0n;
}

/** For steps that only remove the disk's nodes. */
export const NO_EXPORT = { host: "", port: 0, exportName: "" };

/** The disk's nodes in QEMU; `export_` tells where the secondary's copy is. */
export function diskOption(config: VmConfig, export_: SecondaryAddresses["nbd"]): { disk?: PrimaryDisk } {
  const { disk } = config;
  if (disk === false || export_ === undefined) return {};
  return {
    disk: {
      quorumNode: disk.quorum_node,
      replicationNode: "colo-replication0",
      nbdNode: "colo-nbd0",
      nbdHost: export_.host,
      nbdPort: export_.port,
      exportName: export_.exportName,
    },
  };
}
