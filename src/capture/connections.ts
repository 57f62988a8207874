/**
 * The TCP connections of two captures: both directions of each, and the frames that cannot be compared yet
 * because the other capture has not said where their stream begins.
 */

import {
  KEY_DESTINATION,
  KEY_KIND,
  KEY_PORTS,
  KEY_SOURCE,
  KEY_VLAN,
  KEY_WORDS,
} from "../compare/flow_key.ts";
import { FlowTable } from "../compare/flow_table.ts";
import type { ParsedFrame } from "../compare/parsed_frame.ts";
import { rowOf } from "../compare/rows.ts";
import { Direction, type Stream } from "./sequence_map.ts";

const ADDRESS_WORDS = 4;

/** A frame that waits for the numbers of its stream, and, on the secondary, of the one it acknowledges. */
interface ParkedFrame {
  readonly slot: number;
  /** Null for a lone reset. */
  readonly stream: Stream | null;
  /** Null when it acknowledges nothing. */
  readonly acknowledged: Stream | null;
}

/** First in, first out. */
export class FrameQueue {
  #frames: ParkedFrame[] = [];
  #first = 0;

  get length(): number {
    return this.#frames.length - this.#first;
  }

  get head(): ParkedFrame | undefined {
    return this.#frames[this.#first];
  }

  push(frame: ParkedFrame): void {
    this.#frames.push(frame);
  }

  shift(): void {
    this.#first++;
    if (this.#first * 2 < this.#frames.length) return;
    this.#frames = this.#frames.slice(this.#first);
    this.#first = 0;
  }
}

export class Connection {
  readonly directions = [new Direction(), new Direction()] as const;
  readonly parkedPrimary = [new FrameQueue(), new FrameQueue()] as const;
  readonly parkedSecondary = [new FrameQueue(), new FrameQueue()] as const;

  /** @param id in the table that it was made in */
  constructor(readonly id: number) {}

  get parked(): number {
    const { parkedPrimary: p, parkedSecondary: s } = this;
    return p[0].length + p[1].length + s[0].length + s[1].length;
  }
}

export class ConnectionTable {
  readonly #table: FlowTable;
  readonly #connections: (Connection | undefined)[] = [];
  readonly #key = new Int32Array(KEY_WORDS);

  /** @param capacity at least as many as there can be frames at once */
  constructor(capacity: number) {
    this.#table = new FlowTable(capacity, (Math.random() * 2 ** 32) | 0);
  }

  /** The connection of a TCP frame; made if need be. */
  of(frame: ParsedFrame, now: number): Connection {
    const table = this.#table;
    const key = this.#key;
    this.#makeKey(frame.key, directionOf(frame.key));
    let id = table.find(key);
    if (id < 0) {
      id = table.add(key, 0, now);
      if (id < 0) {
        this.#forgetQuiet(now);
        id = table.add(key, 0, now);
        if (id < 0) throw new Error("the connection table is smaller than the windows");
      }
      this.#connections[rowOf(id)] = new Connection(id);
    }
    table.lastSeenNs[id] = now;
    return this.#connections[rowOf(id)]!;
  }

  /** One of which frames wait. */
  byId(id: number): Connection {
    return this.#connections[rowOf(id)]!;
  }

  /** A frame of the connection is in a window: it is not forgotten. */
  hold(id: number): void {
    this.#table.held[id]++;
  }

  release(id: number): void {
    this.#table.held[id]--;
  }

  /** Connections of which no frame waits; those seen last are kept if that is enough. */
  #forgetQuiet(now: number): void {
    const table = this.#table;
    const gone = table.collect(table.capacity, now, table.capacity, table.capacity);
    if (gone < table.capacity / 8) table.collect(table.capacity, now, 0, 0);
  }

  /** The same key for both directions: the lower end comes first. */
  #makeKey(from: Int32Array, direction: 0 | 1): void {
    const key = this.#key;
    const ports = from[KEY_PORTS];
    key[KEY_KIND] = from[KEY_KIND];
    key[KEY_VLAN] = from[KEY_VLAN];
    key[KEY_PORTS] = direction === 0 ? ports : (ports << 16) | (ports >>> 16);
    const [first, second] = direction === 0 ? [KEY_SOURCE, KEY_DESTINATION] : [KEY_DESTINATION, KEY_SOURCE];
    for (let word = 0; word < ADDRESS_WORDS; word++) {
      key[KEY_SOURCE + word] = from[first + word];
      key[KEY_DESTINATION + word] = from[second + word];
    }
  }
}

/**
 * Which of its connection's directions a frame with this key belongs to: 0 if it is sent by the lower end.
 */
export function directionOf(key: Int32Array): 0 | 1 {
  for (let word = 0; word < ADDRESS_WORDS; word++) {
    const difference = key[KEY_SOURCE + word] - key[KEY_DESTINATION + word];
    if (difference !== 0) return difference < 0 ? 0 : 1;
  }
  const ports = key[KEY_PORTS];
  return ports >>> 16 <= (ports & 0xffff) ? 0 : 1;
}
