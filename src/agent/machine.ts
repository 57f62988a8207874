/** What the primary's and the secondary's procedures for one VM share: its QEMU, its data plane, its peer. */
import type { DivergenceRecorder } from "../divergence/recorder.ts";
import type { PacketProxy } from "../proxy/proxy.ts";
import type { QmpClient } from "../qmp/client.ts";
import type { PrimaryDisk } from "../qmp/colo.ts";
import type { VmConfig } from "./config.ts";
import type { Logger } from "./log.ts";
import type { VmMetrics } from "./metrics.ts";
import type { Peer, SecondaryAddresses } from "./peer_api.ts";

export interface Machine {
  readonly config: VmConfig;
  readonly qmp: QmpClient;
  readonly proxy: PacketProxy;
  readonly peer: Peer;
  /** This host's address on the replication link. */
  readonly replicationAddress: string;
  readonly log: Logger;
  readonly metrics: VmMetrics;
  readonly divergences: DivergenceRecorder;
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
