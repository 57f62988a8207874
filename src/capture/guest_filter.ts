/** Which frames `--guest` lets through: those whose IP source address is one of the given ones. */
import { isIP } from "node:net";
import { KEY_KIND, KEY_SOURCE, KIND_DATAGRAM, KIND_TCP } from "../compare/flow_key.ts";
import type { ParsedFrame } from "../compare/parsed_frame.ts";
import { CaptureError } from "./error.ts";

export class GuestFilter {
  readonly #addresses: { version: number; words: readonly number[] }[];

  /** @throws CaptureError for what is not an IP address */
  constructor(readonly guests: readonly string[]) {
    this.#addresses = guests.map((address) => {
      const version = isIP(address);
      if (version === 0) throw new CaptureError(`--guest ${address}: give an IPv4 or IPv6 address.`);
      return { version, words: version === 4 ? ipv4Words(address) : ipv6Words(address) };
    });
  }

  passes(frame: ParsedFrame): boolean {
    if (this.#addresses.length === 0) return true;
    if (frame.kind !== KIND_TCP && frame.kind !== KIND_DATAGRAM) return false;
    const version = (frame.key[KEY_KIND] >>> 8) & 0xff;
    return this.#addresses.some(
      (address) =>
        address.version === version && address.words.every((word, i) => frame.key[KEY_SOURCE + i] === word),
    );
  }
}

/** Signed, like the words of a flow's key. */
function ipv4Words(address: string): number[] {
  const [a = 0, b = 0, c = 0, d = 0] = address.split(".").map(Number);
  return [(a << 24) | (b << 16) | (c << 8) | d];
}

/** Of an address that is known to be one. */
function ipv6Words(address: string): number[] {
  const withoutZone = address.replace(/%.*$/, "");
  // The last four bytes may be written as IPv4 (RFC 4291 2.2).
  const text = withoutZone.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (dotted) => {
    const word = ipv4Words(dotted)[0]!;
    return `${(word >>> 16).toString(16)}:${(word & 0xffff).toString(16)}`;
  });
  const [left = "", right] = text.split("::");
  const groupsOf = (part: string) =>
    part === "" ? [] : part.split(":").map((group) => Number.parseInt(group, 16));
  const before = groupsOf(left);
  const after = right === undefined ? [] : groupsOf(right);
  const groups = [...before, ...new Array<number>(8 - before.length - after.length).fill(0), ...after];
  return [0, 2, 4, 6].map((i) => (groups[i]! << 16) | groups[i + 1]!);
}
