/**
 * The flows: one direction each (the guest is always the sender), found by key, with their state in rows
 * (rows.ts).
 *
 * Open addressing with linear probing and backward-shift deletion, so there are no tombstones. The hash is
 * seeded, since peers choose ports and addresses.
 *
 * Which file may change which column, besides add() (test/compare/flow_columns.test.ts holds the code to it;
 * the offline comparer of src/capture has a table of its own):
 *
 *     flags                                  every file, its own bits
 *     held, pending                          state
 *     overflowed                             overflow_list
 *     openings                               tcp_connection, tcp_checkpoint
 *     lastSeenNs                             admission, in_order, fragments
 *     reportedNs                             deadlines, checkpoint
 *     ignoredSet                             flow_finder
 *     primaryStray, secondaryStray           fragments
 *     verified                               tcp_stream, tcp_connection, tcp_checkpoint, in_order
 *     floor, islandStart, islandEnd          tcp_stream
 *     secondaryAck                           tcp_connection, tcp_checkpoint, in_order
 *     primaryIsn, previousIsn, openingAck    tcp_connection
 *     secondaryIsn, queuedSyn                tcp_connection, tcp_checkpoint
 *     openedNs, windowScale                  tcp_connection
 *     releasedEnd, releasedAck               tcp_checkpoint, in_order
 *     secondaryEdge, releasedEdge            tcp_terms, in_order
 *     secondaryUrgent, releasedUrgent        tcp_urgent
 *     resetSequence, resetAck                tcp_resets
 *
 * A column with a bit FLOW_<COLUMN>_KNOWN counts only while that is set.
 */
import { PROTOCOL_TCP } from "../packet/protocol_numbers.ts";
import {
  KEY_DESTINATION,
  KEY_KIND,
  KEY_PORTS,
  KEY_SOURCE,
  KEY_VLAN,
  KEY_WORDS,
  KIND_TCP,
} from "./flow_key.ts";
import { ID_STEP, Rows } from "./rows.ts";

/** A byte stream (compared by sequence number), not a series of datagrams. */
export const FLOW_TCP = 0x001;
/** A divergence has been reported: all of it stays held until the next checkpoint. */
export const FLOW_FROZEN = 0x002;
/** The guest has sent FIN or RST and it has been released. */
export const FLOW_CLOSED = 0x004;
/** ... and one checkpoint has passed since. */
export const FLOW_CLOSED_BEFORE = 0x008;
/** The primary has opened a connection and the secondary's SYN has not been seen yet. */
export const FLOW_AWAIT_SYN = 0x400;
/** Neither held nor compared: the user's rules say so. */
export const FLOW_PASSTHROUGH = 0x40000;
/** A waiting room for fragments until their datagram is complete. */
export const FLOW_FRAGMENTS = 0x100000;

export const FLOW_VERIFIED_KNOWN = 0x010;
/** Nothing below `floor` counts as verified: the connection was first seen in mid-stream. */
export const FLOW_FLOOR_KNOWN = 0x020;
/** [islandStart, islandEnd) above `verified` is verified already. */
export const FLOW_ISLAND_KNOWN = 0x040;
export const FLOW_SECONDARY_ACK_KNOWN = 0x080;
export const FLOW_PRIMARY_ISN_KNOWN = 0x100;
export const FLOW_SECONDARY_ISN_KNOWN = 0x200;
export const FLOW_RELEASED_END_KNOWN = 0x800;
export const FLOW_RELEASED_ACK_KNOWN = 0x1000;
export const FLOW_QUEUED_SYN_KNOWN = 0x2000;
/** A pair of RSTs was matched in this epoch ... */
export const FLOW_RESET_SEQUENCE_KNOWN = 0x4000;
/** ... and they carried acknowledgements. */
export const FLOW_RESET_ACK_KNOWN = 0x8000;
export const FLOW_PREVIOUS_ISN_KNOWN = 0x10000;
export const FLOW_OPENING_ACK_KNOWN = 0x20000;
/** UDP: some bytes of the payload do not count. */
export const FLOW_IGNORED_SET_KNOWN = 0x80000;
export const FLOW_PRIMARY_STRAY_KNOWN = 0x200000;
export const FLOW_SECONDARY_STRAY_KNOWN = 0x400000;
export const FLOW_SECONDARY_EDGE_KNOWN = 0x800000;
export const FLOW_RELEASED_EDGE_KNOWN = 0x1000000;
export const FLOW_SECONDARY_URGENT_KNOWN = 0x2000000;
export const FLOW_RELEASED_URGENT_KNOWN = 0x4000000;

/** Value of `windowScale` while the SYN has not been seen. */
export const UNKNOWN_SCALE = 0xff;

const plainTcpKind = (version: number) => (KIND_TCP << 24) | (version << 8) | PROTOCOL_TCP;

export class FlowTable {
  readonly flags: Int32Array;
  /** Primary frames held in the pool, and in the overflow list. */
  readonly held: Int32Array;
  readonly overflowed: Int32Array;
  /** Secondary frames waiting. */
  readonly pending: Int32Array;
  /** Primary SYNs queued that open a connection later than the current one. */
  readonly openings: Int32Array;
  readonly lastSeenNs: Float64Array;
  /** When the last timeout was reported, 0 for never. */
  readonly reportedNs: Float64Array;
  /** Set of the user's rules (see Rules.ignoredSet). */
  readonly ignoredSet: Int32Array;
  /** Waiting rooms: identification of the last fragment that could not be put together with others. */
  readonly primaryStray: Int32Array;
  readonly secondaryStray: Int32Array;
  // TCP. Sequence numbers are signed 32-bit integers, of which only differences count.
  /** Every byte below it has been produced by both sides (above `floor`, if there is one). */
  readonly verified: Int32Array;
  readonly floor: Int32Array;
  readonly islandStart: Int32Array;
  readonly islandEnd: Int32Array;
  /** The secondary's highest acknowledgement of this connection. */
  readonly secondaryAck: Int32Array;
  readonly primaryIsn: Int32Array;
  readonly secondaryIsn: Int32Array;
  /** The secondary's initial number of the connection before. */
  readonly previousIsn: Int32Array;
  /** What the SYN that opened the current connection acknowledged on the primary. */
  readonly openingAck: Int32Array;
  /** Sequence number of the last SYN that the primary queued. */
  readonly queuedSyn: Int32Array;
  /** When the SYN of the current connection was sent; frames older than it belong to another one. */
  readonly openedNs: Float64Array;
  /** Highest sequence end and acknowledgement that has been released: what a checkpoint may build on. */
  readonly releasedEnd: Int32Array;
  readonly releasedAck: Int32Array;
  /** Shift count of the guest's windows (RFC 7323, 2), the same for both guests. */
  readonly windowScale: Int32Array;
  /**
   * Highest right edge of a window, acknowledgement + window, that the secondary offers; that was released.
   */
  readonly secondaryEdge: Int32Array;
  readonly releasedEdge: Int32Array;
  /** Highest sequence number behind urgent data that the secondary has announced; that was released. */
  readonly secondaryUrgent: Int32Array;
  readonly releasedUrgent: Int32Array;
  /** Sequence number of the last pair of RSTs that was matched, and what the secondary's acknowledged. */
  readonly resetSequence: Int32Array;
  readonly resetAck: Int32Array;

  /** Number of flows. */
  size = 0;
  /** Ids at or above it have never been used; they are multiples of ID_STEP. */
  highest = 0;
  readonly #keys: Int32Array;
  readonly #hashes: Int32Array;
  readonly #live: Int32Array;
  /**
   * IP version of a live flow of untagged TCP segments, else 0: what isPlainTcp() need not read the key for.
   */
  readonly #plainTcp: Int32Array;
  readonly #freeIds: Int32Array;
  #freeCount = 0;
  readonly #buckets: Int32Array;
  readonly #mask: number;
  #hand = 0;

  readonly #seed: number;

  constructor(
    readonly capacity: number,
    seed: number,
  ) {
    this.#seed = seed;
    let buckets = 16;
    while (buckets < capacity * 2) buckets *= 2;
    this.#buckets = new Int32Array(buckets).fill(-1);
    this.#mask = buckets - 1;
    this.#freeIds = new Int32Array(capacity);
    // One line for all that the short way of TCP looks at (in_order.ts), and one for what says whose a frame
    // is.
    const rows = new Rows(capacity);
    this.flags = rows.int32();
    this.held = rows.int32();
    this.overflowed = rows.int32();
    this.pending = rows.int32();
    this.openings = rows.int32();
    this.verified = rows.int32();
    this.secondaryAck = rows.int32();
    this.secondaryEdge = rows.int32();
    this.releasedEnd = rows.int32();
    this.releasedAck = rows.int32();
    this.releasedEdge = rows.int32();
    this.windowScale = rows.int32();
    rows.nextLine();
    this.#keys = rows.int32(); // its first word, the others behind it
    for (let word = 1; word < KEY_WORDS; word++) rows.int32();
    this.#plainTcp = rows.int32();
    this.#live = rows.int32();
    this.#hashes = rows.int32();
    rows.nextLine();
    this.ignoredSet = rows.int32();
    this.primaryStray = rows.int32();
    this.secondaryStray = rows.int32();
    this.floor = rows.int32();
    this.islandStart = rows.int32();
    this.islandEnd = rows.int32();
    this.primaryIsn = rows.int32();
    this.secondaryIsn = rows.int32();
    this.previousIsn = rows.int32();
    this.openingAck = rows.int32();
    this.queuedSyn = rows.int32();
    this.secondaryUrgent = rows.int32();
    this.releasedUrgent = rows.int32();
    this.resetSequence = rows.int32();
    this.resetAck = rows.int32();
    this.lastSeenNs = rows.float64();
    this.reportedNs = rows.float64();
    this.openedNs = rows.float64();
  }

  /** Id of the flow with this key, -1 if there is none. */
  find(key: Int32Array): number {
    const hash = this.#hash(key);
    let bucket = hash & this.#mask;
    for (;;) {
      const flow = this.#buckets[bucket];
      if (flow < 0) return -1;
      if (this.#hashes[flow] === hash && this.#equals(flow, key)) return flow;
      bucket = (bucket + 1) & this.#mask;
    }
  }

  /**
   * Whether a flow is that of an untagged TCP segment, whose addresses lie in front of its header at
   * `transport`.
   *
   * @param version of IP, without anything between its header and TCP's
   */
  isPlainTcp(flow: number, view: DataView, transport: number, version: number): boolean {
    const keys = this.#keys;
    if (this.#plainTcp[flow] !== version || keys[flow + KEY_PORTS] !== view.getInt32(transport)) return false;
    if (version === 4) {
      return (
        keys[flow + KEY_SOURCE] === view.getInt32(transport - 8) &&
        keys[flow + KEY_DESTINATION] === view.getInt32(transport - 4)
      );
    }
    for (let word = 0; word < 8; word++) {
      if (keys[flow + KEY_SOURCE + word] !== view.getInt32(transport - 32 + word * 4)) return false;
    }
    return true;
  }

  /** find() for such a segment; `key` is overwritten. */
  findPlainTcp(view: DataView, transport: number, version: number, key: Int32Array): number {
    for (let word = 0; word < KEY_WORDS; word++) key[word] = 0;
    key[KEY_KIND] = plainTcpKind(version);
    key[KEY_PORTS] = view.getInt32(transport);
    const words = version === 4 ? 1 : 4;
    for (let word = 0; word < words; word++) {
      key[KEY_SOURCE + word] = view.getInt32(transport + (word - 2 * words) * 4);
      key[KEY_DESTINATION + word] = view.getInt32(transport + (word - words) * 4);
    }
    return this.find(key);
  }

  /** Id of a new flow with this key, which must not be in the table yet; -1 if the table is full. */
  add(key: Int32Array, flags: number, nowNs: number): number {
    let flow: number;
    if (this.#freeCount > 0) flow = this.#freeIds[--this.#freeCount];
    else if (this.highest < this.capacity * ID_STEP) {
      flow = this.highest;
      this.highest += ID_STEP;
    } else return -1;
    const hash = this.#hash(key);
    let bucket = hash & this.#mask;
    while (this.#buckets[bucket] >= 0) bucket = (bucket + 1) & this.#mask;
    this.#buckets[bucket] = flow;
    this.#hashes[flow] = hash;
    for (let word = 0; word < KEY_WORDS; word++) this.#keys[flow + word] = key[word];
    this.#live[flow] = 1;
    const version = (key[KEY_KIND] >>> 8) & 0xff;
    this.#plainTcp[flow] = key[KEY_KIND] === plainTcpKind(version) && key[KEY_VLAN] === 0 ? version : 0;
    this.size++;
    this.flags[flow] = flags;
    this.held[flow] = 0;
    this.overflowed[flow] = 0;
    this.pending[flow] = 0;
    this.openings[flow] = 0;
    this.lastSeenNs[flow] = nowNs;
    this.reportedNs[flow] = 0;
    this.openedNs[flow] = 0;
    this.windowScale[flow] = UNKNOWN_SCALE;
    return flow;
  }

  remove(flow: number): void {
    const buckets = this.#buckets;
    const mask = this.#mask;
    let hole = this.#hashes[flow] & mask;
    while (buckets[hole] !== flow) hole = (hole + 1) & mask;
    let probe = hole;
    for (;;) {
      probe = (probe + 1) & mask;
      const other = buckets[probe];
      if (other < 0) break;
      // Move it back unless its home lies cyclically in (hole, probe].
      const home = this.#hashes[other] & mask;
      if (((probe - home) & mask) >= ((probe - hole) & mask)) {
        buckets[hole] = other;
        hole = probe;
      }
    }
    buckets[hole] = -1;
    this.#live[flow] = 0;
    this.#plainTcp[flow] = 0;
    this.size--;
    this.#freeIds[this.#freeCount++] = flow;
  }

  /** Forgets all flows. */
  clear(): void {
    this.#buckets.fill(-1);
    for (let flow = 0; flow < this.highest; flow += ID_STEP) {
      this.#live[flow] = 0;
      this.#plainTcp[flow] = 0;
    }
    this.size = 0;
    this.highest = 0;
    this.#freeCount = 0;
    this.#hand = 0;
  }

  isLive(flow: number): boolean {
    return this.#live[flow] === 1;
  }

  /** Nothing of it waits on either side. */
  isQuiet(flow: number): boolean {
    return this.held[flow] === 0 && this.pending[flow] === 0 && this.overflowed[flow] === 0;
  }

  /** Looks at the next `count` ids and removes quiet flows that have been idle; returns how many. */
  collect(count: number, nowNs: number, idleNs: number, closedIdleNs: number): number {
    let removed = 0;
    const looks = Math.min(count, this.highest / ID_STEP);
    for (let i = 0; i < looks; i++) {
      const flow = this.#hand < this.highest ? this.#hand : 0;
      this.#hand = flow + ID_STEP;
      if (this.#live[flow] === 0 || !this.isQuiet(flow)) continue;
      const limit = (this.flags[flow] & FLOW_CLOSED) !== 0 ? closedIdleNs : idleNs;
      if (nowNs - this.lastSeenNs[flow] < limit) continue;
      this.remove(flow);
      removed++;
    }
    return removed;
  }

  /** Unsigned. */
  keyWord(flow: number, word: number): number {
    return this.#keys[flow + word] >>> 0;
  }

  kind(flow: number): number {
    return this.keyWord(flow, KEY_KIND) >>> 24;
  }

  #equals(flow: number, key: Int32Array): boolean {
    const keys = this.#keys;
    for (let word = 0; word < KEY_WORDS; word++) {
      if (keys[flow + word] !== key[word]) return false;
    }
    return true;
  }

  #hash(key: Int32Array): number {
    // A multiplication for each word, and the finishing steps of MurmurHash3 (public domain).
    let hash = this.#seed;
    for (let word = 0; word < KEY_WORDS; word++) {
      hash = Math.imul(hash ^ key[word], 0x9e3779b1);
      hash ^= hash >>> 15;
    }
    hash = Math.imul(hash, 0x85ebca6b);
    hash ^= hash >>> 13;
    hash = Math.imul(hash, 0xc2b2ae35);
    return hash ^ (hash >>> 16);
  }
}
