/** What the comparer reports when the two VMs differ, and how it describes the flow. */
import {
  PROTOCOL_ICMP,
  PROTOCOL_ICMPV6,
  PROTOCOL_SCTP,
  PROTOCOL_TCP,
  PROTOCOL_UDP,
  PROTOCOL_UDPLITE,
} from "../packet/protocol_numbers.ts";
import {
  KEY_DESTINATION,
  KEY_FRAGMENT,
  KEY_KIND,
  KEY_PORTS,
  KEY_SOURCE,
  KEY_VLAN,
  KIND_FRAME,
  KIND_UNPARSED,
} from "./flow_key.ts";
import type { FlowTable } from "./flow_table.ts";

/**
 * Why a checkpoint is needed.
 *
 * - payload: the two VMs have sent different bytes at the same place
 * - length: one datagram is longer than its counterpart, or is another fragment
 * - flags: SYN or FIN on one side where the other has data, or another offer of TCP options
 * - missing_on_secondary, missing_on_primary: the counterpart did not come in time
 * - unparsed: frames that cannot be understood differ
 * - overflow: a limit of the comparer was passed
 * - boundary: frames newer than the checkpoint had been compared with output of the secondary that the
 *   checkpoint undid
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

/** Which flow it is: for people, and in parts. */
interface FlowFacts {
  /**
   * For people: "tcp 198.18.0.2:80 > 198.18.0.9:40000"; "all flows" when it is about no flow in particular.
   */
  flow: string;
  /** tcp, udp, icmp, icmpv6, sctp, udplite, another IP protocol's number, "ethertype 0x88cc", or "any". */
  protocol: string;
  /** IP address without brackets, or MAC address; empty for "all flows". The source is the VM. */
  source: string;
  destination: string;
  /** Of protocols that have ports; absent for fragments. */
  sourcePort?: number;
  destinationPort?: number;
}

export interface Divergence extends FlowFacts {
  class: DivergenceClass;
  /**
   * TCP: payload bytes of this connection before the difference, modulo 2^32; absent when its SYN was not
   * seen.
   */
  streamOffset?: number;
  /** How long the oldest frame concerned had waited. */
  waitedNs: number;
  detail: string;
  /**
   * Byte offsets of the records (struct colo_record) of the two frames concerned in primary.bytes and
   * secondary.bytes; for missing_* that of the frame that waits. Valid only during sink.diverged().
   */
  primaryOffset?: number;
  secondaryOffset?: number;
  /**
   * Byte offsets of the first difference in each frame; just behind its last byte where that frame ends
   * first. Absent when the difference is not in the bytes that were compared.
   */
  primaryFrameOffset?: number;
  secondaryFrameOffset?: number;
}

export const ALL_FLOWS: FlowFacts = { flow: "all flows", protocol: "any", source: "", destination: "" };

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
  return flowFacts(flows, flow).flow;
}

/** Names a flow and takes it apart. Allocates: not for the way of a packet. */
export function flowFacts(flows: FlowTable, flow: number): FlowFacts {
  const meta = flows.keyWord(flow, KEY_KIND);
  const kind = meta >>> 24;
  const ports = flows.keyWord(flow, KEY_PORTS);
  const vlan = describeVlan(flows.keyWord(flow, KEY_VLAN));
  if (kind === KIND_FRAME || kind === KIND_UNPARSED) {
    const name = kind === KIND_UNPARSED ? "unparsed" : "frame";
    const protocol = `ethertype 0x${ports.toString(16).padStart(4, "0")}`;
    const source = macOf(flows, flow, KEY_SOURCE);
    const destination = macOf(flows, flow, KEY_DESTINATION);
    return { flow: `${name} ${protocol} ${source} > ${destination}${vlan}`, protocol, source, destination };
  }
  const version = (meta >>> 8) & 0xff;
  const number = meta & 0xff;
  const known = PROTOCOL_NAMES[number];
  const name = known ?? `ip protocol ${number}`;
  const source = addressOf(flows, flow, KEY_SOURCE, version);
  const destination = addressOf(flows, flow, KEY_DESTINATION, version);
  const facts = { protocol: known ?? `${number}`, source, destination };
  const plain = `${source} > ${destination}${vlan}`;
  if ((meta & KEY_FRAGMENT) !== 0) return { flow: `${name} fragments ${plain}`, ...facts };
  if (number === PROTOCOL_ICMP || number === PROTOCOL_ICMPV6) {
    const kinds = `type ${ports >>> 24} code ${(ports >>> 16) & 0xff} id ${ports & 0xffff}`;
    return { flow: `${name} ${kinds} ${plain}`, ...facts };
  }
  if (known === undefined) return { flow: `${name} ${plain}`, ...facts };
  const sourcePort = ports >>> 16;
  const destinationPort = ports & 0xffff;
  const from = version === 6 ? `[${source}]` : source;
  const to = version === 6 ? `[${destination}]` : destination;
  const text = `${name} ${from}:${sourcePort} > ${to}:${destinationPort}${vlan}`;
  return { flow: text, ...facts, sourcePort, destinationPort };
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
