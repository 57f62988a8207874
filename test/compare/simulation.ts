/**
 * Two virtual machines that say (nearly) the same, a lossy, reordering way to the comparer, checkpoints at
 * random places, and an oracle that knows what really happened and objects to every release that rule 1 of
 * the design forbids. All of it follows from one seed.
 *
 * The oracle shares nothing with the comparer: it keeps, for each connection, every byte that the secondary
 * has handed to the comparer in the current epoch, position by position, and the state that the primary had
 * at the last checkpoint.
 */
import { Random } from "../random.ts";
import { FIN, fragmentsOf, RST, SYN, tcp, udp } from "./frames.ts";
import { Bench, type Departure } from "./harness.ts";

interface SimulationOptions {
  seed: number;
  steps: number;
  /**
   * Frames get lost, the secondary says other things, checkpoints happen. Without it everything must match by
   * itself.
   */
  hostile: boolean;
  /** Segments may be sent in parts. */
  parts: boolean;
}

const MAX_SEGMENT = 40;

function count(map: Map<string, number>, key: string, by: number): void {
  map.set(key, (map.get(key) ?? 0) + by);
}

/**
 * One connection of the script: the same for both machines, except for the secondary's initial sequence
 * number.
 */
interface Connection {
  primaryIsn: number;
  secondaryIsn: number;
  /** The client's initial sequence number and how much it sends. */
  clientIsn: number;
  clientBytes: number;
  bytes: number;
  /** It ends with RSTs instead of a FIN; those may carry acknowledgements. */
  reset: boolean;
  resetAcknowledges: boolean;
}

/**
 * How far a machine has come with a flow. Positions: 0 is the SYN, 1 to bytes the data, bytes + 1 the FIN.
 */
interface Progress {
  connection: number;
  sent: number;
  received: number;
  resetSent: boolean;
  isn: number;
  /** Secondary: from this position on it sends other bytes. */
  divergesAt: number;
}

interface TcpFlow {
  port: number;
  version: 4 | 6;
  connections: Connection[];
  primary: Progress;
  secondary: Progress;
  oracle: TcpOracle;
}

interface TcpOracle {
  /** State of the primary at the last checkpoint. */
  coveredConnection: number;
  coveredSent: number;
  coveredReceived: number;
  /** For each connection: what the secondary has sent in this epoch. */
  produced: Map<number, Produced>;
  /**
   * For each connection: the highest right edge of a window that was released, relative to the client's
   * number.
   */
  releasedEdges: Map<number, number>;
}

interface Produced {
  bytes: Map<number, number>;
  received: number;
  /** Highest right edge of a window. */
  edge: number;
  resets: Map<number, number>;
}

interface UdpFlow {
  port: number;
  primary: number;
  secondary: number;
  available: Map<string, number>;
  /** Fragments of the secondary in this epoch whose datagram is not complete, by place and content. */
  parts: Map<string, number>;
  /** By datagram: which fragments of it have come in this epoch. */
  arrived: Map<number, Piece[]>;
  /** Datagrams of the primary that have begun to leave. */
  leaving: Set<number>;
}

/** A fragment. */
interface Piece {
  datagram: number;
  count: number;
  /** The part of the IP payload. */
  from: number;
  to: number;
  text: string;
}

type Sent =
  | {
      kind: "tcp";
      flow: number;
      connection: number;
      from: number;
      to: number;
      received: number;
      window: number;
      acknowledges: boolean;
      reset: boolean;
      bytes: Map<number, number>;
      piece?: Piece;
    }
  | { kind: "udp"; flow: number; payload: string; piece?: Piece };

interface InFlight {
  frame: Uint8Array;
  timeNs: number;
  epoch: number;
  sent: Sent;
  opens: boolean;
}

const SYN_MARK = 1000;
const FIN_MARK = 1001;

export class Simulation {
  readonly bench: Bench;
  private readonly random: Random;
  private readonly sequences = new Set<number>();
  private readonly tcpFlows: TcpFlow[] = [];
  private readonly udpFlows: UdpFlow[] = [];
  private primaryQueue: InFlight[] = [];
  private secondaryQueue: InFlight[] = [];
  private early: InFlight[] = [];
  /** By primary slot. */
  private readonly sent: InFlight[] = [];
  private readonly lastReleased = new Map<string, number>();
  /** "" when idle, else how far a checkpoint has come. */
  private phase: "" | "begun" | "stopped" = "";
  private boundaryNs = 0;
  private coveredNs = Number.NEGATIVE_INFINITY;
  /** The epoch in which the machines are, and the one the comparer knows of. */
  private epoch = 0xfffe;
  private knownEpoch = 0xfffe;
  private covered: (() => void)[] = [];
  private checkedReleases = 0;
  private checkedDivergences = 0;
  private readonly frozen = new Set<string>();
  private datagrams = 0;
  checkpoints = 0;
  fragments = 0;
  parts = 0;
  /** Of frames that have begun to leave in parts: the positions that have left. */
  private readonly departed = new Map<number, Set<number>>();

  constructor(private readonly options: SimulationOptions) {
    this.random = new Random(options.seed);
    this.bench = new Bench({
      epoch: this.epoch,
      bytes: 4 << 20,
      seed: options.seed,
      parts: options.parts,
      partAfterNs: options.parts ? 20e6 : Number.POSITIVE_INFINITY,
      // Without losses everything comes in the end, but this is not about time.
      ...(options.hostile ? {} : { maxWaitNs: options.parts ? 1e15 : 200e6 }),
    });
    const flows = 1 + this.random.below(3);
    for (let i = 0; i < flows; i++) this.tcpFlows.push(this.makeFlow(80 + i));
    for (let i = 0; i < 2; i++) {
      this.udpFlows.push({
        port: 53 + i,
        primary: 0,
        secondary: 0,
        available: new Map(),
        parts: new Map(),
        arrived: new Map(),
        leaving: new Set(),
      });
    }
  }

  run(): void {
    for (let step = 0; step < this.options.steps; step++) {
      this.step();
      this.verify();
    }
    this.finish();
  }

  private makeFlow(port: number): TcpFlow {
    const { random } = this;
    const connections: Connection[] = [];
    for (let i = 0; i < 4; i++) {
      const bytes = 50 + random.below(600);
      let primaryIsn = this.sequence();
      // A reset with sequence number 0 is taken for one that refuses a segment without a connection.
      while ((primaryIsn + bytes + 1) >>> 0 === 0) primaryIsn = this.sequence();
      connections.push({
        primaryIsn,
        secondaryIsn: this.sequence(),
        clientIsn: this.sequence(),
        clientBytes: random.below(2000),
        bytes,
        reset: random.chance(0.3),
        resetAcknowledges: random.chance(0.5),
      });
    }
    const progress = (): Progress => ({
      connection: 0,
      sent: 0,
      received: 0,
      resetSent: false,
      isn: 0,
      divergesAt: Number.POSITIVE_INFINITY,
    });
    const primary = progress();
    const oracle: TcpOracle = {
      coveredConnection: -1,
      coveredSent: 0,
      coveredReceived: 0,
      produced: new Map(),
      releasedEdges: new Map(),
    };
    if (this.options.hostile && random.chance(0.4)) {
      // The agent was started in the middle of the connection: the first checkpoint made both equal.
      primary.sent = 1 + random.below(connections[0].bytes);
      primary.received = 1 + random.below(connections[0].clientBytes + 1);
      oracle.coveredConnection = 0;
      oracle.coveredSent = primary.sent;
      oracle.coveredReceived = primary.received;
    }
    primary.isn = connections[0].primaryIsn;
    const midstream = primary.sent > 0;
    const secondary = { ...primary, isn: midstream ? primary.isn : connections[0].secondaryIsn };
    const version = random.chance(0.5) ? 4 : 6;
    return { port, version, connections, primary, secondary, oracle };
  }

  /** Often near the places where 32-bit arithmetic goes wrong; never the same twice. */
  private sequence(): number {
    const { random, sequences } = this;
    for (;;) {
      const near = [0, 0x7fff_ffff, 0xffff_ffff][random.below(3)];
      const sequence = (random.chance(0.5) ? near - random.below(400) : random.below(2 ** 32)) >>> 0;
      if (sequences.has(sequence)) continue;
      sequences.add(sequence);
      return sequence;
    }
  }

  private step(): void {
    const { random, options } = this;
    const what = random.fraction();
    if (what < 0.22) this.speak(true);
    else if (what < 0.44) this.speak(false);
    else if (what < 0.71) this.deliverPrimary();
    else if (what < 0.975) this.deliverSecondary();
    else if (what < 0.985) this.passTime();
    else if (options.hostile) this.moveCheckpoint();
  }

  private passTime(): void {
    const { bench, random } = this;
    bench.nowNs += random.below(150) * 1e6;
    const { hostile, parts } = this.options;
    if (random.chance(0.5) && (hostile || parts)) bench.comparer.expire(bench.nowNs);
  }

  private speak(primary: boolean): void {
    const { random } = this;
    if (random.chance(0.2)) this.speakUdp(random.below(this.udpFlows.length), primary);
    else this.speakTcp(random.below(this.tcpFlows.length), primary);
  }

  private speakUdp(index: number, primary: boolean): void {
    const { random, options } = this;
    const flow = this.udpFlows[index];
    const side = primary ? "primary" : "secondary";
    const number = flow[side]++;
    let payload = `datagram ${number} of ${index}`;
    if (!primary && options.hostile && random.chance(0.01)) payload = payload.replace("d", "D");
    const frame = udp(payload, { sourcePort: flow.port, checksum: random.below(65536) });
    this.send(primary, frame, { kind: "udp", flow: index, payload }, false);
  }

  /** One segment of a machine: new data, a retransmission, an acknowledgement, or the next connection. */
  private speakTcp(index: number, primary: boolean): void {
    const { random, options } = this;
    const flow = this.tcpFlows[index];
    const progress = primary ? flow.primary : flow.secondary;
    const connection = flow.connections[progress.connection];
    const last = connection.bytes + 1;
    const closed = progress.resetSent || (!connection.reset && progress.sent > last);
    if (closed && random.chance(0.3) && progress.connection + 1 < flow.connections.length) {
      this.nextConnection(index, primary);
      return;
    }
    if (!primary && options.hostile && random.chance(0.003)) progress.divergesAt = progress.sent;
    if (random.chance(0.3)) {
      const limit = connection.clientBytes + 1;
      progress.received = Math.min(limit, progress.received + random.below(200));
    }
    if (progress.sent === 0) {
      this.segment(index, primary, 0, 1, false);
      return;
    }
    const what = random.fraction();
    if (progress.resetSent) {
      if (what < 0.2) this.sendReset(index, primary);
    } else if (connection.reset && progress.sent === last) {
      this.sendReset(index, primary);
    } else if (what < 0.6) {
      const end = Math.min(progress.sent + 1 + random.below(MAX_SEGMENT), connection.reset ? last : last + 1);
      this.segment(index, primary, progress.sent, end, false);
    } else if (what < 0.8) {
      const from = Math.max(0, progress.sent - 1 - random.below(2 * MAX_SEGMENT));
      const end = Math.min(from + 1 + random.below(2 * MAX_SEGMENT), connection.reset ? last : last + 1);
      this.segment(index, primary, from, from === 0 ? 1 : end, false);
    } else {
      const at = Math.max(1, progress.sent - random.below(2));
      this.segment(index, primary, at, at, false);
    }
  }

  /**
   * The first one as the connection wants it, later ones perhaps as bare answers to what the client still
   * sends.
   */
  private sendReset(index: number, primary: boolean): void {
    const flow = this.tcpFlows[index];
    const progress = primary ? flow.primary : flow.secondary;
    const connection = flow.connections[progress.connection];
    // Both machines have had the same input before they reset.
    progress.received = connection.clientBytes + 1;
    if (!progress.resetSent && !connection.resetAcknowledges) {
      this.segment(index, primary, progress.sent, progress.sent, false);
    }
    const bare = progress.resetSent && this.random.chance(0.5);
    progress.resetSent = true;
    this.segment(index, primary, progress.sent, progress.sent, true, connection.resetAcknowledges && !bare);
  }

  private nextConnection(index: number, primary: boolean): void {
    const flow = this.tcpFlows[index];
    const progress = primary ? flow.primary : flow.secondary;
    if (!progress.resetSent) {
      // The client's FIN is acknowledged last.
      progress.received = flow.connections[progress.connection].clientBytes + 1;
      this.segment(index, primary, progress.sent, progress.sent, false);
    }
    progress.connection++;
    progress.sent = 0;
    progress.received = 0;
    progress.resetSent = false;
    progress.divergesAt = Number.POSITIVE_INFINITY;
    const { primaryIsn, secondaryIsn } = flow.connections[progress.connection];
    progress.isn = primary ? primaryIsn : secondaryIsn;
  }

  /** Sends the positions [from, to) of the current connection. */
  private segment(
    index: number,
    primary: boolean,
    from: number,
    to: number,
    reset: boolean,
    acknowledges = true,
  ): void {
    const { random } = this;
    const flow = this.tcpFlows[index];
    const progress = primary ? flow.primary : flow.secondary;
    const connection = flow.connections[progress.connection];
    // What the SYN acknowledges is the client's SYN.
    progress.received = Math.max(1, progress.received);
    const syn = from === 0;
    const fin = from <= connection.bytes + 1 && to > connection.bytes + 1;
    const payload: number[] = [];
    const bytes = new Map<number, number>();
    for (let at = from; at < to; at++) {
      if (at === 0) bytes.set(at, SYN_MARK);
      else if (at === connection.bytes + 1) bytes.set(at, FIN_MARK);
      else {
        const value = this.content(index, progress.connection, at) ^ (at >= progress.divergesAt ? 0x55 : 0);
        payload.push(value);
        bytes.set(at, value);
      }
    }
    // Only the secondary's SYN travels with its own number; the programs rewrite everything else.
    const isn = syn ? progress.isn : connection.primaryIsn;
    const window = 3000 + random.below(4000);
    const flags = (syn ? SYN : 0) | (fin ? FIN : 0) | (reset ? RST : 0);
    const frame = tcp({
      version: flow.version,
      sourcePort: flow.port,
      seq: (isn + from) >>> 0,
      ...(acknowledges ? { ack: (connection.clientIsn + progress.received) >>> 0 } : {}),
      flags,
      payload: Uint8Array.from(payload),
      window,
      padding: random.chance(0.2) ? random.below(20) : 0,
      ttl: random.below(256),
    });
    const sent: Sent = {
      kind: "tcp",
      flow: index,
      connection: progress.connection,
      from,
      to,
      received: progress.received,
      window,
      acknowledges,
      reset,
      bytes,
    };
    const arrived = this.send(primary, frame, sent, syn);
    // A SYN must arrive before there is a client that lets the connection go on.
    if (arrived || !syn) progress.sent = Math.max(progress.sent, to);
  }

  private content(flow: number, connection: number, at: number): number {
    return (Math.imul(flow * 7 + connection * 31 + at, 0x9e3779b1) >>> 13) & 0xff;
  }

  /** Sends a frame, perhaps in fragments. Returns false when it was lost. */
  private send(primary: boolean, frame: Uint8Array, sent: Sent, opens: boolean): boolean {
    const { random } = this;
    if (opens || (sent.kind === "tcp" && sent.reset) || !random.chance(0.1)) {
      return this.sendFrame(primary, frame, sent, opens);
    }
    const datagram = this.datagrams++;
    const frames = fragmentsOf(frame, 1 + random.below(3), datagram & 0xffff, (n) => random.below(n));
    if (frames.length === 1) return this.sendFrame(primary, frame, sent, opens);
    let arrived = true;
    for (const { frame: fragment, from, to } of frames) {
      const text = `${from} ${Buffer.from(fragment.slice(-(to - from))).toString("hex")}`;
      const piece = { datagram, count: frames.length, from, to, text };
      const part: Sent = { ...sent, piece };
      if (part.kind === "tcp") {
        // Behind the 20 bytes of the header. The FIN is where the last byte is.
        const dataFrom = part.from + Math.max(0, from - 20);
        const dataTo = to === frames[frames.length - 1].to ? part.to : part.from + to - 20;
        part.bytes = new Map([...part.bytes].filter(([at]) => at >= dataFrom && at < dataTo));
        part.acknowledges = part.acknowledges && from === 0;
      }
      this.fragments++;
      if (!this.sendFrame(primary, fragment, part, false)) arrived = false;
    }
    return arrived;
  }

  private sendFrame(primary: boolean, frame: Uint8Array, sent: Sent, opens: boolean): boolean {
    const { random, options } = this;
    // A ring that is full, a replication link that loses.
    if (options.hostile && random.chance(0.008)) return false;
    this.bench.nowNs += 1000;
    const message = { frame, timeNs: this.bench.nowNs, epoch: this.epoch, sent, opens };
    if (primary) this.primaryQueue.push(message);
    else this.secondaryQueue.push(message);
    return true;
  }

  private deliverPrimary(): void {
    const message = this.primaryQueue.shift();
    if (message === undefined) return;
    const slot = this.sent.length;
    this.sent.push(message);
    if (this.bench.p(message.frame, { timeNs: message.timeNs }) !== slot)
      throw new Error("slots out of step");
  }

  private deliverSecondary(): void {
    const { random } = this;
    const queue = this.secondaryQueue;
    if (queue.length === 0) return;
    // Out of order now and then, but not across the start of a connection, which takes round trips.
    let index = random.chance(0.2) ? random.below(Math.min(4, queue.length)) : 0;
    if (queue.slice(0, index + 1).some(({ opens, sent }) => opens || sent.piece !== undefined)) index = 0;
    // Datagrams have no numbers: out of order they are different.
    if (queue[index].sent.kind === "udp") index = 0;
    const [message] = queue.splice(index, 1);
    const ahead = (message.epoch - this.knownEpoch) & 0xffff;
    if (ahead === 0) this.noteProduced(message.sent);
    else if (ahead < 0x8000) this.early.push(message);
    this.bench.s(message.frame, { epoch: message.epoch });
  }

  private noteProduced(sent: Sent): void {
    if (sent.kind === "udp") {
      const { available, parts, arrived } = this.udpFlows[sent.flow];
      const { piece } = sent;
      if (piece !== undefined) {
        count(parts, piece.text, 1);
        const pieces = [...(arrived.get(piece.datagram) ?? []), piece];
        arrived.set(piece.datagram, pieces);
        if (pieces.length < piece.count) return;
        for (const { text } of pieces) count(parts, text, -1);
      }
      count(available, sent.payload, 1);
      return;
    }
    const { produced } = this.tcpFlows[sent.flow].oracle;
    let entry = produced.get(sent.connection);
    if (entry === undefined) {
      entry = { bytes: new Map(), received: -1, edge: -1, resets: new Map() };
      produced.set(sent.connection, entry);
    }
    for (const [at, value] of sent.bytes) entry.bytes.set(at, value);
    if (sent.reset) {
      const received = sent.acknowledges ? sent.received : -1;
      entry.resets.set(sent.from, Math.max(entry.resets.get(sent.from) ?? -1, received));
    }
    if (sent.acknowledges) entry.received = Math.max(entry.received, sent.received);
    if (sent.acknowledges && !sent.reset && sent.piece === undefined) {
      entry.edge = Math.max(entry.edge, sent.received + sent.window);
    }
  }

  private moveCheckpoint(): void {
    const { bench } = this;
    if (this.phase === "") {
      bench.comparer.beginCheckpoint(bench.nowNs);
      this.phase = "begun";
    } else if (this.phase === "begun") {
      if (this.random.chance(0.1)) {
        // No checkpoint came of it: the next one begins.
        bench.comparer.beginCheckpoint(bench.nowNs);
        return;
      }
      this.stop();
    } else {
      this.commit();
    }
  }

  /** STOP on both sides, the secondary loads the primary's state, RESUME on both sides. */
  private stop(): void {
    const { bench, random } = this;
    this.boundaryNs = bench.nowNs;
    bench.nowNs += 5e6;
    if (random.chance(0.5)) bench.comparer.beginCheckpoint(this.boundaryNs);
    this.epoch = (this.epoch + 1) & 0xffff;
    this.phase = "stopped";
    for (const flow of this.tcpFlows) {
      const { connection, sent, received } = flow.primary;
      flow.secondary = { ...flow.primary, divergesAt: Number.POSITIVE_INFINITY };
      this.covered.push(() => {
        flow.oracle.coveredConnection = connection;
        flow.oracle.coveredSent = sent;
        flow.oracle.coveredReceived = received;
        flow.oracle.produced.clear();
      });
    }
    for (const flow of this.udpFlows) {
      flow.secondary = flow.primary;
      this.covered.push(() => {
        flow.available.clear();
        flow.parts.clear();
        flow.arrived.clear();
      });
    }
  }

  /** The news reaches the comparer. */
  private commit(): void {
    const { bench } = this;
    for (const apply of this.covered.splice(0)) apply();
    this.knownEpoch = this.epoch;
    this.coveredNs = this.boundaryNs;
    for (const message of this.early.splice(0)) this.noteProduced(message.sent);
    this.frozen.clear();
    const divergences = bench.divergences.length;
    bench.epoch = this.epoch;
    bench.comparer.checkpoint(this.boundaryNs, this.epoch);
    bench.check();
    // What the checkpoint itself released was covered; what diverged after it is frozen again.
    this.checkedDivergences = divergences;
    this.phase = "";
    this.checkpoints++;
    for (let slot = 0; slot < this.sent.length; slot++) {
      if (this.sent[slot].timeNs <= this.boundaryNs && !bench.isReleased(slot)) {
        throw new Error(`slot ${slot} is older than the checkpoint and still held`);
      }
    }
  }

  private finish(): void {
    if (this.options.hostile) {
      if (this.phase === "stopped") this.commit();
      while (this.primaryQueue.length > 0) this.deliverPrimary();
      this.phase = "";
      this.verify();
      this.stop();
      this.commit();
    } else {
      for (let i = 0; i < this.tcpFlows.length; i++) {
        this.complete(i, true);
        this.complete(i, false);
      }
      for (const [i, flow] of this.udpFlows.entries()) {
        while (flow.primary < flow.secondary) this.speakUdp(i, true);
        while (flow.secondary < flow.primary) this.speakUdp(i, false);
      }
      while (this.primaryQueue.length > 0) this.deliverPrimary();
      while (this.secondaryQueue.length > 0) this.deliverSecondary();
      this.bench.wait(10_000);
      const { divergences } = this.bench;
      if (divergences.length > 0) throw new Error(`false alarm: ${JSON.stringify(divergences[0])}`);
    }
    this.verify();
    const { heldFrames, pendingFrames } = this.bench.comparer.stats;
    if (heldFrames !== 0) throw new Error(`${heldFrames} frames are still held at the end`);
    if (!this.options.hostile && pendingFrames !== 0)
      throw new Error(`${pendingFrames} frames still wait at the end`);
  }

  /** Takes a machine to the end of its script for a flow. */
  private complete(index: number, primary: boolean): void {
    const flow = this.tcpFlows[index];
    const progress = primary ? flow.primary : flow.secondary;
    for (;;) {
      const connection = flow.connections[progress.connection];
      const last = connection.bytes + 1;
      if (progress.sent === 0) this.segment(index, primary, 0, 1, false);
      progress.received = connection.clientBytes + 1;
      const end = connection.reset ? last : last + 1;
      if (progress.sent < end) this.segment(index, primary, progress.sent, end, false);
      // What is not in fragments says what window is open.
      this.segment(index, primary, end, end, false);
      if (connection.reset && !progress.resetSent) this.sendReset(index, primary);
      if (progress.connection + 1 === flow.connections.length) return;
      this.nextConnection(index, primary);
    }
  }

  /** Looks at everything released since the last call. */
  private verify(): void {
    const { bench } = this;
    for (; this.checkedReleases < bench.departures.length; this.checkedReleases++) {
      const departure = bench.departures[this.checkedReleases];
      if (typeof departure === "number") this.verifyRelease(departure, this.sent[departure].sent);
      else this.verifyDeparture(departure);
    }
    for (; this.checkedDivergences < bench.divergences.length; this.checkedDivergences++) {
      const divergence = bench.divergences[this.checkedDivergences];
      if (
        divergence.class === "boundary" ||
        divergence.class === "overflow" ||
        divergence.class === "unparsed"
      ) {
        throw new Error(`unexpected divergence ${JSON.stringify(divergence)}`);
      }
      if (divergence.class.startsWith("missing")) continue;
      if (this.frozen.has(divergence.flow)) throw new Error(`reported twice: ${divergence.flow}`);
      this.frozen.add(divergence.flow);
    }
  }

  /** Something that was sent otherwise than the primary had sent it. */
  private verifyDeparture(departure: Departure): void {
    const { slot, last, silent, sequence, payload, fin } = departure;
    const { sent } = this.sent[slot];
    if (sent.kind !== "tcp") throw new Error(`slot ${slot} is a datagram and was changed`);
    const { primaryIsn, clientIsn } = this.tcpFlows[sent.flow].connections[sent.connection];
    const left = this.departed.get(slot) ?? new Set();
    this.departed.set(slot, left);
    if (!last) this.parts++;
    if (!silent) {
      const from = (sequence - primaryIsn) >>> 0;
      const positions = sent.from === 0 ? [0] : [];
      for (let i = 0; i < payload.length; i++) {
        const at = from + positions.length + i;
        if (sent.bytes.get(at) !== payload[i])
          throw new Error(`slot ${slot}: ${payload[i]} left as position ${at}`);
      }
      const end = from + positions.length + payload.length;
      for (let at = from + positions.length; at < end; at++) positions.push(at);
      if (fin) positions.push(end);
      for (const at of positions) left.add(at);
      const received = (departure.acknowledgement - clientIsn) >>> 0;
      if (sent.acknowledges && received > sent.received) {
        throw new Error(`slot ${slot}: acknowledges ${received}, the primary only ${sent.received}`);
      }
      const bytes = new Map([...sent.bytes].filter(([at]) => positions.includes(at)));
      this.verifyRelease(slot, { ...sent, bytes, received, window: departure.window });
    }
    if (!last) return;
    for (const at of sent.bytes.keys()) {
      if (!left.has(at)) throw new Error(`slot ${slot}: position ${at} has not left`);
    }
  }

  private verifyRelease(slot: number, sent: Sent): void {
    const { timeNs, epoch } = this.sent[slot];
    const isWhole = sent.piece === undefined;
    // What was sent again may overtake others when it has waited for long.
    if (isWhole && !this.options.parts) {
      // Fragments take their place when their datagram is complete, and some are compared by themselves.
      const name = `${sent.kind} ${sent.flow}`;
      const before = this.lastReleased.get(name) ?? -1;
      if (slot < before) throw new Error(`slot ${slot} of ${name} was released after ${before}`);
      this.lastReleased.set(name, slot);
    }
    if (timeNs <= this.coveredNs) return;
    if (epoch !== this.knownEpoch) {
      throw new Error(
        `slot ${slot} of epoch ${epoch} was released while epoch ${this.knownEpoch} was compared`,
      );
    }
    const port = sent.kind === "udp" ? this.udpFlows[sent.flow].port : this.tcpFlows[sent.flow].port;
    for (const flow of this.frozen) {
      if (isWhole && flow.startsWith(sent.kind) && flow.includes(`:${port} >`)) {
        throw new Error(`slot ${slot} was released although ${flow} had diverged`);
      }
    }
    if (sent.kind === "udp") {
      const { available, parts, leaving } = this.udpFlows[sent.flow];
      const { piece } = sent;
      if (piece !== undefined && leaving.has(piece.datagram)) return;
      if ((available.get(sent.payload) ?? 0) > 0) {
        count(available, sent.payload, -1);
        if (piece !== undefined) leaving.add(piece.datagram);
      } else if (piece !== undefined && (parts.get(piece.text) ?? 0) > 0) {
        count(parts, piece.text, -1);
      } else {
        throw new Error(`slot ${slot}: the secondary has not sent "${sent.payload}"`);
      }
      return;
    }
    this.verifyTcp(slot, sent);
  }

  /** No window beyond the secondary's may be released, but one that was released before. */
  private verifyWindow(slot: number, sent: Extract<Sent, { kind: "tcp" }>, oracle: TcpOracle): void {
    if (sent.piece !== undefined) return;
    const edge = sent.received + sent.window;
    const released = oracle.releasedEdges.get(sent.connection) ?? -1;
    const limit = Math.max(released, oracle.produced.get(sent.connection)?.edge ?? -1);
    if (edge > limit) throw new Error(`slot ${slot}: window up to ${edge}, the secondary's up to ${limit}`);
    oracle.releasedEdges.set(sent.connection, Math.max(released, edge));
  }

  private verifyTcp(slot: number, sent: Extract<Sent, { kind: "tcp" }>): void {
    const { oracle } = this.tcpFlows[sent.flow];
    if (!this.options.hostile && this.options.parts && sent.acknowledges && !sent.reset) {
      this.verifyWindow(slot, sent, oracle);
    }
    if (sent.connection < oracle.coveredConnection) return;
    const covered = sent.connection === oracle.coveredConnection;
    const entry = oracle.produced.get(sent.connection);
    if (sent.reset) {
      const received = entry?.resets.get(sent.from);
      if (received === undefined)
        throw new Error(`slot ${slot}: the secondary has sent no RST at ${sent.from}`);
      if (sent.acknowledges && sent.received > received) {
        throw new Error(`slot ${slot}: RST acknowledges ${sent.received}, the secondary's ${received}`);
      }
      return;
    }
    for (const [at, value] of sent.bytes) {
      if (covered && at < oracle.coveredSent) continue;
      const other = entry?.bytes.get(at);
      if (other !== value) {
        throw new Error(`slot ${slot}: position ${at} is ${value} on the primary, ${other} on the secondary`);
      }
    }
    const received = Math.max(entry?.received ?? -1, covered ? oracle.coveredReceived : -1);
    if (sent.acknowledges && sent.received > received) {
      throw new Error(`slot ${slot}: acknowledges ${sent.received}, the secondary has ${received}`);
    }
  }
}
