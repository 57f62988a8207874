/**
 * Sequences at random: two VMs that say the same, or nearly, and cut, order, repeat and acknowledge it
 * differently. Which of these happens is drawn for each sequence, so that most have few of them. All of
 * it follows from one number.
 */
import {
  ACK,
  type EthernetOptions,
  FIN,
  icmp,
  ip,
  RST,
  SYN,
  synOptions,
  tcp,
  text,
  timestamps,
  udp,
  udpDatagram,
} from "../compare/frames.ts";
import { Random } from "../random.ts";
import { type Content, FIN_VALUE, type FrameStep, type Side, type Step, SYN_VALUE } from "./sequence.ts";

/** What may happen in a sequence, and how often it does. */
const FEATURES = {
  /** The two VMs cut the stream at different places. */
  resegment: 0.5,
  /** Segments are sent again, whole. */
  retransmit: 0.3,
  /** ... or from another place on, together with new bytes. */
  retransmitElsewhere: 0.1,
  /** Segments of a side are overtaken by later ones. */
  reorder: 0.2,
  /** Segments of a side get lost on the way to the comparer and are sent again later. */
  lose: 0.15,
  /** The two VMs acknowledge at different times. */
  acknowledge: 0.35,
  /** Segments without payload. */
  pureAcks: 0.35,
  /** Short frames are padded to 60 bytes by one or both sides. */
  pad: 0.12,
  /** Connections are closed. */
  close: 0.35,
  /** ... and others opened on the same ports. */
  reuse: 0.5,
  /** The secondary says something else from some place on. */
  diverge: 0.25,
  /** All bytes of a stream are the same. */
  monotone: 0.1,
  /** The connection was open before the comparers began. */
  midstream: 0.25,
  /** Checkpoints in between. */
  checkpoint: 0.3,
  /** Datagrams arrive in another order from one side. */
  shuffleDatagrams: 0.15,
  /** UDP and ICMP checksums and IP headers differ. */
  vary: 0.15,
} as const;

type Feature = keyof typeof FEATURES;

const STEPS_MAX = 48;
const SEGMENT_BYTES_MAX = 40;

interface StreamScript {
  primaryIsn: number;
  /** Of the secondary's SYN; all its other segments arrive in the primary's numbers. */
  secondaryIsn: number;
  clientIsn: number;
  bytes: number;
  clientBytes: number;
  ending: "open" | "fin" | "rst";
  /** Places from which on the secondary says something else. */
  divergesAt: number;
  options: { primary: Uint8Array; secondary: Uint8Array };
}

interface Progress {
  connection: number;
  sent: number;
  received: number;
  resetSent: boolean;
  /** Places that were lost and have to be sent again. */
  lost: { from: number; to: number }[];
  secondaryIsn: boolean;
  diverges: boolean;
}

interface TcpScript {
  kind: "tcp";
  network: Network;
  streams: StreamScript[];
  primary: Progress;
  secondary: Progress;
}

interface DatagramScript {
  kind: "datagram";
  network: Network;
  make: (payload: string, network: Network, vary: number) => Uint8Array;
  /** Datagrams come in fragments. */
  fragments: boolean;
  primary: number;
  secondary: number;
  total: number;
  divergesAt: number;
}

interface Network extends EthernetOptions {
  version: 4 | 6;
  source4: string;
  destination4: string;
  sourcePort: number;
  destinationPort: number;
  identification: number;
}

interface InFlight {
  step: FrameStep;
  /** Nothing overtakes the start of a connection, a reset, or a fragment. */
  fixed: boolean;
}

export class Generator {
  private readonly random: Random;
  private readonly has: Record<Feature, boolean>;
  private readonly scripts: (TcpScript | DatagramScript)[] = [];
  private readonly queues: Record<Side, InFlight[]> = { primary: [], secondary: [] };
  private readonly steps: Step[] = [];
  private readonly sequences = new Set<number>();
  private identification = 1;

  /**
   * Neighbouring seeds make sequences with different addresses and ports, so that one QEMU can be given
   * many of them.
   */
  constructor(private readonly number: number) {
    this.random = new Random(number);
    const names = Object.keys(FEATURES) as Feature[];
    const all = this.random.chance(0.1);
    this.has = Object.fromEntries(
      names.map((name) => [name, this.random.chance(all ? 0.6 : FEATURES[name])]),
    ) as Record<Feature, boolean>;
    const flows = 1 + (this.random.chance(0.3) ? 1 + this.random.below(2) : 0);
    for (let flow = 0; flow < flows; flow++) this.scripts.push(this.makeScript(flow));
  }

  /** Names of what may happen in this sequence. */
  get features(): string[] {
    return Object.entries(this.has).flatMap(([name, has]) => (has ? [name] : []));
  }

  run(): Step[] {
    const { random, steps, queues } = this;
    for (let turn = 0; turn < 400 && steps.length < STEPS_MAX; turn++) {
      const side: Side = random.chance(0.5) ? "primary" : "secondary";
      if (random.chance(0.55)) this.speak(random.below(this.scripts.length), side);
      else this.deliver(side);
      if (this.has.checkpoint && random.chance(0.03)) this.checkpoint();
    }
    // Most sequences end with everything said by both.
    if (random.chance(0.7)) {
      for (let flow = 0; flow < this.scripts.length; flow++) this.complete(flow);
      while (queues.primary.length > 0 || queues.secondary.length > 0) {
        this.deliver(random.chance(0.5) ? "primary" : "secondary");
      }
    }
    return steps;
  }

  private makeScript(flow: number): TcpScript | DatagramScript {
    const { random } = this;
    const host = 1 + this.number * 4 + flow;
    const network: Network = {
      version: 4,
      source4: `198.18.${(host >> 8) & 0xff}.${host & 0xff}`,
      destination4: `198.19.${(host >> 16) & 0x7f}.9`,
      sourcePort: 80 + flow,
      destinationPort: 1024 + (this.number % 60_000),
      identification: 1,
    };
    const kind = random.fraction();
    if (kind < 0.74) return this.makeTcp(network);
    if (kind < 0.79) return this.makeTcp({ ...network, version: 6 });
    if (kind < 0.82) return this.makeTcp({ ...network, vlans: [5] });
    const total = 1 + random.below(8);
    const divergesAt =
      this.has.diverge && random.chance(0.7) ? random.below(total) : Number.POSITIVE_INFINITY;
    const makers = [makeUdp, makeUdp, makeUdp, makeIcmp, makeTunnelled];
    const make = makers[random.below(makers.length)];
    const fragments = make === makeUdp && random.chance(0.25);
    const version = make === makeUdp && !fragments && random.chance(0.15) ? 6 : 4;
    return {
      kind: "datagram",
      network: { ...network, version },
      make,
      fragments,
      primary: 0,
      secondary: 0,
      total,
      divergesAt,
    };
  }

  private makeTcp(network: Network): TcpScript {
    const { random, has } = this;
    const streams: StreamScript[] = [];
    const count = has.close && has.reuse ? 2 + random.below(2) : 1;
    let isn = this.sequence();
    for (let i = 0; i < count; i++) {
      let bytes = 20 + random.below(200);
      // An RST with number 0 says nothing about the stream, so no stream ends there.
      if (((isn + bytes + 1) | 0) === 0) bytes++;
      const endings: StreamScript["ending"][] = random.chance(0.7) ? ["fin"] : ["rst"];
      const options = synOptions(1460, 7);
      const otherOptions = has.diverge && random.chance(0.05) ? synOptions(1400, 7) : options;
      const diverges = has.diverge && random.chance(0.6);
      streams.push({
        primaryIsn: isn,
        secondaryIsn: random.chance(0.3) ? isn : this.sequence(),
        clientIsn: this.sequence(),
        bytes,
        clientBytes: 20 + random.below(500),
        ending: has.close ? endings[0] : "open",
        divergesAt: diverges ? 1 + random.below(bytes) : Number.POSITIVE_INFINITY,
        options: { primary: options, secondary: otherOptions },
      });
      // Higher by far, a little lower, or just anything.
      isn = [(isn + 0x2000_0000) >>> 0, (isn - 1000 - random.below(2000)) >>> 0, this.sequence()][
        random.below(3)
      ];
    }
    const progress = (): Progress => ({
      connection: 0,
      sent: 0,
      received: 0,
      resetSent: false,
      lost: [],
      secondaryIsn: true,
      diverges: true,
    });
    const script: TcpScript = { kind: "tcp", network, streams, primary: progress(), secondary: progress() };
    if (has.midstream) {
      const sent = 1 + random.below(streams[0].bytes);
      const received = 1 + random.below(streams[0].clientBytes);
      for (const side of [script.primary, script.secondary]) {
        side.sent = sent;
        side.received = received;
      }
    }
    return script;
  }

  /** Now and then near the places where 32-bit arithmetic goes wrong; never the same twice. */
  private sequence(): number {
    const { random, sequences } = this;
    for (;;) {
      const near = [0, 0x7fff_ffff, 0xffff_ffff][random.below(3)];
      const sequence = (random.chance(0.2) ? near - random.below(400) : random.below(2 ** 32)) >>> 0;
      if (sequences.has(sequence)) continue;
      sequences.add(sequence);
      return sequence;
    }
  }

  private speak(flow: number, side: Side): void {
    const script = this.scripts[flow];
    if (script.kind === "datagram") this.speakDatagram(script, flow, side);
    else this.speakTcp(script, flow, side);
  }

  private speakDatagram(script: DatagramScript, flow: number, side: Side): void {
    const { random, has } = this;
    if (script[side] >= script.total) return;
    const index = script[side]++;
    let payload = `datagram ${index}`;
    if (side === "secondary" && index === script.divergesAt) {
      payload = random.chance(0.5) ? `datagraM ${index}` : `${payload} and more`;
    }
    const network = { ...script.network, identification: this.identification++ };
    // Other protocols are compared by QEMU with their IP headers.
    if (script.make === makeTunnelled && !has.vary) network.identification = 1;
    const vary = has.vary ? random.below(0x10000) : 0;
    if (script.fragments) {
      this.speakFragments(flow, side, payload, network, vary);
      return;
    }
    const frame = script.make(payload, network, vary);
    this.queue(side, frame, { kind: "datagram", flow, payload });
  }

  /** A UDP datagram in two fragments; if the two VMs cut differently, at any place, or whole. */
  private speakFragments(
    flow: number,
    side: Side,
    payload: string,
    network: Network,
    checksum: number,
  ): void {
    const { random, has } = this;
    const bytes = udpDatagram(payload, { ...network, checksum });
    const cut = has.resegment ? 8 * random.below(3) : 8;
    if (cut === 0) {
      this.queue(side, ip(17, bytes, network), { kind: "datagram", flow, payload });
      return;
    }
    const parts = [
      { from: 0, to: cut },
      { from: cut, to: bytes.length },
    ];
    for (const { from, to } of parts) {
      const place = { fragmentOffset: from / 8, moreFragments: to < bytes.length };
      const fragment = { datagram: network.identification, from, to, of: bytes.length };
      const frame = ip(17, bytes.subarray(from, to), { ...network, ...place });
      this.queue(side, frame, { kind: "datagram", flow, payload, fragment });
    }
  }

  private speakTcp(script: TcpScript, flow: number, side: Side): void {
    const { random, has } = this;
    const progress = script[side];
    const stream = script.streams[progress.connection];
    const last = stream.bytes + 1;
    const end = stream.ending === "fin" ? last + 1 : last;
    if (progress.received === 0) progress.received = 1;
    if (has.acknowledge && progress.sent > 0 && random.chance(0.4)) {
      progress.received = Math.min(stream.clientBytes + 1, progress.received + 1 + random.below(100));
    }
    if (progress.sent === 0) {
      this.segment(script, flow, side, 0, 1);
      return;
    }
    if (progress.resetSent || (stream.ending === "fin" && progress.sent === end)) {
      if (random.chance(0.5)) this.nextConnection(script, flow, side);
      return;
    }
    if (stream.ending === "rst" && progress.sent === last) {
      this.reset(script, flow, side);
      return;
    }
    const [lost] = progress.lost;
    if (lost !== undefined && random.chance(0.4)) {
      progress.lost.shift();
      this.segment(script, flow, side, lost.from, lost.to);
      return;
    }
    if (has.pureAcks && random.chance(0.3)) {
      this.segment(script, flow, side, progress.sent, progress.sent);
      return;
    }
    if (has.retransmitElsewhere && random.chance(0.2) && progress.sent > 2) {
      const from = Math.max(1, progress.sent - 1 - random.below(SEGMENT_BYTES_MAX));
      this.segment(script, flow, side, from, Math.min(end, from + 1 + random.below(2 * SEGMENT_BYTES_MAX)));
      return;
    }
    if (has.retransmit && random.chance(0.2) && progress.sent > 1) {
      const to = progress.sent;
      this.segment(script, flow, side, Math.max(1, to - 1 - random.below(SEGMENT_BYTES_MAX)), to);
      return;
    }
    if (progress.sent >= end) return;
    const from = progress.sent;
    const to = Math.min(end, this.nextCut(script, flow, from));
    if (has.lose && random.chance(0.15)) {
      progress.lost.push({ from, to });
      progress.sent = to;
      return;
    }
    this.segment(script, flow, side, from, to);
  }

  /** Both VMs cut at the same places unless they may do otherwise. */
  private nextCut(script: TcpScript, flow: number, from: number): number {
    if (this.has.resegment) return from + 1 + this.random.below(SEGMENT_BYTES_MAX);
    const step = 5 + ((this.number * 7 + flow + script.streams.length) % 30);
    return 1 + (Math.floor((from - 1) / step) + 1) * step;
  }

  private reset(script: TcpScript, flow: number, side: Side): void {
    const progress = script[side];
    const stream = script.streams[progress.connection];
    this.repair(script, flow, side);
    progress.received = stream.clientBytes + 1;
    progress.resetSent = true;
    this.segment(script, flow, side, progress.sent, progress.sent, true);
  }

  private nextConnection(script: TcpScript, flow: number, side: Side): void {
    const progress = script[side];
    if (progress.connection + 1 >= script.streams.length) return;
    this.repair(script, flow, side);
    progress.connection++;
    progress.sent = 0;
    progress.received = 0;
    progress.resetSent = false;
    progress.secondaryIsn = true;
    progress.diverges = true;
  }

  /** Sends again what was lost. */
  private repair(script: TcpScript, flow: number, side: Side): void {
    for (const { from, to } of script[side].lost.splice(0)) this.segment(script, flow, side, from, to);
  }

  private complete(flow: number): void {
    const script = this.scripts[flow];
    for (const side of ["primary", "secondary"] as const) {
      if (script.kind === "datagram") {
        while (script[side] < Math.max(script.primary, script.secondary)) {
          this.speakDatagram(script, flow, side);
        }
        continue;
      }
      const other = script[side === "primary" ? "secondary" : "primary"];
      const progress = script[side];
      this.repair(script, flow, side);
      if (progress.connection !== other.connection) continue;
      progress.received = Math.max(progress.received, other.received);
      if (progress.sent === 0 && other.sent > 0) this.segment(script, flow, side, 0, 1);
      if (progress.sent < other.sent) this.segment(script, flow, side, progress.sent, other.sent);
      if (other.resetSent && !progress.resetSent) this.reset(script, flow, side);
      if (this.has.pureAcks && !progress.resetSent)
        this.segment(script, flow, side, progress.sent, progress.sent);
    }
  }

  private segment(
    script: TcpScript,
    flow: number,
    side: Side,
    from: number,
    to: number,
    reset = false,
  ): void {
    const { random, has } = this;
    const progress = script[side];
    const { connection } = progress;
    const stream = script.streams[connection];
    const syn = from === 0;
    const diverges = side === "secondary" && progress.diverges;
    const values: number[] = [];
    for (let at = from; at < to; at++) {
      if (at === 0) values.push(SYN_VALUE);
      else if (at === stream.bytes + 1) values.push(FIN_VALUE);
      else values.push(this.byteAt(flow, connection, at, diverges && at >= stream.divergesAt));
    }
    const fin = values.at(-1) === FIN_VALUE;
    const payload = Uint8Array.from(values.filter((value) => value < 256));
    const ownNumber = syn && side === "secondary" && progress.secondaryIsn;
    const isn = ownNumber ? stream.secondaryIsn : stream.primaryIsn;
    const { received } = progress;
    const pads = has.pad && payload.length < 6 && random.chance(0.5);
    const bare = has.pad && (syn || pads);
    const options = syn ? stream.options[side] : timestamps(random.below(2 ** 32), 1);
    const frame = tcp({
      ...script.network,
      identification: this.identification++,
      seq: (isn + from) >>> 0,
      ack: (stream.clientIsn + received) >>> 0,
      flags: ACK | (syn ? SYN : 0) | (fin ? FIN : 0) | (reset ? RST : 0),
      options: bare ? new Uint8Array(0) : options,
      payload,
      window: random.below(0x10000),
      padding: pads ? 6 - payload.length : 0,
    });
    const content: Content = { kind: "tcp", flow, connection, from, to, values, received, reset };
    if (syn) content.options = bare ? "none" : Buffer.from(options).toString("hex");
    this.queue(side, frame, content);
    progress.sent = Math.max(progress.sent, to);
  }

  private byteAt(flow: number, connection: number, at: number, other: boolean): number {
    if (this.has.monotone) return other ? 0x42 : 0x41;
    const value = (Math.imul(this.number * 131 + flow * 7 + connection * 31 + at, 0x9e3779b1) >>> 13) & 0xff;
    return other ? value ^ 0x55 : value;
  }

  private queue(side: Side, frame: Uint8Array, content: Content): void {
    // Fragments without a first one before them are not put together.
    const fixed =
      content.kind === "tcp" ? content.from === 0 || content.reset : content.fragment !== undefined;
    this.queues[side].push({ step: { side, frame, content }, fixed });
  }

  private deliver(side: Side): void {
    const { random, has } = this;
    const queue = this.queues[side];
    if (queue.length === 0) return;
    let index = 0;
    const wanted = queue[0].step.content.kind === "tcp" ? has.reorder : has.shuffleDatagrams;
    if (wanted && random.chance(0.3)) {
      index = random.below(Math.min(4, queue.length));
      const [first] = queue;
      for (let i = 0; i <= index; i++) {
        if (queue[i].fixed || queue[i].step.content.kind !== first.step.content.kind) index = 0;
      }
    }
    const [{ step }] = queue.splice(index, 1);
    this.steps.push(step);
  }

  /** Both VMs stop: what the primary has sent arrives, what the secondary has sent is undone. */
  private checkpoint(): void {
    while (this.queues.primary.length > 0) this.deliver("primary");
    this.queues.secondary = [];
    this.steps.push({ side: "checkpoint" });
    for (const script of this.scripts) {
      if (script.kind === "datagram") {
        script.secondary = script.primary;
      } else {
        script.secondary = {
          ...script.primary,
          lost: script.primary.lost.map((range) => ({ ...range })),
          // What was open at the checkpoint is the same on both from now on.
          secondaryIsn: false,
          diverges: false,
        };
      }
    }
  }
}

function makeUdp(payload: string, network: Network, vary: number): Uint8Array {
  return udp(payload, { ...network, checksum: vary });
}

function makeIcmp(payload: string, network: Network, vary: number): Uint8Array {
  return icmp(payload, { ...network, checksum: vary });
}

/** GRE */
function makeTunnelled(payload: string, network: Network): Uint8Array {
  return ip(47, text(`....${payload}`), network);
}
