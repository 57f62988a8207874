/**
 * A protected VM with everything real but the VMs: two hosts with bridge, tap, tunnel and programs, and the
 * data path of the primary. The test plays primary, secondary and somebody else on the primary's bridge.
 */

import { COMPARER_LIMITS } from "../../src/compare/comparer.ts";
import { DataPath } from "../../src/datapath/handle.ts";
import type { ReportedDivergence } from "../../src/divergence/recorder.ts";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { ROLE } from "../../src/ffi/layout.ts";
import { ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { grantLease, MARK } from "../bpf/data_plane_under_test.ts";
import { addNamespace, ip, linkHosts, REPLICATION, startPlane, stopPlane } from "../bpf/network.ts";

interface ProtectedVmOptions {
  workers?: number;
  ringBytes?: number;
  /** Queues of each VM's tap. */
  queues?: number;
  /** After which a frame without counterpart is reported; long enough for no test to see it. */
  maxWaitMs?: number;
}

export class ProtectedVm {
  /** The queues of the VMs' taps. */
  readonly vms: readonly Tap[];
  readonly replicas: readonly Tap[];
  /** Somebody else on the primary's bridge. */
  readonly far: Tap;
  readonly plane: DataPlane;
  readonly secondary: DataPlane;
  readonly path: DataPath;
  readonly divergences: ReportedDivergence[] = [];
  /** The hosts' namespaces, the primary's first. */
  readonly hosts: readonly string[];
  readonly #planes: readonly DataPlane[];

  /** @param name begins the names of its namespaces and pins */
  constructor(
    name: string,
    { workers = 1, ringBytes = 2 ** 24, queues = 1, maxWaitMs = 60_000 }: ProtectedVmOptions = {},
  ) {
    this.hosts = ["p", "s"].map((host) => `${name}${host}`);
    const [p, s] = this.hosts;
    for (const host of this.hosts) addNamespace(host);
    linkHosts(p, s);
    const openTaps = () => Array.from({ length: queues }, () => new Tap("vm", { multiQueue: queues > 1 }));
    this.vms = inNamespace(p, openTaps);
    this.far = inNamespace(p, () => new Tap("far"));
    this.replicas = inNamespace(s, openTaps);
    ip(`-n ${p} link add br0 type bridge mcast_snooping 0`);
    for (const port of ["vm", "far"]) ip(`-n ${p} link set ${port} master br0 up`);
    ip(`-n ${p} link set br0 up`);
    ip(`-n ${s} link set vm up`);
    this.#planes = this.hosts.map((namespace, i) =>
      startPlane({
        name: namespace,
        namespace,
        tap: "vm",
        peerIpv4: REPLICATION.ipv4[1 - i],
        workers,
        ringBytes,
      }),
    );
    const [plane, secondary] = this.#planes;
    this.plane = plane;
    this.secondary = secondary;
    plane.state.role = ROLE.PRIMARY;
    grantLease(plane);
    secondary.state.role = ROLE.SECONDARY;
    secondary.state.epoch = 1;
    secondary.state.rewriteEpoch = 1;
    this.path = inNamespace(
      p,
      () =>
        new DataPath(
          {
            dataPlane: plane,
            injectIfindex: ifindex("inj0"),
            tapIfindex: ifindex("vm"),
            replayMark: MARK.replay,
            maxWaitMs,
            rules: {},
            limits: COMPARER_LIMITS,
          },
          {
            diverged: (divergence) => this.divergences.push(divergence),
            failed: (message) => {
              throw new Error(message);
            },
          },
        ),
    );
  }

  get vm(): Tap {
    return this.vms[0];
  }

  get replica(): Tap {
    return this.replicas[0];
  }

  async close(): Promise<void> {
    await this.path.close();
    this.#planes.forEach((plane, i) => {
      stopPlane(this.hosts[i], plane);
    });
    for (const tap of [...this.vms, ...this.replicas, this.far]) tap.close();
  }
}
