/**
 * What QEMU's colo-compare is known to do, written down as rules (from its documentation, from reading
 * what net/colo-compare.c does, and from trying it): a prediction that the differential test holds
 * against the real one at each step. Its use is that it says *why*: a difference from our comparer is
 * explained by the rule that made QEMU decide as it did, not by how it looks.
 */
import type { Content, FrameStep } from "./sequence.ts";

type ReleaseRule =
  /** Not IPv4: passed on at once. */
  | "not_ipv4"
  /** TCP without payload: released as soon as anything of the secondary is queued. */
  | "control"
  /** It ends at or below the mark: taken as compared. */
  | "below_mark"
  /** Same numbers, same bytes. */
  | "equal_segment"
  /**
   * It ends within a secondary segment, its bytes are those that come next there, and its ACK is not
   * ahead.
   */
  | "within_secondary"
  | "datagram"
  | "checkpoint";

/** Why a mark, or a comparison, says more than has been compared. */
export type Flaw =
  /** Bytes behind the IP packet were counted as payload. */
  | "padding"
  /** Bytes at different places of the stream were compared with each other. */
  | "misaligned"
  /** Places in between were skipped. */
  | "gap"
  /** It stems from another connection on the same ports. */
  | "other_connection";

export interface Release {
  slot: number;
  rule: ReleaseRule;
  flaws: ReadonlySet<Flaw>;
}

type AskRule = "different_bytes" | "acknowledgement_ahead" | "no_equal_datagram";

export interface Ask {
  rule: AskRule;
  /** The primary frame concerned. */
  slot: number;
  flaws: ReadonlySet<Flaw>;
  /** Datagrams: the same content waits, but its header differs. */
  headerOnly: boolean;
}

export interface Prediction {
  released: Release[];
  asked: Ask[];
  dropped: number[];
}

export type Wait =
  /** The secondary's queue of the connection is empty. */
  | { why: "secondary_empty"; frame: Waiting; below: boolean }
  /**
   * The first of the primary's queue (this frame or a lower one) differs from the first of the
   * secondary's.
   */
  | { why: "asked"; ask: Ask };

interface Waiting {
  slot: number;
  content: Content;
  frame: Uint8Array;
  sequence: number;
  /** Sequence number behind its payload, padding included. */
  end: number;
  acknowledgement: number;
  /** Everything behind the TCP header, or what is compared of a datagram. */
  payload: Uint8Array;
  compared: number;
  /** Bytes behind the IP packet. */
  padding: number;
  control: boolean;
}

/** Sequence numbers [from, to) that the mark has passed without their bytes having been compared. */
interface Hole {
  from: number;
  to: number;
  flaw: Flaw;
}

interface Connection {
  tcp: boolean;
  primary: Waiting[];
  secondary: Waiting[];
  /** Highest place compared; 0 for none. */
  mark: number;
  /** Of the stream that the mark belongs to. */
  holes: Hole[];
  /** Index of that stream, -1 for none. */
  markConnection: number;
  /** Secondary segments that were thrown away since the last checkpoint because of a flaw. */
  lost: Hole[];
  lastPrimaryAck: number;
  lastSecondaryAck: number;
  blocked: Ask | undefined;
}

/** net/colo-compare.c: the test is "<=", so one more than max_queue_size. */
const QUEUED_MAX = 1024 + 1;

const NONE: ReadonlySet<Flaw> = new Set();

export class QemuRules {
  private readonly connections = new Map<string, Connection>();
  private readonly connectionOf = new Map<number, Connection>();
  private prediction: Prediction = { released: [], asked: [], dropped: [] };
  /** Set when QEMU has compared bytes behind the end of its buffer: then nothing can be predicted. */
  unpredictable = false;

  add(step: FrameStep, slot: number): Prediction {
    const { frame, side } = step;
    if (frame.length < 18 || u16(frame, 12) !== 0x0800) {
      if (side === "primary") this.release(slot, "not_ipv4", NONE);
      return this.take();
    }
    const connection = this.connectionFor(frame);
    const waiting = toWaiting(step, slot);
    const queue = connection[side];
    if (queue.length >= QUEUED_MAX) {
      if (side === "primary") this.prediction.dropped.push(slot);
    } else {
      enqueue(connection, queue, waiting);
      if (side === "primary") this.connectionOf.set(slot, connection);
      // Not the highest acknowledgement but the last one, and 0 where there is none.
      if (side === "primary") connection.lastPrimaryAck = waiting.acknowledgement;
      else connection.lastSecondaryAck = waiting.acknowledgement;
    }
    if (connection.tcp) this.compareStreams(connection);
    else this.compareDatagrams(connection);
    return this.take();
  }

  checkpoint(): Prediction {
    for (const connection of this.connections.values()) {
      // Non-TCP queues are emptied from the end at which frames are added.
      const queue = connection.tcp ? connection.primary : connection.primary.toReversed();
      for (const waiting of queue) this.release(waiting.slot, "checkpoint", NONE);
      connection.primary = [];
      connection.secondary = [];
      connection.blocked = undefined;
      connection.lost = [];
    }
    return this.take();
  }

  /** Why QEMU still holds a primary frame; undefined if it does not. */
  waitOf(slot: number): Wait | undefined {
    const connection = this.connectionOf.get(slot);
    const frame = connection?.primary.find((waiting) => waiting.slot === slot);
    if (connection === undefined || frame === undefined) return undefined;
    if (connection.blocked !== undefined && connection.secondary.length > 0) {
      return { why: "asked", ask: connection.blocked };
    }
    // A mark that happens to be 0 is none to QEMU.
    const below = connection.markConnection >= 0 && !isAfter(frame.end, connection.mark);
    return { why: "secondary_empty", frame, below };
  }

  /** For which flaws the secondary's part of a primary frame that QEMU still holds was thrown away. */
  lostOf(slot: number): ReadonlySet<Flaw> {
    const connection = this.connectionOf.get(slot);
    const frame = connection?.primary.find((waiting) => waiting.slot === slot);
    return connection === undefined || frame === undefined ? NONE : flawsIn(connection.lost, frame);
  }

  private compareStreams(connection: Connection): void {
    const { primary, secondary } = connection;
    const leastAck = Math.min(connection.lastPrimaryAck, connection.lastSecondaryAck);
    connection.blocked = undefined;
    while (primary.length > 0 && secondary.length > 0) {
      const [p] = primary;
      const [s] = secondary;
      const primaryDone = p.control || isBelow(connection, p);
      const secondaryDone = s.control || isBelow(connection, s);
      if (primaryDone) {
        primary.shift();
        if (p.control) this.release(p.slot, "control", NONE);
        else this.release(p.slot, "below_mark", flawsOfMark(connection, p));
      }
      if (secondaryDone) {
        secondary.shift();
        if (!s.control) noteLost(connection, s);
      }
      if (!primaryDone && !secondaryDone && !this.compareSegments(connection, p, s, leastAck)) return;
    }
  }

  /** Returns false when QEMU asks for a checkpoint and leaves both where they are. */
  private compareSegments(connection: Connection, p: Waiting, s: Waiting, leastAck: number): boolean {
    const flaws = flawsOfPair(connection, p, s);
    if (p.sequence === s.sequence && p.end === s.end && Buffer.compare(p.payload, s.payload) === 0) {
      connection.primary.shift();
      connection.secondary.shift();
      moveMark(connection, p, s, p.end);
      this.release(p.slot, "equal_segment", flaws);
      return true;
    }
    const primaryRest = p.payload.subarray(p.compared);
    const secondaryRest = s.payload.subarray(s.compared);
    if (!isAfter(p.end, s.end)) {
      if (primaryRest.length > secondaryRest.length && startsWith(primaryRest, secondaryRest)) {
        this.unpredictable = true;
      }
      if (!startsWith(secondaryRest, primaryRest)) return this.ask(connection, "different_bytes", p, flaws);
      if (isAfter(p.acknowledgement, leastAck)) {
        return this.ask(connection, "acknowledgement_ahead", p, flaws);
      }
      connection.primary.shift();
      moveMark(connection, p, s, p.end);
      s.compared += primaryRest.length;
      this.release(p.slot, "within_secondary", flaws);
      return true;
    }
    if (secondaryRest.length > primaryRest.length && startsWith(secondaryRest, primaryRest)) {
      this.unpredictable = true;
    }
    if (!startsWith(primaryRest, secondaryRest)) return this.ask(connection, "different_bytes", p, flaws);
    connection.secondary.shift();
    moveMark(connection, p, s, s.end);
    p.compared += secondaryRest.length;
    return true;
  }

  private compareDatagrams(connection: Connection): void {
    const { primary, secondary } = connection;
    connection.blocked = undefined;
    while (primary.length > 0 && secondary.length > 0) {
      // The newest one first.
      const p = primary[primary.length - 1];
      const at = secondary.findIndex(
        (s) => s.frame.length === p.frame.length && Buffer.compare(s.payload, p.payload) === 0,
      );
      if (at < 0) {
        const twin = secondary.some((s) => samePayload(p.content, s.content));
        this.ask(connection, "no_equal_datagram", p, NONE, twin);
        return;
      }
      primary.pop();
      secondary.splice(at, 1);
      this.release(p.slot, "datagram", NONE);
    }
  }

  private ask(
    connection: Connection,
    rule: AskRule,
    p: Waiting,
    flaws: ReadonlySet<Flaw>,
    headerOnly = false,
  ): false {
    connection.blocked = { rule, slot: p.slot, flaws, headerOnly };
    this.prediction.asked.push(connection.blocked);
    return false;
  }

  private release(slot: number, rule: ReleaseRule, flaws: ReadonlySet<Flaw>): void {
    this.prediction.released.push({ slot, rule, flaws });
  }

  private take(): Prediction {
    const { prediction } = this;
    this.prediction = { released: [], asked: [], dropped: [] };
    return prediction;
  }

  private connectionFor(frame: Uint8Array): Connection {
    const key = keyOf(frame);
    let connection = this.connections.get(key);
    if (connection === undefined) {
      connection = {
        tcp: frame[23] === 6,
        primary: [],
        secondary: [],
        mark: 0,
        holes: [],
        markConnection: -1,
        lost: [],
        lastPrimaryAck: 0,
        lastSecondaryAck: 0,
        blocked: undefined,
      };
      this.connections.set(key, connection);
    }
    return connection;
  }
}

/**
 * TCP queues are in order of sequence numbers, those with the same one in order of arrival; others in
 * order of arrival.
 */
function enqueue(connection: Connection, queue: Waiting[], waiting: Waiting): void {
  let at = queue.length;
  if (connection.tcp) {
    while (at > 0 && isAfter(queue[at - 1].sequence, waiting.sequence)) at--;
  }
  queue.splice(at, 0, waiting);
}

function isBelow(connection: Connection, waiting: Waiting): boolean {
  return connection.mark !== 0 && !isAfter(waiting.end, connection.mark);
}

function flawsOfMark(connection: Connection, waiting: Waiting): Set<Flaw> {
  if (connection.markConnection !== streamOf(waiting)) return new Set(["other_connection"]);
  return flawsIn(connection.holes, waiting);
}

function flawsIn(holes: Hole[], waiting: Waiting): Set<Flaw> {
  const inside = holes.filter(
    (hole) => isAfter(waiting.end, hole.from) && isAfter(hole.to, waiting.sequence),
  );
  return new Set(inside.map((hole) => hole.flaw));
}

function noteLost(connection: Connection, s: Waiting): void {
  for (const flaw of flawsOfMark(connection, s)) {
    connection.lost.push({ from: s.sequence, to: s.end, flaw });
  }
}

/** Moves the mark to `end`, the end of one of the two, and notes which places it passes wrongly. */
function moveMark(connection: Connection, p: Waiting, s: Waiting, end: number): void {
  const stream = streamOf(p);
  if (connection.markConnection !== stream) {
    connection.holes = [];
    connection.mark = (p.sequence - placeOf(p) + 1) >>> 0;
    connection.markConnection = stream;
  }
  const from = (p.sequence + p.compared) >>> 0;
  const hole = (at: number, to: number, flaw: Flaw) => {
    if (isAfter(to, at)) connection.holes.push({ from: at, to, flaw });
  };
  hole(connection.mark, from, "gap");
  if (from !== (s.sequence + s.compared) >>> 0) hole(from, end, "misaligned");
  const [paddedBy, padded] = p.end === end ? [p.padding, p] : [s.padding, s];
  hole((padded.end - paddedBy) >>> 0, end, "padding");
  connection.mark = end;
}

function placeOf(waiting: Waiting): number {
  return waiting.content.kind === "tcp" ? waiting.content.from : 0;
}

function flawsOfPair(connection: Connection, p: Waiting, s: Waiting): Set<Flaw> {
  const flaws = new Set<Flaw>();
  if (p.padding > 0 || s.padding > 0) flaws.add("padding");
  if (streamOf(p) !== streamOf(s)) flaws.add("other_connection");
  const primaryAt = (p.sequence + p.compared) | 0;
  const secondaryAt = (s.sequence + s.compared) | 0;
  if (primaryAt !== secondaryAt) flaws.add("misaligned");
  const continues = connection.markConnection === streamOf(p) && connection.mark !== 0;
  if (isAfter(primaryAt, continues ? connection.mark : p.sequence - placeOf(p) + 1)) flaws.add("gap");
  return flaws;
}

function streamOf(waiting: Waiting): number {
  return waiting.content.kind === "tcp" ? waiting.content.connection : -1;
}

function samePayload(a: Content, b: Content): boolean {
  if (a.kind !== "datagram" || b.kind !== "datagram" || a.payload !== b.payload) return false;
  return a.fragment?.from === b.fragment?.from && a.fragment?.to === b.fragment?.to;
}

function startsWith(bytes: Uint8Array, prefix: Uint8Array): boolean {
  return prefix.length <= bytes.length && Buffer.compare(bytes.subarray(0, prefix.length), prefix) === 0;
}

/** Modulo 2^32. */
function isAfter(a: number, b: number): boolean {
  return ((a - b) | 0) > 0;
}

function u16(frame: Uint8Array, at: number): number {
  return (frame[at] << 8) | frame[at + 1];
}

function u32(frame: Uint8Array, at: number): number {
  return ((frame[at] << 24) | (frame[at + 1] << 16) | (frame[at + 2] << 8) | frame[at + 3]) >>> 0;
}

/**
 * Addresses, protocol, and the first four bytes behind the IP header for protocols that have ports (some
 * others too).
 */
function keyOf(frame: Uint8Array): string {
  const protocol = frame[23];
  const transport = 14 + (frame[14] & 0x0f) * 4;
  let ports = 0;
  if ([6, 17, 33, 50, 132, 136].includes(protocol)) ports = u32(frame, transport);
  if (protocol === 51) ports = u32(frame, transport + 4);
  return `${u32(frame, 26)} ${u32(frame, 30)} ${protocol} ${ports}`;
}

function toWaiting(step: FrameStep, slot: number): Waiting {
  const { frame, content } = step;
  const protocol = frame[23];
  const transport = 14 + (frame[14] & 0x0f) * 4;
  const padding = frame.length - 14 - u16(frame, 16);
  const common = { slot, content, frame, compared: 0, padding };
  if (protocol !== 6) {
    // UDP and ICMP from behind the IP header, everything else as a whole.
    const payload = protocol === 17 || protocol === 1 ? frame.subarray(transport) : frame;
    return { ...common, sequence: 0, end: 0, acknowledgement: 0, payload, control: false };
  }
  const sequence = u32(frame, transport + 4);
  const payload = frame.subarray(transport + (frame[transport + 12] >> 4) * 4);
  return {
    ...common,
    sequence,
    end: (sequence + payload.length) >>> 0,
    acknowledgement: u32(frame, transport + 8),
    payload,
    control: payload.length === 0,
  };
}
