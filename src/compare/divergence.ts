import type { FlowTable } from "./flow_table.ts";
import {
  KEY_DESTINATION,
  KEY_FRAGMENT,
  KEY_KIND,
  KEY_PORTS,
  KEY_SOURCE,
  KEY_VLAN,
  KIND_FRAME,
  KIND_UNPARSED,
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_SCTP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  PROTOCOL_UDPLITE,
} from "./parse.ts";

/**
 * Why a checkpoint is needed.
 *
 * - payload: the two VMs have sent different bytes at the same place
 * - length: one datagram is longer than its counterpart, or is another fragment
 * - flags: SYN or FIN on one side where the other has data, or another offer of TCP options
 * - missing_on_secondary, missing_on_primary: the counterpart did not come in time
 * - unparsed: frames that cannot be understood differ
 * - overflow: a limit of the comparer was passed
 * - boundary: frames newer than the checkpoint had been compared with output of the secondary that the checkpoint undid
 */
export type DivergenceClass =
  | "payload"
  | "length"
  | "missing_on_secondary"
  | "missing_on_primary"
  | "flags"
  | "unparsed"
  | "overflow"
  | "boundary";

export interface Divergence {
  class: DivergenceClass;
  /** For people: "tcp 198.18.0.2:80 > 198.18.0.9:40000". */
  flow: string;
  /**
   * TCP: payload bytes of this connection before the difference, modulo 2^32; absent when its SYN was not
   * seen.
   */
  streamOffset?: number;
  /** How long the oldest frame concerned had waited. */
  waitedNs: number;
  detail: string;
}

const PROTOCOL_NAMES: Record<number, string> = {
  [PROTOCOL_ICMP]: "icmp",
  [PROTOCOL_TCP]: "tcp",
  [PROTOCOL_UDP]: "udp",
  [PROTOCOL_ICMPV6]: "icmpv6",
  [PROTOCOL_SCTP]: "sctp",
  [PROTOCOL_UDPLITE]: "udplite",
};

/** Names a flow for people. Allocates: not for the way of a packet. */
export function describeFlow(flows: FlowTable, flow: number): string {
  const meta = flows.keyWord(flow, KEY_KIND);
  const kind = meta >>> 24;
  const ports = flows.keyWord(flow, KEY_PORTS);
  const vlan = describeVlan(flows.keyWord(flow, KEY_VLAN));
  if (kind === KIND_FRAME || kind === KIND_UNPARSED) {
    const name = kind === KIND_UNPARSED ? "unparsed" : "frame";
    const type = `0x${ports.toString(16).padStart(4, "0")}`;
    return `${name} ethertype ${type} ${macOf(flows, flow, KEY_SOURCE)} > ${macOf(flows, flow, KEY_DESTINATION)}${vlan}`;
  }
  const version = (meta >>> 8) & 0xff;
  const protocol = meta & 0xff;
  const fragment = (meta & KEY_FRAGMENT) !== 0;
  let name = PROTOCOL_NAMES[protocol] ?? `ip protocol ${protocol}`;
  const source = addressOf(flows, flow, KEY_SOURCE, version);
  const destination = addressOf(flows, flow, KEY_DESTINATION, version);
  if (fragment) return `${name} fragments ${source} > ${destination}${vlan}`;
  if (protocol === PROTOCOL_ICMP || protocol === PROTOCOL_ICMPV6) {
    name += ` type ${ports >>> 24} code ${(ports >>> 16) & 0xff} id ${ports & 0xffff}`;
    return `${name} ${source} > ${destination}${vlan}`;
  }
  if (PROTOCOL_NAMES[protocol] === undefined) return `${name} ${source} > ${destination}${vlan}`;
  const from = version === 6 ? `[${source}]` : source;
  const to = version === 6 ? `[${destination}]` : destination;
  return `${name} ${from}:${ports >>> 16} > ${to}:${ports & 0xffff}${vlan}`;
}

function describeVlan(vlan: number): string {
  if (vlan === 0) return "";
  const inner = vlan >>> 16;
  return inner === 0 ? ` vlan ${vlan & 0xfff}` : ` vlan ${vlan & 0xfff}.${inner & 0xfff}`;
}

function macOf(flows: FlowTable, flow: number, word: number): string {
  const high = flows.keyWord(flow, word).toString(16).padStart(8, "0");
  const low = flows
    .keyWord(flow, word + 1)
    .toString(16)
    .padStart(4, "0");
  return (high + low).replace(/(..)(?=.)/g, "$1:");
}

function addressOf(flows: FlowTable, flow: number, word: number, version: number): string {
  const first = flows.keyWord(flow, word);
  if (version === 4) {
    return `${first >>> 24}.${(first >>> 16) & 0xff}.${(first >>> 8) & 0xff}.${first & 0xff}`;
  }
  const groups: string[] = [];
  for (let i = 0; i < 4; i++) {
    const value = flows.keyWord(flow, word + i);
    groups.push((value >>> 16).toString(16), (value & 0xffff).toString(16));
  }
  return compressIpv6(groups);
}

/** RFC 5952 section 4.2: the longest run of two or more zero groups becomes "::". */
function compressIpv6(groups: string[]): string {
  let best = -1;
  let bestLength = 1;
  for (let i = 0; i < groups.length; i++) {
    let length = 0;
    while (groups[i + length] === "0") length++;
    if (length > bestLength) {
      best = i;
      bestLength = length;
    }
  }
  if (best < 0) return groups.join(":");
  return `${groups.slice(0, best).join(":")}::${groups.slice(best + bestLength).join(":")}`;
}
