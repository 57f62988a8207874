/**
 * The lab's network: four namespaces on one machine, addresses from the benchmarking ranges (RFC 2544
 * 198.18.0.0/15, RFC 5180 2001:2::/48), nothing outside them touched.
 *
 *   client ── switch ── host a: bridge br0 ── tap0 (VM)
 *               │
 *               └────── host b: bridge br0 ── tap0 (VM)       host a ── repl ── host b
 */
import { existsSync } from "node:fs";
import { ipIn } from "../host/ip.ts";
import { runToEnd } from "../host/run_to_end.ts";

export const CLIENT_IPV4 = "198.18.0.1";
export const GUEST_IPV4 = "198.18.0.10";
export const CLIENT_IPV6 = "2001:2::1";
export const GUEST_IPV6 = "2001:2::10";
export const GUEST_MAC = "52:54:00:c0:10:0a";
export const TAP = "tap0";
/** Of a guest with a second card, on the same wire. */
export const SECOND_CLIENT_IPV4 = "198.18.2.1";
export const SECOND_GUEST_IPV4 = "198.18.2.10";
export const SECOND_GUEST_MAC = "52:54:00:c0:10:0b";
export const SECOND_TAP = "tap1";
/** Room for the tunnel's 50 bytes, and fewer packets for disk and memory. */
const REPLICATION_MTU = 9000;

export type HostLetter = "a" | "b";

/** Addresses of a lab host on the client's network and on the replication link. */
export const HOST_ADDRESSES: Record<HostLetter, { lan: string; replication: string }> = {
  a: { lan: "198.18.0.2", replication: "198.18.1.1" },
  b: { lan: "198.18.0.3", replication: "198.18.1.2" },
};

export interface LabNamespaces {
  client: string;
  switch: string;
  a: string;
  b: string;
}

export function namespacesOf(lab: string): LabNamespaces {
  return {
    client: `colo-${lab}-client`,
    switch: `colo-${lab}-switch`,
    a: `colo-${lab}-a`,
    b: `colo-${lab}-b`,
  };
}

/** Path of a namespace for nsenter --net=. */
export function namespacePath(name: string): string {
  return `/run/netns/${name}`;
}

/**
 * argv prefix that runs a program with only its network changed; /sys/fs/bpf stays shared, unlike `ip netns
 * exec`.
 */
export function inNamespace(name: string): string[] {
  return ["nsenter", `--net=${namespacePath(name)}`];
}

/** Runs a command to its end. Throws an Error with its complaint. */
export async function run(...command: string[]): Promise<void> {
  const { complaint, status } = await runToEnd(command);
  if (status !== 0) throw new Error(`${command.join(" ")}: ${complaint}`);
}

const inside = (namespace: string, ...command: string[]) => run(...inNamespace(namespace), ...command);
const ip = (namespace: string, ...words: string[]) => ipIn(namespace)(...words);

async function disableIpv6(namespace: string): Promise<void> {
  const settings = ["net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1"];
  await inside(namespace, "sysctl", "-qw", ...settings);
}

/**
 * Lays the network. On an error what was laid is removed again.
 *
 * @param queues of the VMs' taps
 */
export async function createNetwork(
  lab: string,
  { queues = 1, secondCard = false }: { queues?: number | undefined; secondCard?: boolean | undefined } = {},
): Promise<LabNamespaces> {
  const names = namespacesOf(lab);
  try {
    for (const name of Object.values(names)) await run("ip", "netns", "add", name);
    for (const name of [names.switch, names.a, names.b]) await disableIpv6(name);
    for (const name of Object.values(names)) await ip(name, "link", "set", "lo", "up");

    await ip(names.switch, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0");
    await ip(names.switch, "link", "set", "br0", "up");
    for (const port of ["client", "a", "b"] as const) {
      const peer = ["peer", "name", port === "client" ? "eth0" : "uplink", "netns", names[port]];
      await ip(names.switch, "link", "add", "name", `to-${port}`, "type", "veth", ...peer);
      await ip(names.switch, "link", "set", `to-${port}`, "master", "br0", "up");
    }

    const dad = ["net.ipv6.conf.eth0.accept_dad=0", "net.ipv6.conf.eth0.accept_ra=0"];
    await inside(names.client, "sysctl", "-qw", ...dad);
    await ip(names.client, "address", "add", `${CLIENT_IPV4}/24`, "dev", "eth0");
    await ip(names.client, "address", "add", `${CLIENT_IPV6}/64`, "dev", "eth0", "nodad");
    if (secondCard) await ip(names.client, "address", "add", `${SECOND_CLIENT_IPV4}/24`, "dev", "eth0");
    await ip(names.client, "link", "set", "eth0", "up");

    const mtu = ["mtu", String(REPLICATION_MTU)];
    await ip(
      names.a,
      "link",
      "add",
      "repl",
      ...mtu,
      "type",
      "veth",
      "peer",
      "name",
      "repl",
      "netns",
      names.b,
      ...mtu,
    );
    for (const host of ["a", "b"] as const) {
      const name = names[host];
      await ip(name, "link", "add", "br0", "type", "bridge", "mcast_snooping", "0");
      await ip(name, "link", "set", "uplink", "master", "br0", "up");
      for (const tap of secondCard ? [TAP, SECOND_TAP] : [TAP]) {
        const kind = ["mode", "tap", "vnet_hdr", ...(queues > 1 ? ["multi_queue"] : [])];
        await ip(name, "tuntap", "add", "dev", tap, ...kind);
        await ip(name, "link", "set", tap, "master", "br0", "up");
      }
      await ip(name, "address", "add", `${HOST_ADDRESSES[host].lan}/24`, "dev", "br0");
      await ip(name, "link", "set", "br0", "up");
      await ip(name, "address", "add", `${HOST_ADDRESSES[host].replication}/24`, "dev", "repl");
      await ip(name, "link", "set", "repl", "up");
    }
    return names;
  } catch (error) {
    await removeNetwork(lab);
    throw error;
  }
}

/** Removes the namespaces and all that is in them; what is not there is no error. */
export async function removeNetwork(lab: string): Promise<void> {
  for (const name of Object.values(namespacesOf(lab))) {
    if (existsSync(namespacePath(name))) await run("ip", "netns", "del", name);
  }
}
