/**
 * What our comparer may and must do, worked out from what the sequence says about itself (which place of
 * which connection's stream each byte is) and not from the frames. It shares nothing with the comparer.
 *
 * May: a primary frame leaves only when the secondary has produced all of it since the last checkpoint,
 * or a checkpoint covers it. Must: it leaves as soon as that is so, all below it in its stream is settled
 * too, and no frame of its flow waits in front of it.
 */
import {
  type Content,
  type DatagramContent,
  FIN_VALUE,
  type FrameStep,
  type Side,
  type Step,
  type TcpContent,
} from "./sequence.ts";

/** Why a primary frame must wait, or may. */
export type Reason =
  /** The flow has diverged in an earlier step: a checkpoint is needed first. */
  | "diverged"
  /** The secondary has not sent all of it. */
  | "missing"
  /** ... or something else at that place. */
  | "different"
  /** It acknowledges more than the secondary has. */
  | "acknowledgement"
  /** The secondary has sent no such RST. */
  | "reset"
  /** Other fragments of its datagram have not come yet. */
  | "incomplete"
  /** An earlier frame of the flow waits. */
  | "behind"
  /** Something lower in its stream has not been compared. */
  | "gap"
  /** The secondary has sent more of the connection before on these ports than the primary. */
  | "unfinished_before"
  /** The secondary's bytes below the first segment of a stream seen in mid-stream may have been let go. */
  | "midstream"
  /** All that is missing lies below the first segment seen of a connection older than the comparer. */
  | "missing_below_first"
  /** The flow diverges in this very step. */
  | "diverged_now";

const FORBIDDING: readonly Reason[] = [
  "diverged",
  "missing",
  "different",
  "acknowledgement",
  "reset",
  "incomplete",
  "behind",
];

interface Stream {
  primary: Map<number, number>;
  secondary: Map<number, number>;
  /** Lowest place that the primary has sent, Infinity if it has only acknowledged. */
  primaryFrom: number;
  /** Place of the first segment that the primary has sent, with data or without; undefined before it. */
  primaryFirst: number | undefined;
  /** It was first seen in mid-stream, and later the primary has sent something from below that again. */
  lowered: boolean;
  secondaryReceived: number;
  primaryResets: number;
  secondaryResets: TcpContent[];
  options: { primary?: string; secondary?: string };
}

/** How far the primary has come. */
interface State {
  connection: number;
  /** Places of its stream; undefined if it has sent none. */
  sent: number | undefined;
  received: number;
  closed: boolean;
}

const NOTHING: State = { connection: -1, sent: undefined, received: -1, closed: false };

interface Flow {
  diverged: boolean;
  held: number[];
  // TCP
  streams: Map<number, Stream>;
  covered: State;
  latest: State;
  /** Checkpoints since the VM has closed its side: after two of them, nothing of it is remembered. */
  checkpointsClosed: number;
  // Datagrams since the last checkpoint
  primary: string[];
  secondary: string[];
  /** Fragments of datagrams that are not complete: which there are of each. */
  fragments: Record<Side, Map<number, { bytes: number; slots: number[] }>>;
  hasFragments: boolean;
}

interface Held {
  content: Content;
  /** Datagrams: which one of its flow since the last checkpoint, -1 while it is not complete. */
  index: number;
}

export class Truth {
  /** The flow that our comparer has found to diverge in this step, -1 for none. */
  divergingNow = -1;
  private readonly flows = new Map<number, Flow>();
  private readonly frames = new Map<number, Held>();

  add(step: FrameStep, slot: number): void {
    const { content, side } = step;
    const flow = this.flow(content.flow);
    if (side === "primary") this.frames.set(slot, { content, index: -1 });
    if (content.kind === "datagram") {
      this.addDatagram(flow, side, content, slot);
      return;
    }
    if (side === "primary") {
      this.addPrimary(flow, content);
    } else {
      addSecondary(streamOf(flow, content.connection), content);
    }
    if (side === "primary") flow.held.push(slot);
  }

  /** A datagram takes its place when it is complete. */
  private addDatagram(flow: Flow, side: Side, content: DatagramContent, slot: number): void {
    let slots = [slot];
    const { fragment } = content;
    if (fragment !== undefined) {
      flow.hasFragments = true;
      const known = flow.fragments[side].get(fragment.datagram) ?? { bytes: 0, slots: [] };
      known.bytes += fragment.to - fragment.from;
      known.slots.push(slot);
      flow.fragments[side].set(fragment.datagram, known);
      if (known.bytes < fragment.of) return;
      flow.fragments[side].delete(fragment.datagram);
      slots = known.slots;
    }
    flow[side].push(content.payload);
    if (side === "secondary") return;
    for (const complete of slots) this.frames.get(complete)!.index = flow.primary.length - 1;
    flow.held.push(...slots);
  }

  /** Everything held has been released. */
  checkpoint(): void {
    for (const flow of this.flows.values()) {
      flow.diverged = false;
      flow.held = [];
      flow.primary = [];
      flow.secondary = [];
      flow.fragments = { primary: new Map(), secondary: new Map() };
      flow.streams.clear();
      flow.checkpointsClosed = flow.latest.closed ? flow.checkpointsClosed + 1 : 0;
      if (flow.checkpointsClosed >= 2) flow.latest = NOTHING;
      flow.covered = flow.latest;
    }
  }

  flowOf(slot: number): number {
    return this.frames.get(slot)!.content.flow;
  }

  contentOf(slot: number): Content {
    return this.frames.get(slot)!.content;
  }

  /** Our comparer has asked for a checkpoint because of a flow. */
  diverged(flow: number): void {
    this.flow(flow).diverged = true;
  }

  isDiverged(flow: number): boolean {
    return this.flow(flow).diverged;
  }

  /** Our comparer has released a frame. Returns what forbade it; empty if it was right. */
  released(slot: number): Reason[] {
    const reasons = this.whyHeld(slot);
    this.forget(slot);
    return FORBIDDING.filter((reason) => reasons.has(reason));
  }

  /** A frame has left. */
  forget(slot: number): void {
    const flow = this.flow(this.flowOf(slot));
    flow.held = flow.held.filter((other) => other !== slot);
  }

  /**
   * What forbids that the places [from, to) of a primary segment leave, or an acknowledgement of `received`;
   * empty if nothing does, whatever its place in the flow. For segments that leave in parts or changed.
   */
  forbidden(slot: number, from: number, to: number, received: number | undefined): Reason[] {
    const content = this.contentOf(slot) as TcpContent;
    const values = content.values.slice(from - content.from, to - content.from);
    const reasons = new Set<Reason>();
    const flow = this.flow(content.flow);
    if (flow.diverged) reasons.add("diverged");
    this.whyHeldTcp(flow, { ...content, from, to, values, received }, reasons);
    return FORBIDDING.filter((reason) => reasons.has(reason));
  }

  /** Frames of a flow that our comparer holds, in order of arrival. */
  heldOf(flow: number): readonly number[] {
    return this.flow(flow).held;
  }

  whyHeld(slot: number): Set<Reason> {
    const { content, index } = this.frames.get(slot)!;
    const flow = this.flow(content.flow);
    const reasons = new Set<Reason>();
    if (flow.diverged) reasons.add("diverged");
    if (content.flow === this.divergingNow) reasons.add("diverged_now");
    if (content.kind === "datagram" && index < 0) {
      reasons.add("incomplete");
      return reasons;
    }
    if (flow.held[0] !== slot) reasons.add("behind");
    if (content.kind === "tcp") this.whyHeldTcp(flow, content, reasons);
    else this.whyHeldDatagram(flow, content, index, reasons);
    return reasons;
  }

  /**
   * Whether a connection of the flow was seen in mid-stream in such a way that our comparer may not find
   * a difference.
   */
  isUncertain(flow: number): boolean {
    return [...this.flow(flow).streams.values()].some((stream) => stream.lowered);
  }

  /** Whether datagrams of the flow have come in fragments, on either side. */
  hasFragments(flow: number): boolean {
    return this.flow(flow).hasFragments;
  }

  /** Whether a checkpoint covers a primary segment or the beginning of it. */
  isCovered(slot: number): boolean {
    const { content } = this.frames.get(slot)!;
    if (content.kind !== "tcp") return false;
    const { covered } = this.flow(content.flow);
    if (content.connection < covered.connection) return true;
    return content.connection === covered.connection && content.from < (covered.sent ?? 0);
  }

  /**
   * Whether a datagram or the one of the secondary at its place is sent by the other side too, at another
   * place.
   */
  isSentElsewhere(slot: number): boolean {
    const { content, index } = this.frames.get(slot)!;
    if (content.kind !== "datagram") return false;
    const { primary, secondary } = this.flow(content.flow);
    return index >= 0 && (secondary.includes(content.payload) || primary.includes(secondary[index]));
  }

  /**
   * Primary frames at the first place where the two VMs differ, if everything before it has been
   * compared: what our comparer must report. Undefined if there is none.
   */
  difference(flowNumber: number): number[] | undefined {
    const flow = this.flow(flowNumber);
    for (let i = 0; i < Math.min(flow.primary.length, flow.secondary.length); i++) {
      if (flow.primary[i] === flow.secondary[i]) continue;
      return [...this.frames.keys()].filter((slot) => {
        const frame = this.frames.get(slot)!;
        return frame.content.flow === flowNumber && frame.index === i && flow.held.includes(slot);
      });
    }
    for (const connection of [...flow.streams.keys()].toSorted((a, b) => a - b)) {
      if (connection < flow.covered.connection) continue;
      const stream = flow.streams.get(connection)!;
      const at = this.firstDifference(flow, connection, stream);
      if (at !== undefined) {
        return flow.held.filter((slot) => {
          const content = this.contentOf(slot) as TcpContent;
          return content.connection === connection && content.from <= at && at < content.to;
        });
      }
      const waits = flow.held.some((slot) => (this.contentOf(slot) as TcpContent).connection === connection);
      if (waits || isUnfinished(flow, connection, stream)) return undefined;
    }
    return undefined;
  }

  private addPrimary(flow: Flow, content: TcpContent): void {
    const { connection, from, to, received } = content;
    const stream = streamOf(flow, connection);
    content.values.forEach((value, i) => {
      stream.primary.set(from + i, value);
    });
    if (content.options !== undefined) stream.options.primary = content.options;
    stream.primaryFirst ??= from;
    if (to > from) {
      if (stream.primaryFrom !== Number.POSITIVE_INFINITY && from < stream.primaryFrom) {
        stream.lowered ||= connection !== flow.covered.connection || flow.covered.sent === undefined;
      }
      stream.primaryFrom = Math.min(stream.primaryFrom, from);
    }
    if (content.reset) stream.primaryResets++;
    if (connection > flow.latest.connection) {
      flow.latest = { ...NOTHING, connection };
      flow.checkpointsClosed = 0;
    }
    if (connection < flow.latest.connection) return;
    const latest = { ...flow.latest };
    if (to > from) latest.sent = Math.max(latest.sent ?? 0, to);
    // What an RST acknowledges may be what it refuses.
    if (!content.reset) latest.received = Math.max(latest.received, received ?? -1);
    if (content.reset || content.values.includes(FIN_VALUE)) latest.closed = true;
    flow.latest = latest;
  }

  private whyHeldTcp(flow: Flow, content: TcpContent, reasons: Set<Reason>): void {
    const { connection, from, to, values, received } = content;
    const { covered } = flow;
    if (connection < covered.connection) return;
    const stream = streamOf(flow, connection);
    const isCovered = connection === covered.connection;
    const coveredTo = isCovered ? (covered.sent ?? 0) : 0;
    const first = isCovered && covered.sent !== undefined ? 0 : (stream.primaryFirst ?? 0);
    let lastMissing = -1;
    for (let at = Math.max(from, coveredTo); at < to; at++) {
      const other = stream.secondary.get(at);
      if (other === undefined) lastMissing = at;
      else if (other !== values[at - from] || (at === 0 && !sameOptions(stream))) reasons.add("different");
    }
    if (lastMissing >= 0) reasons.add("missing");
    if (lastMissing >= 0 && lastMissing < first) reasons.add("missing_below_first");
    for (let at = baseOf(flow, connection, stream); at < to && to > from; at++) {
      if (!isSettled(stream, at)) reasons.add("gap");
    }
    if (stream.lowered && to > from) reasons.add("midstream");
    const acknowledged = Math.max(stream.secondaryReceived, isCovered ? covered.received : -1);
    if (content.reset) {
      const { secondaryResets } = stream;
      const equal = secondaryResets.some(
        (other) => other.from === from && (other.received ?? -1) >= (received ?? -1),
      );
      if (!equal) reasons.add("reset");
    } else if (received !== undefined && received > acknowledged) {
      reasons.add("acknowledgement");
    }
    for (const [before, other] of flow.streams) {
      if (before >= connection || before < covered.connection) continue;
      if (isUnfinished(flow, before, other)) reasons.add("unfinished_before");
    }
  }

  private whyHeldDatagram(flow: Flow, content: DatagramContent, index: number, reasons: Set<Reason>): void {
    if (index >= flow.secondary.length) reasons.add("missing");
    else if (flow.secondary[index] !== content.payload) reasons.add("different");
  }

  private firstDifference(flow: Flow, connection: number, stream: Stream): number | undefined {
    for (let at = baseOf(flow, connection, stream); ; at++) {
      const primary = stream.primary.get(at);
      const secondary = stream.secondary.get(at);
      if (primary === undefined || secondary === undefined) return undefined;
      if (primary !== secondary || (at === 0 && !sameOptions(stream))) return at;
    }
  }

  private flow(number: number): Flow {
    let flow = this.flows.get(number);
    if (flow === undefined) {
      flow = {
        diverged: false,
        held: [],
        streams: new Map(),
        covered: NOTHING,
        latest: NOTHING,
        checkpointsClosed: 0,
        primary: [],
        secondary: [],
        fragments: { primary: new Map(), secondary: new Map() },
        hasFragments: false,
      };
      this.flows.set(number, flow);
    }
    return flow;
  }
}

export function isFrame(step: Step): step is FrameStep {
  return step.side !== "checkpoint";
}

function addSecondary(stream: Stream, content: TcpContent): void {
  content.values.forEach((value, i) => {
    stream.secondary.set(content.from + i, value);
  });
  if (content.options !== undefined) stream.options.secondary = content.options;
  if (content.received !== undefined) {
    stream.secondaryReceived = Math.max(stream.secondaryReceived, content.received);
  }
  if (content.reset) stream.secondaryResets.push(content);
}

function streamOf(flow: Flow, connection: number): Stream {
  let stream = flow.streams.get(connection);
  if (stream === undefined) {
    stream = {
      primary: new Map(),
      secondary: new Map(),
      primaryFrom: Number.POSITIVE_INFINITY,
      primaryFirst: undefined,
      lowered: false,
      secondaryReceived: -1,
      primaryResets: 0,
      secondaryResets: [],
      options: {},
    };
    flow.streams.set(connection, stream);
  }
  return stream;
}

/**
 * Where the comparison of a stream begins: behind what a checkpoint covers, else at the first place the
 * primary has sent.
 */
function baseOf(flow: Flow, connection: number, stream: Stream): number {
  if (connection === flow.covered.connection && flow.covered.sent !== undefined) return flow.covered.sent;
  return stream.primaryFrom;
}

function isSettled(stream: Stream, at: number): boolean {
  const primary = stream.primary.get(at);
  return primary !== undefined && primary === stream.secondary.get(at);
}

function isUnfinished(flow: Flow, connection: number, stream: Stream): boolean {
  const base = baseOf(flow, connection, stream);
  for (const at of stream.secondary.keys()) {
    if (at >= base && !isSettled(stream, at)) return true;
  }
  return stream.secondaryResets.length > stream.primaryResets;
}

function sameOptions(stream: Stream): boolean {
  return stream.options.primary === stream.options.secondary;
}
