/**
 * What is taken out of the comparison, as lines of the configuration.
 *
 *     passthrough: [tcp|udp|icmp|icmpv6|sctp|any|NUMBER] [ADDRESS[/PREFIX]] [port N[-M]]
 *     ignore:      udp [ADDRESS[/PREFIX]] port N[-M] bytes A-B[,C-D]...
 *
 * A flow matches a line when all of its parts do. Address and port match either end of the flow, each on its
 * own, as "host" and "port" of a capture filter do. VLAN tags do not matter. Only IP flows match.
 *
 * A flow that matches a passthrough line is not held and not compared: what the two VMs say there may differ,
 * and after a failover the peer sees the other VM's state. `ignore` leaves out bytes of UDP payloads (counted
 * from 0, B and D included), for example a random transaction number; the length still has to agree.
 *
 * A line is looked at once for each flow, when the first frame of it is seen. Fragments whose datagram is not
 * complete have no ports yet: lines with a port wait for the rest.
 */

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
  KIND_DATAGRAM,
  KIND_TCP,
} from "./flow_key.ts";

/** Lines as they stand in the configuration. */
export interface RuleLines {
  passthrough?: readonly string[];
  ignore?: readonly string[];
}

/** Lines that cannot be used; the message has one sentence for each, which names the line and the part. */
export class RuleError extends Error {
  override name = "RuleError";
}

const PROTOCOLS: Record<string, number> = {
  tcp: PROTOCOL_TCP,
  udp: PROTOCOL_UDP,
  icmp: PROTOCOL_ICMP,
  icmpv6: PROTOCOL_ICMPV6,
  sctp: PROTOCOL_SCTP,
  any: -1,
};

/**
 * Words of a compiled line: protocol (-1 any), IP version (0 any), address, mask, first and last port (-1
 * any).
 */
const RULE_PROTOCOL = 0;
const RULE_VERSION = 1;
const RULE_ADDRESS = 2;
const RULE_MASK = 6;
const RULE_PORT_FROM = 10;
const RULE_PORT_TO = 11;
const RULE_WORDS = 12;

/** Longest UDP payload: 65 535 bytes without the header. */
const UDP_PAYLOAD_BYTES_MAX = 65_527;

/** Compiled lines. Made by {@link parseRules}. */
export class Rules {
  /** By set: ranges [from, to) in ascending order that do not touch, one behind the other. Set 0 is empty. */
  readonly #sets: Int32Array[] = [new Int32Array(0)];
  readonly #setNumbers = new Map<string, number>();

  readonly #passthrough: Int32Array;
  readonly #ignore: Int32Array;
  /** For each line of `ignore`: its ranges [from, to). */
  readonly #ignoredRanges: readonly (readonly [number, number][])[];

  constructor(
    passthrough: Int32Array,
    ignore: Int32Array,
    ignoredRanges: readonly (readonly [number, number][])[],
  ) {
    this.#passthrough = passthrough;
    this.#ignore = ignore;
    this.#ignoredRanges = ignoredRanges;
  }

  get hasPassthrough(): boolean {
    return this.#passthrough.length > 0;
  }

  get hasIgnore(): boolean {
    return this.#ignore.length > 0;
  }

  /** Whether the flow with this key (see parse.ts) is not to be compared. Allocates nothing. */
  passes(key: Int32Array): boolean {
    for (let rule = 0; rule < this.#passthrough.length; rule += RULE_WORDS) {
      if (matches(this.#passthrough, rule, key)) return true;
    }
    return false;
  }

  /**
   * Number of the set of byte ranges that do not count in the flow with this key, those of all lines that
   * match; 0 if all bytes count.
   */
  ignoredSet(key: Int32Array): number {
    const ranges: [number, number][] = [];
    let name = "";
    for (const [line, own] of this.#ignoredRanges.entries()) {
      if (!matches(this.#ignore, line * RULE_WORDS, key)) continue;
      name += `${line},`;
      ranges.push(...own);
    }
    if (name === "") return 0;
    const known = this.#setNumbers.get(name);
    if (known !== undefined) return known;
    const set = this.#sets.length;
    this.#sets.push(Int32Array.from(merge(ranges).flat()));
    this.#setNumbers.set(name, set);
    return set;
  }

  /** [from, to) pairs, one behind the other. */
  ignoredBytes(set: number): Int32Array {
    return this.#sets[set];
  }
}

/** Compiles lines. Throws {@link RuleError}. */
export function parseRules(lines: RuleLines): Rules {
  const mistakes: string[] = [];
  const parse = (list: string, texts: readonly string[] = [], ignore: boolean): LineParser[] =>
    texts.map((text, i) => {
      const line = new LineParser(text);
      const mistake = line.parse(ignore);
      if (mistake !== undefined) mistakes.push(`${list} line ${i + 1}, "${text}": ${mistake}.`);
      return line;
    });
  const passthrough = parse("passthrough", lines.passthrough, false);
  const ignore = parse("ignore", lines.ignore, true);
  if (mistakes.length > 0) throw new RuleError(mistakes.join("\n"));
  return new Rules(
    compile(passthrough),
    compile(ignore),
    ignore.map(({ ranges }) => ranges),
  );
}

function compile(lines: readonly LineParser[]): Int32Array {
  return Int32Array.from(lines.flatMap(({ words }) => words));
}

/** One line. parse() says what is wrong with it, in words that follow a colon. */
class LineParser {
  readonly words = new Array<number>(RULE_WORDS).fill(0);
  readonly ranges: [number, number][] = [];
  readonly #parts: string[];
  #at = 0;

  constructor(text: string) {
    this.#parts = text.split(/\s+/).filter((part) => part !== "");
  }

  parse(ignore: boolean): string | undefined {
    const { words } = this;
    words[RULE_PROTOCOL] = -1;
    words[RULE_PORT_FROM] = -1;
    words[RULE_PORT_TO] = -1;
    if (this.#parts.length === 0)
      return 'it is empty; write for example "udp port 123", or "any" for everything';
    return (
      this.#protocol(ignore) ??
      this.#address() ??
      this.#port(ignore) ??
      (ignore ? this.#bytes() : undefined) ??
      this.#rest(ignore)
    );
  }

  #protocol(ignore: boolean): string | undefined {
    const part = this.#parts[0];
    const protocol = PROTOCOLS[part.toLowerCase()] ?? (/^\d+$/.test(part) ? Number(part) : undefined);
    if (ignore) {
      if (protocol !== PROTOCOL_UDP) return `it begins with "${part}"; bytes can only be ignored in udp`;
      this.#at++;
      this.words[RULE_PROTOCOL] = PROTOCOL_UDP;
      return undefined;
    }
    if (protocol === undefined) return undefined;
    if (protocol > 255) return `the protocol number "${part}" is above 255`;
    this.#at++;
    this.words[RULE_PROTOCOL] = protocol;
    return undefined;
  }

  #address(): string | undefined {
    const part = this.#parts[this.#at];
    if (part === undefined || !/[.:]/.test(part)) return undefined;
    this.#at++;
    const slash = part.indexOf("/");
    const text = slash < 0 ? part : part.slice(0, slash);
    const groups = parseIpv4(text) ?? parseIpv6(text);
    if (groups === undefined) return `"${text}" is no IPv4 or IPv6 address`;
    const version = groups.length === 1 ? 4 : 6;
    const longest = version === 4 ? 32 : 128;
    const prefixText = slash < 0 ? `${longest}` : part.slice(slash + 1);
    const prefix = /^\d{1,3}$/.test(prefixText) ? Number(prefixText) : Number.NaN;
    if (!(prefix <= longest)) return `the prefix length "${prefixText}" is not in 0..${longest}`;
    const protocol = this.words[RULE_PROTOCOL];
    if (version === 6 && protocol === PROTOCOL_ICMP) return `"icmp" is for IPv4; write icmpv6 for "${part}"`;
    if (version === 4 && protocol === PROTOCOL_ICMPV6) {
      return `"icmpv6" is for IPv6; write icmp for "${part}"`;
    }
    this.words[RULE_VERSION] = version;
    for (const [i, group] of groups.entries()) {
      const bits = Math.max(0, Math.min(32, prefix - i * 32));
      const mask = bits === 0 ? 0 : -1 << (32 - bits);
      this.words[RULE_MASK + i] = mask;
      this.words[RULE_ADDRESS + i] = group & mask;
    }
    return undefined;
  }

  #port(required: boolean): string | undefined {
    if (this.#parts[this.#at] !== "port") {
      return required && this.#at === this.#parts.length ? 'a "port N" is needed' : undefined;
    }
    const protocol = this.words[RULE_PROTOCOL];
    if (protocol >= 0 && !hasPorts(protocol)) return `"${this.#parts[0]}" has no ports`;
    const part = this.#parts[this.#at + 1];
    if (part === undefined) return '"port" needs a number; write "port 53" or "port 6000-6063"';
    this.#at += 2;
    const range = parseRange(part, 65_535);
    if (typeof range === "string") return `the port "${part}" ${range}`;
    this.words[RULE_PORT_FROM] = range[0];
    this.words[RULE_PORT_TO] = range[1];
    return undefined;
  }

  #bytes(): string | undefined {
    if (this.words[RULE_PORT_FROM] < 0) return this.#rest(true) ?? 'a "port N" is needed';
    if (this.#parts[this.#at] !== "bytes") {
      return this.#at === this.#parts.length ? '"bytes A-B" is missing at its end' : undefined;
    }
    const part = this.#parts[this.#at + 1];
    if (part === undefined) return '"bytes" needs a range; write for example "bytes 0-3,8-11"';
    this.#at += 2;
    for (const text of part.split(",")) {
      const range = parseRange(text, UDP_PAYLOAD_BYTES_MAX - 1);
      if (typeof range === "string") return `the byte range "${text}" ${range}`;
      this.ranges.push([range[0], range[1] + 1]);
    }
    return undefined;
  }

  #rest(ignore: boolean): string | undefined {
    const part = this.#parts[this.#at];
    if (part === undefined) return undefined;
    const form = ignore
      ? "udp [ADDRESS[/PREFIX]] port N[-M] bytes A-B[,C-D]"
      : "[tcp|udp|icmp|icmpv6|sctp|any|NUMBER] [ADDRESS[/PREFIX]] [port N[-M]]";
    return `"${part}" is not understood at this place; the form is ${form}`;
  }
}

function hasPorts(protocol: number): boolean {
  return (
    protocol === PROTOCOL_TCP ||
    protocol === PROTOCOL_UDP ||
    protocol === PROTOCOL_SCTP ||
    protocol === PROTOCOL_UDPLITE
  );
}

/** "N" or "N-M" as [N, M]; else what is wrong with it. */
function parseRange(text: string, max: number): [number, number] | string {
  const match = /^(\d{1,9})(?:-(\d{1,9}))?$/.exec(text);
  if (match === null) return "is no number and no range such as 10-19";
  const from = Number(match[1]);
  const to = Number(match[2] ?? match[1]);
  if (to > max || from > max) return `is not in 0..${max}`;
  if (from > to) return "ends before it begins";
  return [from, to];
}

/** One signed 32-bit word; undefined if it is no address. */
function parseIpv4(text: string): number[] | undefined {
  const match = /^(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})$/.exec(text);
  if (match === null) return undefined;
  const [a, b, c, d] = match.slice(1).map(Number);
  if (a > 255 || b > 255 || c > 255 || d > 255) return undefined;
  return [(a << 24) | (b << 16) | (c << 8) | d];
}

/** Four signed 32-bit words; undefined if it is no address (RFC 4291 section 2.2; no zone). */
function parseIpv6(text: string): number[] | undefined {
  let groups = text;
  const dotted = /^(.*:)([\d.]+\.[\d.]+)$/.exec(text);
  if (dotted !== null) {
    const last = parseIpv4(dotted[2]);
    if (last === undefined) return undefined;
    groups = `${dotted[1]}${(last[0] >>> 16).toString(16)}:${(last[0] & 0xffff).toString(16)}`;
  }
  const halves = groups.split("::");
  if (halves.length > 2) return undefined;
  const [before, after = []] = halves.map((half) => (half === "" ? [] : half.split(":")));
  const missing = 8 - before.length - after.length;
  if (halves.length === 1 ? missing !== 0 : missing < 1) return undefined;
  const all = [...before, ...new Array<string>(missing).fill("0"), ...after];
  if (!all.every((group) => /^[0-9a-fA-F]{1,4}$/.test(group))) return undefined;
  const values = all.map((group) => Number.parseInt(group, 16));
  return [0, 2, 4, 6].map((i) => (values[i] << 16) | values[i + 1]);
}

/** Sorted, and those that overlap or touch made one. */
function merge(ranges: readonly (readonly [number, number])[]): [number, number][] {
  const merged: [number, number][] = [];
  for (const [from, to] of ranges.toSorted((a, b) => a[0] - b[0])) {
    const last = merged.at(-1);
    if (last !== undefined && from <= last[1]) last[1] = Math.max(last[1], to);
    else merged.push([from, to]);
  }
  return merged;
}

function matches(rules: Int32Array, rule: number, key: Int32Array): boolean {
  const meta = key[KEY_KIND];
  const kind = meta >>> 24;
  if (kind !== KIND_TCP && kind !== KIND_DATAGRAM) return false;
  const protocol = meta & 0xff;
  if (rules[rule + RULE_PROTOCOL] >= 0 && rules[rule + RULE_PROTOCOL] !== protocol) return false;
  const version = rules[rule + RULE_VERSION];
  if (version !== 0) {
    if (version !== ((meta >>> 8) & 0xff)) return false;
    if (!isInside(rules, rule, key, KEY_SOURCE) && !isInside(rules, rule, key, KEY_DESTINATION)) return false;
  }
  const portFrom = rules[rule + RULE_PORT_FROM];
  if (portFrom < 0) return true;
  if ((meta & KEY_FRAGMENT) !== 0 || !hasPorts(protocol)) return false;
  const portTo = rules[rule + RULE_PORT_TO];
  const source = key[KEY_PORTS] >>> 16;
  const destination = key[KEY_PORTS] & 0xffff;
  return (source >= portFrom && source <= portTo) || (destination >= portFrom && destination <= portTo);
}

function isInside(rules: Int32Array, rule: number, key: Int32Array, word: number): boolean {
  for (let i = 0; i < 4; i++) {
    if ((key[word + i] & rules[rule + RULE_MASK + i]) !== rules[rule + RULE_ADDRESS + i]) return false;
  }
  return true;
}
