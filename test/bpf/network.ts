/**
 * Network namespaces for a test file, and what two hosts with a replication link between them have in theirs.
 */
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { runSync } from "../../src/host/run_to_end.ts";
import { until } from "../until.ts";
import { loadFresh, SETTINGS, unload } from "./data_plane_under_test.ts";

export const run = runSync;

export const ip = (line: string): string => run("ip", ...line.split(" "));

/**
 * Ends the namespaces of this prefix, those of an earlier run included; with them go their interfaces, and
 * the processes that a run which crashed has left there.
 */
export function removeNamespaces(prefix: string): void {
  for (const line of ip("netns list").split("\n")) {
    const name = line.split(" ")[0];
    if (!name.startsWith(prefix)) continue;
    for (const pid of ip(`netns pids ${name}`).trim().split("\n")) {
      if (pid === "") continue;
      try {
        process.kill(Number(pid), "SIGKILL");
      } catch {
        // It has ended by itself.
      }
    }
    ip(`netns del ${name}`);
  }
}

/** A namespace in which nothing speaks by itself. */
export function addNamespace(name: string): void {
  ip(`netns add ${name}`);
  for (const scope of ["all", "default"]) {
    run("ip", "netns", "exec", name, "sysctl", "-qw", `net.ipv6.conf.${scope}.disable_ipv6=1`);
  }
  ip(`-n ${name} link set lo up`);
}

interface HostOptions {
  name: string;
  namespace: string;
  /** The VM's interface on the host; it has to exist. */
  tap: string;
  peerIpv4: number;
  workers?: number;
  ringBytes?: number;
  copyInChunks?: boolean;
}

/**
 * Replication link between two hosts' namespaces: `rep` with addresses 198.19.0.1 and .2, and `vx` over it.
 */
export const REPLICATION = {
  ipv4: [0xc613_0001, 0xc613_0002],
  macs: ["02:00:00:00:01:01", "02:00:00:00:01:02"],
} as const;

export function linkHosts(a: string, b: string): void {
  ip(
    `-n ${a} link add rep address ${REPLICATION.macs[0]} mtu 1600 type veth peer name rep address ` +
      `${REPLICATION.macs[1]} mtu 1600 netns ${b}`,
  );
  [a, b].forEach((namespace, i) => {
    ip(`-n ${namespace} addr add 198.19.0.${i + 1}/30 dev rep`);
    ip(`-n ${namespace} link set rep up`);
    ip(`-n ${namespace} link add vx type vxlan external dstport 4789`);
    ip(`-n ${namespace} link set vx up`);
    ip(`-n ${namespace} neigh add 198.19.0.${2 - i} lladdr ${REPLICATION.macs[1 - i]} dev rep`);
    ip(`-n ${namespace} link add inj0 type veth peer name inj1`);
    ip(`-n ${namespace} link set inj0 up`);
    ip(`-n ${namespace} link set inj1 up`);
  });
}

/**
 * The tap of a VM and that of a neighbour, which takes no offloads and has room for many frames, on a bridge
 * of namespace `a`; with a replication link to `b`.
 */
export function bridgeVm(a: string, b: string): { vm: Tap; neighbour: Tap } {
  for (const name of [a, b]) addNamespace(name);
  // Or the bridge drops what has a wrong checksum; where there is no such setting (br_netfilter not loaded)
  // it does not.
  run("ip", "netns", "exec", a, "sysctl", "-eqw", "net.bridge.bridge-nf-call-iptables=0");
  linkHosts(a, b);
  const taps = inNamespace(a, () => ({
    vm: new Tap("vm"),
    neighbour: new Tap("neighbour", { offload: false }),
  }));
  ip(`-n ${a} link add br0 type bridge mcast_snooping 0`);
  for (const port of ["vm", "neighbour"]) ip(`-n ${a} link set ${port} master br0 up`);
  ip(`-n ${a} link set neighbour txqueuelen 10000`);
  ip(`-n ${a} link set br0 up`);
  return taps;
}

/** The next frames that a tap is given, `count` at least, without their virtio_net_hdr. */
export function captured(tap: Tap, count: number): Promise<Uint8Array[]> {
  const frames: Uint8Array[] = [];
  return until("the last frame has come", () => {
    for (let frame = tap.read(); frame !== undefined; frame = tap.read())
      frames.push(frame.slice(VNET_BYTES));
    return frames.length >= count && frames;
  });
}

/** Loads a data plane for a host and attaches it. */
export function startPlane({ name, namespace, tap, peerIpv4, ...options }: HostOptions): DataPlane {
  return inNamespace(namespace, () => {
    const at = {
      tapIfindex: ifindex(tap),
      tunnelIfindex: ifindex("vx"),
      injectIfindex: ifindex("inj0"),
    };
    const settings = { ...SETTINGS, tapIfindex: at.tapIfindex, tunnelIfindex: at.tunnelIfindex, peerIpv4 };
    const plane = loadFresh(name, { settings, ...options });
    plane.attach(at);
    return plane;
  });
}

export function stopPlane(name: string, plane: DataPlane | undefined): void {
  if (plane !== undefined) unload(name, plane);
}
