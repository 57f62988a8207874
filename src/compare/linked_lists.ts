/**
 * Doubly linked lists over the items of a pool, as plain integers: many lists (one for each flow, say) whose
 * items are rows of one pool. An item is in at most one list of an instance at a time. -1 means "none".
 */
import type { Rows } from "./rows.ts";

export class LinkedLists {
  readonly head: Int32Array;
  readonly tail: Int32Array;
  readonly next: Int32Array;
  readonly prev: Int32Array;

  /** @param lists their ids are those of these rows, and the items' ids those of `items` */
  constructor(lists: Rows, items: Rows) {
    this.head = lists.int32(-1);
    this.tail = lists.int32(-1);
    this.next = items.int32();
    this.prev = items.int32();
  }

  push(list: number, item: number): void {
    const last = this.tail[list];
    this.prev[item] = last;
    this.next[item] = -1;
    if (last < 0) this.head[list] = item;
    else this.next[last] = item;
    this.tail[list] = item;
  }

  /** Puts `item` right behind `after`, or in front of everything when `after` is -1. */
  insertAfter(list: number, item: number, after: number): void {
    const before = after < 0 ? this.head[list] : this.next[after];
    this.prev[item] = after;
    this.next[item] = before;
    if (after < 0) this.head[list] = item;
    else this.next[after] = item;
    if (before < 0) this.tail[list] = item;
    else this.prev[before] = item;
  }

  remove(list: number, item: number): void {
    const previous = this.prev[item];
    const following = this.next[item];
    if (previous < 0) this.head[list] = following;
    else this.next[previous] = following;
    if (following < 0) this.tail[list] = previous;
    else this.prev[following] = previous;
    this.prev[item] = -1;
    this.next[item] = -1;
  }

  /** Forgets all items of a list; their own links are left as they are. */
  clear(list: number): void {
    this.head[list] = -1;
    this.tail[list] = -1;
  }
}
