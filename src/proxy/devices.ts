/**
 * The network devices beside a tap: made and checked with iproute2, once, when its VM is adopted.
 *
 * For tunnel id N: `colo-tN`, a VXLAN device in external mode (the programs choose remote and VNI per frame),
 * and the pair `colo-iN` / `colo-jN`, through which verified frames go back into the kernel. All of them are
 * silent (no addresses, no IPv6), or their own packets would appear as the VM's.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { Problem } from "../errors/problem.ts";
import { ip, NetworkSetupError } from "../host/ip.ts";
import { checkTap, link, routeTo } from "../host/links.ts";

/** Inner Ethernet 14, outer IPv4 20, UDP 8, VXLAN 8 (RFC 7348 section 5). */
export const VXLAN_OVERHEAD_BYTES = 50;

export interface VmDevices {
  tapIfindex: number;
  tunnelIfindex: number;
  injectIfindex: number;
}

async function silence(name: string): Promise<void> {
  writeFileSync(`/proc/sys/net/ipv6/conf/${name}/disable_ipv6`, "1");
  await ip("link", "set", "dev", name, "up");
}

/**
 * Makes the tunnel and the injection pair of a tap (or takes over those an earlier agent made) and checks
 * that the replication link carries the VM's frames in one piece.
 */
export async function ensureDevices(options: {
  tap: string;
  tunnelId: number;
  tunnelPort: number;
  peerAddress: string;
}): Promise<VmDevices> {
  const tap = await checkTap(options.tap);
  const route = await routeTo(options.peerAddress);
  const underlay = await link(route.dev);
  if (underlay !== undefined && underlay.mtu < tap.mtu + VXLAN_OVERHEAD_BYTES) {
    throw new Problem(
      `the replication link ${route.dev} has an MTU of ${underlay.mtu}, but frames of ${options.tap} (MTU ` +
        `${tap.mtu}) need ${tap.mtu + VXLAN_OVERHEAD_BYTES} in the tunnel`,
      `raise the MTU of ${route.dev} on both hosts`,
    );
  }
  const tunnel = `colo-t${options.tunnelId}`;
  const inject = `colo-i${options.tunnelId}`;
  const injectPeer = `colo-j${options.tunnelId}`;
  if ((await link(tunnel)) === undefined) {
    await ip(
      ...["link", "add", tunnel, "mtu", String(tap.mtu), "type", "vxlan", "external"],
      ...["dstport", String(options.tunnelPort)],
    );
  }
  if ((await link(inject)) === undefined) {
    const mtu = ["mtu", String(tap.mtu + 4)];
    await ip("link", "add", inject, ...mtu, "type", "veth", "peer", "name", injectPeer, ...mtu);
  }
  for (const name of [tunnel, inject, injectPeer]) await silence(name);
  const [t, i] = await Promise.all([link(tunnel), link(inject)]);
  if (t === undefined || i === undefined) throw new NetworkSetupError(`"${tunnel}" or "${inject}" has gone`);
  return { tapIfindex: tap.ifindex, tunnelIfindex: t.ifindex, injectIfindex: i.ifindex };
}

/** Removes what {@link ensureDevices} made. */
export async function removeDevices(tunnelId: number): Promise<void> {
  for (const name of [`colo-t${tunnelId}`, `colo-i${tunnelId}`]) {
    if ((await link(name)) !== undefined) await ip("link", "del", name);
  }
}

/**
 * Frames that have left the tap's queue: read by QEMU or dropped because the queue was full.
 * (drivers/net/tun.c counts tx_packets when the frame is copied to the reader, tx_dropped when it is not
 * queued.)
 */
export function tapFramesTaken(tap: string): number {
  const { transmittedFrames, transmitDrops } = deviceCounters(tap);
  return transmittedFrames + transmitDrops;
}

/** Frames that QEMU has written to the tap, dropped ones included. */
export function tapFramesGiven(tap: string): number {
  return deviceCounters(tap).receivedFrames;
}

function deviceCounters(device: string) {
  const text = readFileSync("/proc/self/net/dev", "utf8");
  const line = text.split("\n").find((each) => each.trimStart().startsWith(`${device}:`));
  if (line === undefined) throw new NetworkSetupError(`interface "${device}" has gone`);
  // receive: bytes packets errs drop fifo frame compressed multicast; transmit: bytes packets errs drop ...
  const fields = line
    .slice(line.indexOf(":") + 1)
    .trim()
    .split(/\s+/);
  const [receivedFrames, transmittedFrames, transmitDrops] = [fields[1], fields[9], fields[11]].map(Number);
  if (receivedFrames === undefined || transmittedFrames === undefined || transmitDrops === undefined) {
    throw new NetworkSetupError(`/proc/self/net/dev has no counters of "${device}"`);
  }
  return { receivedFrames, transmittedFrames, transmitDrops };
}
