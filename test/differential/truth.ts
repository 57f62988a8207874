/**
 * What our comparer may and must do, worked out from what the sequence says about itself (which place of which connection's
 * stream each byte is) and not from the frames. It shares nothing with the comparer.
 *
 * May: a primary frame leaves only when the secondary has produced all of it since the last checkpoint, or a checkpoint covers it.
 * Must: it leaves as soon as that is so, all below it in its stream is settled too, and no frame of its flow waits in front of it.
 */
import type { Content, DatagramContent, FrameStep, Step, TcpContent } from "./sequence.ts";

/** Why a primary frame must wait. The last three only allow it, the others demand it. */
export type Reason =
  /** The flow has diverged: a checkpoint is needed first. */
  | "diverged"
  /** The secondary has not sent all of it. */
  | "missing"
  /** ... or something else at that place. */
  | "different"
  /** It acknowledges more than the secondary has. */
  | "acknowledgement"
  /** The secondary has sent no such RST. */
  | "reset"
  /** An earlier frame of the flow waits. */
  | "behind"
  /** Something lower in its stream has not been compared. */
  | "gap"
  /** The secondary has sent more of the connection before on these ports than the primary. */
  | "unfinished_before";

const FORBIDDING: readonly Reason[] = [
  "diverged",
  "missing",
  "different",
  "acknowledgement",
  "reset",
  "behind",
];

interface Stream {
  primary: Map<number, number>;
  secondary: Map<number, number>;
  /** Lowest place that the primary has sent, Infinity if it has only acknowledged. */
  primaryFrom: number;
  secondaryReceived: number;
  primaryResets: number;
  secondaryResets: TcpContent[];
  options: { primary?: string; secondary?: string };
}

interface Flow {
  diverged: boolean;
  held: number[];
  // TCP
  streams: Map<number, Stream>;
  covered: { connection: number; sent: number | undefined; received: number };
  latest: { connection: number; sent: number | undefined; received: number };
  // Datagrams since the last checkpoint
  primary: string[];
  secondary: string[];
}

interface Held {
  content: Content;
  /** Datagrams: which one of its flow since the last checkpoint. */
  index: number;
}

export class Truth {
  private readonly flows = new Map<number, Flow>();
  private readonly frames = new Map<number, Held>();

  add(step: FrameStep, slot: number): void {
    const { content, side } = step;
    const flow = this.flow(content.flow);
    if (content.kind === "datagram") {
      flow[side].push(content.payload);
    } else if (side === "primary") {
      this.addPrimary(flow, content);
    } else {
      addSecondary(streamOf(flow, content.connection), content);
    }
    if (side === "secondary") return;
    this.frames.set(slot, { content, index: flow.primary.length - 1 });
    flow.held.push(slot);
  }

  /** Everything held has been released. */
  checkpoint(): void {
    for (const flow of this.flows.values()) {
      flow.diverged = false;
      flow.held = [];
      flow.primary = [];
      flow.secondary = [];
      flow.streams.clear();
      flow.covered = { ...flow.latest };
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
    const flow = this.flow(this.flowOf(slot));
    flow.held = flow.held.filter((other) => other !== slot);
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
    if (flow.held[0] !== slot) reasons.add("behind");
    if (content.kind === "tcp") this.whyHeldTcp(flow, content, reasons);
    else this.whyHeldDatagram(flow, content, index, reasons);
    return reasons;
  }

  /** Whether a checkpoint covers all bytes of a primary segment. */
  isCovered(slot: number): boolean {
    const { content } = this.frames.get(slot)!;
    if (content.kind !== "tcp") return false;
    const { covered } = this.flow(content.flow);
    if (content.connection < covered.connection) return true;
    return content.connection === covered.connection && content.to <= (covered.sent ?? 0);
  }

  /** Whether the secondary has sent this datagram since the last checkpoint, at whatever place. */
  isSentElsewhere(slot: number): boolean {
    const { content } = this.frames.get(slot)!;
    return content.kind === "datagram" && this.flow(content.flow).secondary.includes(content.payload);
  }

  /**
   * Primary frames at the first place where the two VMs differ, if everything before it has been compared: what our comparer must
   * report. Undefined if there is none.
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
      if (isUnfinished(flow, connection, stream)) return undefined;
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
    if (to > from) stream.primaryFrom = Math.min(stream.primaryFrom, from);
    if (content.reset) stream.primaryResets++;
    const { latest } = flow;
    if (connection > latest.connection) flow.latest = { connection, sent: undefined, received: -1 };
    if (connection < flow.latest.connection) return;
    if (to > from) flow.latest.sent = Math.max(flow.latest.sent ?? 0, to);
    flow.latest.received = Math.max(flow.latest.received, received ?? -1);
  }

  private whyHeldTcp(flow: Flow, content: TcpContent, reasons: Set<Reason>): void {
    const { connection, from, to, values, received } = content;
    const { covered } = flow;
    if (connection < covered.connection) return;
    const stream = streamOf(flow, connection);
    const isCovered = connection === covered.connection;
    const coveredTo = isCovered ? (covered.sent ?? 0) : 0;
    for (let at = Math.max(from, coveredTo); at < to; at++) {
      const other = stream.secondary.get(at);
      if (other === undefined) reasons.add("missing");
      else if (other !== values[at - from] || (at === 0 && !sameOptions(stream))) reasons.add("different");
    }
    for (let at = baseOf(flow, connection, stream); at < to && to > from; at++) {
      if (!isSettled(stream, at)) reasons.add("gap");
    }
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
        covered: { connection: -1, sent: undefined, received: -1 },
        latest: { connection: -1, sent: undefined, received: -1 },
        primary: [],
        secondary: [],
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
      secondaryReceived: -1,
      primaryResets: 0,
      secondaryResets: [],
      options: {},
    };
    flow.streams.set(connection, stream);
  }
  return stream;
}

/** Where the comparison of a stream begins: behind what a checkpoint covers, else at the first place the primary has sent. */
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
