/** What the primary's and the secondary's procedures for one VM share: its QEMU, its data plane, its peer. */
import { statSync } from "node:fs";
import type { PrimaryDisk } from "../colo/index.ts";
import type { VmConfig } from "../config/config.ts";
import { nodesOf } from "../config/disk.ts";
import type { DivergenceRecorder } from "../divergence/recorder.ts";
import type { Logger } from "../host/log.ts";
import type { PacketProxy } from "../proxy/proxy.ts";
import type { QmpClient } from "../qmp/client.ts";
import type { StreamTls } from "../qmp/tls.ts";
import type { ReplicaImages, ReplicaMarker } from "../storage/replica_marker.ts";
import type { VmMetrics } from "./metrics/agent_metrics.ts";
import type { Peer, SecondaryAddresses } from "./peer_api.ts";
import type { Tuning } from "./tuning.ts";

export interface Machine {
  readonly config: VmConfig;
  readonly tuning: Tuning;
  /**
   * What this host's images are a replica of; undefined where nobody can tell that nothing else writes them.
   */
  readonly marker: ReplicaMarker | undefined;
  readonly qmp: QmpClient;
  readonly proxy: PacketProxy;
  readonly peer: Peer;
  /** This host's address on the replication link. */
  readonly replicationAddress: string;
  /** Of QEMU's streams to and from the peer; undefined: they are not encrypted. */
  readonly tls: StreamTls | undefined;
  readonly log: Logger;
  readonly metrics: VmMetrics;
  readonly divergences: DivergenceRecorder;
}

/** The disks' nodes in QEMU, without an address: for steps that only look for or remove them. */
export function disksOf(config: VmConfig): PrimaryDisk[] {
  return config.disk.map((disk) => {
    const { quorum, replication, nbd } = nodesOf(disk);
    return {
      quorumNode: quorum,
      replicationNode: replication,
      nbdNode: nbd,
      nbdHost: "",
      nbdPort: 0,
      exportName: "",
    };
  });
}

/**
 * The same with the secondary's copies.
 * @throws Error if the two hosts have not the same disks configured
 */
export function disksWithExports(config: VmConfig, offer: SecondaryAddresses["nbd"]): PrimaryDisk[] {
  const exports = offer?.exports ?? {};
  const here = config.disk.map((disk) => disk.name);
  const there = Object.keys(exports);
  if (here.length !== there.length || here.some((name) => exports[name] === undefined)) {
    const list = (names: string[]) => (names.length === 0 ? "none" : names.join(", "));
    throw new Error(
      `VM ${config.name} has the disks ${list(here)} on this host and ${list(there)} on the peer; ` +
        "[[vm.disk]] must be the same on both",
    );
  }
  return disksOf(config).map((disk, index) => ({
    ...disk,
    nbdHost: offer?.host ?? "",
    nbdPort: offer?.port ?? 0,
    exportName: exports[here[index] as string] as string,
  }));
}

/** The images of a managed VM, as its marker names them: an image that was replaced is another one. */
export function imagesOf(config: VmConfig): ReplicaImages {
  return Object.fromEntries(
    (config.managed?.disks ?? []).map(({ name, path, format }) => {
      const { ino, size } = statSync(path);
      return [name, { image: `${path} inode ${ino}`, bytes: format === "raw" ? size : 0 }];
    }),
  );
}
