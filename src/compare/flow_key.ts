/**
 * The key of a flow: one direction of a connection, or of what is compared in its order of sending.
 */

/** A byte stream. */
export const KIND_TCP = 1;
/** One IP payload after the other: UDP, ICMP, other protocols, fragments. */
export const KIND_DATAGRAM = 2;
/** Neither IPv4 nor IPv6: compared as a whole. */
export const KIND_FRAME = 3;
/** Cut off, contradictory or beyond this parser: compared as a whole, among its like. */
export const KIND_UNPARSED = 4;
/** ARP and IPv6 neighbour discovery: not compared. The BPF programs keep them from the rings. */
export const KIND_BYPASS = 5;

/**
 * Words of a flow key: 0 kind << 24 | fragment << 16 | IP version << 8 | protocol; 1 ports, or ICMP
 * type/code/identifier, or the EtherType; 2 VLAN tags (outer low, inner high half); 3-6 source; 7-10
 * destination (IP, or MAC in two words). A fragment's key has no ports; fragments that can only be compared
 * as they are have KEY_FRAGMENT_AS_IS too (see fragments.ts).
 */
export const KEY_WORDS = 11;
export const KEY_KIND = 0;
export const KEY_PORTS = 1;
export const KEY_VLAN = 2;
export const KEY_SOURCE = 3;
export const KEY_DESTINATION = 7;
export const KEY_FRAGMENT = 0x10000;
export const KEY_FRAGMENT_AS_IS = 0x20000;

/** fill() is a call into the engine, several times as slow for so few words. */
export function clearKey(key: Int32Array): void {
  for (let word = 0; word < KEY_WORDS; word++) key[word] = 0;
}
