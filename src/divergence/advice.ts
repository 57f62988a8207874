/**
 * What a reader can do about a divergence, with the lines for the configuration (docs/configuration.md:
 * passthrough, ignore).
 */
import { serviceOf } from "./flow.ts";
import { payloadByte, payloadDifference, primarySide, secondarySide } from "./payloads.ts";
import type { DivergenceRecord, FlowDescription } from "./record.ts";

const RULE_PROTOCOLS: ReadonlySet<string> = new Set(["tcp", "udp", "sctp"]);
const PROTOCOL_NUMBERS: Record<string, string> = { udplite: "136" };
/** Services of the network itself: a VM uses them with any server. */
const ANY_SERVER_PORTS: ReadonlySet<string> = new Set([
  "udp 53",
  "udp 67",
  "udp 68",
  "udp 123",
  "udp 319",
  "udp 320",
  "udp 514",
  "udp 546",
  "udp 547",
  "udp 5353",
  "udp 5355",
]);

/**
 * Fields that differ as a whole though some of their bytes are the same by chance: first and last byte in the
 * UDP payload.
 */
const FIELDS: Record<string, readonly (readonly [number, number])[]> = {
  "udp 53": [[0, 1]], // RFC 1035 4.1.1: ID
  "udp 67": [
    [4, 7], // RFC 2131 section 2: xid
    [8, 9], // secs
  ],
  "udp 68": [
    [4, 7],
    [8, 9],
  ],
  "udp 123": [
    [16, 23], // RFC 5905 7.3: reference, origin, receive and transmit timestamp
    [24, 31],
    [32, 39],
    [40, 47],
  ],
  "udp 546": [[1, 3]], // RFC 8415 section 8: transaction-id
  "udp 547": [[1, 3]],
};
/** Ranges with fewer equal bytes between them are one: random bytes are equal by chance. */
const RANGE_GAP_MAX = 3;
const RANGES_MAX = 4;

/**
 * The line of src/compare/rules.ts that matches a flow: "udp port 123", "tcp 198.18.0.10 port 9000". As
 * narrow as it can be and still cover the next flow of its kind. Undefined if no line can.
 */
export function ruleFor(flow: FlowDescription): string | undefined {
  const protocol = protocolInRule(flow);
  if (protocol === undefined) return undefined;
  const service = serviceOf(flow);
  if (service === undefined) return `${protocol} ${flow.destination}`;
  if (service.side === "source" || ANY_SERVER_PORTS.has(`${protocol} ${service.port}`)) {
    return `${protocol} port ${service.port}`;
  }
  return `${protocol} ${flow.destination} port ${service.port}`;
}

function protocolInRule({ protocol, destination }: FlowDescription): string | undefined {
  // Either word stands for one IP version, and a VM can send it over the other.
  if (protocol === "icmp" || protocol === "icmpv6") {
    return (protocol === "icmpv6") === destination.includes(":") ? protocol : undefined;
  }
  if (RULE_PROTOCOLS.has(protocol) || /^\d+$/.test(protocol)) return protocol;
  return PROTOCOL_NUMBERS[protocol];
}

/**
 * Lines (one or none) that leave out of the comparison what differs in a UDP packet; none when too much
 * differs, or when it is not known.
 */
export function ignoreRules(record: DivergenceRecord): string[] {
  const { flow } = record;
  const rule = ruleFor(flow);
  const service = serviceOf(flow);
  if (flow.protocol !== "udp" || record.class !== "payload") return [];
  if (rule === undefined || service === undefined) return [];
  const fields = FIELDS[`udp ${service.port}`] ?? [];
  const ranges = mergeRanges(differentRanges(record).map((range) => widen(range, fields)));
  if (ranges.length === 0 || ranges.length > RANGES_MAX) return [];
  return [`${rule} bytes ${ranges.map(([first, last]) => `${first}-${last}`).join(",")}`];
}

type Range = readonly [first: number, last: number];

function differentRanges(record: DivergenceRecord): Range[] {
  const primary = primarySide(record);
  const secondary = secondarySide(record);
  if (primary === undefined) return [];
  if (record.redacted) {
    const at = payloadDifference(primary);
    const fields = FIELDS[`udp ${serviceOf(record.flow)?.port}`] ?? [];
    const known = at !== undefined && fields.some(([first, last]) => at >= first && at <= last);
    return known ? [[at, at]] : [];
  }
  if (secondary === undefined || primary.payloadBytes !== secondary.payloadBytes) return [];
  const ranges: Range[] = [];
  let different = 0;
  for (let i = 0; i < primary.payloadBytes; i++) {
    const p = payloadByte(primary, i);
    const s = payloadByte(secondary, i);
    if (p === undefined || s === undefined) return []; // not kept: nobody knows what else differs
    if (p === s) continue;
    ranges.push([i, i]);
    different++;
  }
  return different * 2 > primary.payloadBytes && different > 16 ? [] : mergeRanges(ranges);
}

function mergeRanges(ranges: readonly Range[]): Range[] {
  const merged: Range[] = [];
  for (const [first, last] of [...ranges].sort((a, b) => a[0] - b[0])) {
    const previous = merged.at(-1);
    if (previous !== undefined && first - previous[1] <= RANGE_GAP_MAX + 1) {
      merged[merged.length - 1] = [previous[0], Math.max(previous[1], last)];
    } else merged.push([first, last]);
  }
  return merged;
}

function widen([first, last]: Range, fields: readonly Range[]): Range {
  let range: Range = [first, last];
  for (const [from, to] of fields) {
    if (range[0] <= to && range[1] >= from) range = [Math.min(range[0], from), Math.max(range[1], to)];
  }
  return range;
}

interface Advice {
  sentences: string[];
  /** For `passthrough` of [[vm]]. */
  passthrough?: string;
  /** For `ignore` of [[vm]]. */
  ignore: string[];
}

export function adviceFor(record: DivergenceRecord): Advice {
  const { class: why, flow } = record;
  if (why === "overflow") {
    return {
      sentences: [
        "Check whether the secondary keeps up (CPU of its host, replication link): the primary's frames " +
          "are held until then.",
      ],
      ignore: [],
    };
  }
  if (why === "boundary") {
    return {
      sentences: [
        "Nothing: the second checkpoint has corrected it. This is rare. If it is frequent, report it.",
      ],
      ignore: [],
    };
  }
  const sentences: string[] = [];
  if (why === "missing_on_primary" || why === "missing_on_secondary") {
    const late = why === "missing_on_primary" ? "primary" : "secondary";
    sentences.push(
      `If it happens often in many flows, the ${late} is late. Check the CPU of its host and the ` +
        "replication link, or raise max_wait_ms of [vm.checkpoint].",
      "If it is always this flow, only one of the VMs sends there, for example because of a timer or a " +
        "random value.",
    );
  }
  if (why === "payload" || why === "flags") {
    sentences.push(
      "An occasional divergence is harmless: a checkpoint makes the VMs identical again, and no data is " +
        "lost.",
    );
  }
  if (flow.protocol === "tcp" && why === "payload") {
    sentences.push("Long-lived connections (keep-alive, pools) diverge less often than new ones.");
  }
  const passthrough = ruleFor(flow);
  const ignore = ignoreRules(record);
  return passthrough === undefined ? { sentences, ignore } : { sentences, passthrough, ignore };
}
