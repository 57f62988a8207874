/** The replication link: its MTU, its acknowledgements, and the agent at its other end. */
import { PeerUnreachableError } from "../agent/control_channel.ts";
import { greet } from "../agent/peer_client.ts";
import { ip } from "../host/ip.ts";
import { checkTap, link, linkWith, routeTo } from "../host/links.ts";
import { createLogger } from "../host/log.ts";
import { VXLAN_OVERHEAD_BYTES } from "../proxy/devices.ts";
import {
  type Check,
  configOf,
  type DoctorContext,
  type Finding,
  fail,
  type Group,
  ok,
  warn,
} from "./check.ts";

/** IPv4 and ICMP headers of a ping. */
const PING_OVERHEAD_BYTES = 28;
const TAP_MTU_USUAL = 1500;
const PEER_LIMIT_MS = 3_000;

function addresses(context: DoctorContext): { own: string; peer: string } {
  const { agent, peer } = configOf(context);
  return { own: agent.control.host, peer: peer.control.host };
}

async function ownAddress(context: DoctorContext): Promise<Finding> {
  const { own } = addresses(context);
  const name = await linkWith(own);
  if (name !== undefined) return ok(`${own} on ${name}`);
  return fail(`no interface has ${own}`, "Give agent.control an address of this host.");
}

async function neededMtu(context: DoctorContext): Promise<number> {
  let tapMtu = TAP_MTU_USUAL;
  for (const { tap } of configOf(context).vm.flatMap(({ nic }) => nic)) {
    const facts = await checkTap(tap).catch(() => undefined); // the VM's own check tells of it
    tapMtu = Math.max(tapMtu, facts?.mtu ?? 0);
  }
  return tapMtu + VXLAN_OVERHEAD_BYTES;
}

async function linkMtu(context: DoctorContext): Promise<Finding> {
  const { peer } = addresses(context);
  const needed = await neededMtu(context);
  const fix =
    `Give the replication link an MTU of ${needed} or more on both hosts and on the switches between (ip ` +
    "link set mtu).";
  const { dev } = await routeTo(peer);
  const mtu = (await link(dev))?.mtu ?? 0;
  if (mtu < needed) return fail(`${dev} has an MTU of ${mtu}, the tunnel needs ${needed}`, fix);
  const whole = await ping(context, needed - PING_OVERHEAD_BYTES);
  if (whole) return ok(`${dev} has ${mtu}, and ${needed} bytes came back from ${peer} in one piece`);
  if (await ping(context, 0))
    return fail(`${dev} has ${mtu}, but packets of ${needed} bytes do not get to ${peer} and back`, fix);
  return warn(
    `${dev} has ${mtu}; ${peer} does not answer pings, so the way there was not tried`,
    "Start the peer's host, or allow ICMP echo on the replication link.",
  );
}

async function ping(context: DoctorContext, bytes: number): Promise<boolean> {
  const { own, peer } = addresses(context);
  const words = [
    "-q",
    "-n",
    "-M",
    "do",
    "-c",
    "2",
    "-i",
    "0.2",
    "-W",
    "1",
    "-s",
    String(bytes),
    "-I",
    own,
    peer,
  ];
  const child = Bun.spawn(["ping", ...words], { stdin: "ignore", stdout: "ignore", stderr: "ignore" });
  return (await child.exited) === 0;
}

/** src/proxy/devices.ts disableDelayedAck sets the route whenever the agents connect. */
async function quickAck(context: DoctorContext): Promise<Finding> {
  const { peer } = addresses(context);
  const routes = await ip("route", "show", `${peer}/32`);
  if (/\bquickack 1\b/.test(routes)) return ok(`the route to ${peer} has quickack 1`);
  return warn(
    `acknowledgements to ${peer} are delayed: each checkpoint would take about 30 ms longer`,
    "The agent sets quickack 1 on the route when it reaches its peer; if it runs, see its log.",
  );
}

async function peerAgent(context: DoctorContext): Promise<Finding> {
  const { agent, peer } = configOf(context);
  const where = `${peer.control.host}:${peer.control.port}`;
  try {
    const { version } = await greet(peer.control, agent.control.host, createLogger("error"), PEER_LIMIT_MS);
    return ok(`colo-agent ${version} answers at ${where}`);
  } catch (error) {
    if (error instanceof PeerUnreachableError)
      return warn(
        error.message,
        "Start colo-agent on the peer, and check the replication link and its firewall.",
      );
    return fail(
      `what answers at ${where} refuses this agent: ${(error as Error).message}`,
      "Install the same version of colo-agent on both hosts.",
    );
  }
}

const checks: Check[] = [
  { id: "address", title: "Own address", needsConfig: true, run: ownAddress },
  { id: "mtu", title: "Link's MTU", needsConfig: true, run: linkMtu },
  { id: "quickack", title: "Acknowledgements", needsConfig: true, run: quickAck },
  { id: "peer", title: "Peer agent", needsConfig: true, run: peerAgent },
];

export const linkGroup: Group = { name: "link", title: "Replication link", checks };
