/**
 * Hostile input for the comparer: frames made of nothing, and good ones that were damaged, to both sides in
 * any order, with checkpoints, timeouts and limits at any place. All of it follows from one seed. What must
 * hold whatever comes: no exception, no look outside of the frames (the bench's memcmp and its spoilt
 * records), the counters' invariants, tables that agree with each other, and every record given back exactly
 * once.
 */
import { parseRules } from "../../src/compare/rules.ts";
import { Random } from "../random.ts";
import * as frames from "./frames.ts";
import { Bench, MS } from "./harness.ts";

const FLAGS = [0, frames.SYN, frames.FIN, frames.RST, frames.PSH, frames.SYN | frames.FIN, 0x20, 0xff];

/** Few enough addresses, ports and numbers that frames meet. */
export class FrameMaker {
  private identification = 1;

  constructor(private readonly random: Random) {}

  /** One frame, or all fragments of one datagram. */
  make(): Uint8Array[] {
    const { random } = this;
    const kind = random.below(20);
    if (kind < 9) return [frames.tcp(this.tcpOptions())];
    if (kind < 12) return [frames.udp(this.payload(), this.ipOptions())];
    if (kind < 13) return [frames.icmp(this.payload(), { ...this.ipOptions(), id: random.below(2) })];
    if (kind < 17) return this.fragments();
    if (kind < 18)
      return [frames.ip([47, 50, 132, 0, 44, 60][random.below(6)], this.payload(), this.ipOptions())];
    if (kind < 19)
      return [frames.ethernet([0x88cc, 0x0806, 0x0800, 0x86dd, 46][random.below(5)], this.payload())];
    return [this.noise(random.below(120))];
  }

  noise(bytes: number): Uint8Array {
    return Uint8Array.from({ length: bytes }, () => this.random.below(256));
  }

  private payload(): Uint8Array {
    const { random } = this;
    const bytes = [0, 1, 3, 8, 16, 17, 40, 200][random.below(8)];
    return new Uint8Array(bytes).fill(random.chance(0.9) ? 7 : random.below(256));
  }

  private ipOptions() {
    const { random } = this;
    const version = random.chance(0.7) ? (4 as const) : (6 as const);
    return {
      version,
      identification: this.identification++,
      vlans: random.chance(0.1) ? [random.below(4)] : [],
      padding: random.chance(0.2) ? random.below(20) : 0,
      sourcePort: 80 + random.below(2),
      destination4: `198.18.0.${8 + random.below(2)}`,
      ...(version === 6 && random.chance(0.2)
        ? { extensions: [[[0, 60, 43][random.below(3)], new Uint8Array(8)]] as [number, Uint8Array][] }
        : {}),
    };
  }

  private tcpOptions() {
    const { random } = this;
    const near = [0, 0x7fff_fff0, 0xffff_fff0][random.below(3)];
    const options = [new Uint8Array(0), frames.timestamps(1, 2), frames.synOptions(1460, 7), this.noise(8)];
    return {
      ...this.ipOptions(),
      seq: (near + random.below(60)) >>> 0,
      ...(random.chance(0.9) ? { ack: (near + random.below(60)) >>> 0 } : {}),
      flags: random.chance(0.6) ? 0 : FLAGS[random.below(FLAGS.length)],
      window: random.below(65_536),
      urgent: random.chance(0.1) ? random.below(65_536) : 0,
      options: options[random.below(options.length)],
      payload: this.payload(),
    };
  }

  private fragments(): Uint8Array[] {
    const { random } = this;
    const options = this.ipOptions();
    const datagrams: [number, () => Uint8Array][] = [
      [17, () => frames.udpDatagram(this.payload(), options)],
      [6, () => frames.tcpSegment(this.tcpOptions())],
      [47, () => this.payload()],
    ];
    const [protocol, makeDatagram] = datagrams[random.below(datagrams.length)];
    const datagram = makeDatagram();
    const cuts = new Set<number>();
    for (let i = random.below(4); i >= 0; i--) cuts.add(8 * (1 + random.below(8)));
    const inside = [...cuts].filter((cut) => cut < datagram.length).toSorted((a, b) => a - b);
    const parts = frames.fragments(protocol, datagram, inside, options);
    if (random.chance(0.1)) parts.reverse();
    if (random.chance(0.1)) parts.push(parts[random.below(parts.length)]);
    if (parts.length > 1 && random.chance(0.1)) parts.splice(random.below(parts.length), 1);
    return parts;
  }
}

/** Damage: bits, fields that hold lengths, truncation, garbage where options are, pieces of another frame. */
export function mutate(frame: Uint8Array, other: Uint8Array, random: Random): Uint8Array {
  let bytes: Uint8Array = frame.slice();
  for (let times = 1 + random.below(3); times > 0 && bytes.length > 0; times--) {
    const at = random.below(bytes.length);
    switch (random.below(9)) {
      case 0:
        bytes[at] ^= 1 << random.below(8);
        break;
      case 1:
        bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
        break;
      case 2: {
        // EtherType, version and header length, total length, fragment field, protocol, payload length, next
        // header.
        const field = [12, 13, 14, 16, 17, 18, 19, 20, 21, 23][random.below(10)];
        if (field < bytes.length) bytes[field] = random.below(256);
        break;
      }
      case 3: {
        // UDP length, data offset and flags of TCP, behind a plain IPv4 or IPv6 header.
        const field = [34, 54][random.below(2)] + [4, 5, 12, 13, 18, 19][random.below(6)];
        if (field < bytes.length) bytes[field] = random.below(256);
        break;
      }
      case 4:
        bytes = bytes.slice(0, at);
        break;
      case 5: {
        const more = new Uint8Array(bytes.length + random.below(40));
        more.set(bytes);
        bytes = more;
        break;
      }
      case 6:
        for (let i = at; i < Math.min(at + 12, bytes.length); i++) bytes[i] = random.below(256);
        break;
      case 7: {
        const piece = other.slice(at, at + random.below(40));
        bytes.set(piece.subarray(0, bytes.length - at), at);
        break;
      }
      default: {
        const tag = Uint8Array.from([0x81, 0, random.below(256), random.below(256)]);
        bytes = frames.concat(bytes.slice(0, 12), tag, bytes.slice(12));
      }
    }
  }
  return bytes;
}

interface EpisodeResult {
  frames: number;
  released: number;
  classes: string[];
}

const RING_BYTES = 1 << 19;
const RULES = [
  undefined,
  { passthrough: ["udp port 80", "198.18.0.8 port 81"], ignore: ["udp port 81 bytes 0-3,16-20"] },
  { passthrough: ["tcp port 80", "47"], ignore: [] },
];

/**
 * One comparer's life: `steps` events, a last checkpoint, the end of protection. Throws when something is
 * wrong.
 */
export function episode(seed: number, steps: number): EpisodeResult {
  const random = new Random(seed);
  const maker = new FrameMaker(random);
  const limit = (usual: number) => (random.chance(0.5) ? usual : 1 + random.below(usual));
  const rules = RULES[random.below(RULES.length)];
  const bench = new Bench({
    seed,
    bytes: RING_BYTES,
    epoch: random.below(65_536),
    parts: random.chance(0.5),
    partAfterNs: random.below(100) * MS,
    crossedAfterNs: random.below(100) * MS,
    ...(rules === undefined ? {} : { rules: parseRules(rules) }),
    limits: {
      heldFramesMax: limit(300),
      heldFramesPerFlowMax: limit(60),
      pendingFramesMax: limit(300),
      pendingFramesPerFlowMax: limit(60),
      flowsMax: limit(64),
    },
  });
  const { comparer } = bench;
  const sent: { primary: Uint8Array[]; secondary: Uint8Array[] } = { primary: [], secondary: [] };
  let count = 0;

  const next = (): Uint8Array[] => {
    const made = maker.make();
    if (!random.chance(0.2)) return made;
    const other = made[0];
    return made.map((frame) => (random.chance(0.5) ? mutate(frame, other, random) : frame));
  };
  const put = (side: "primary" | "secondary", frame: Uint8Array) => {
    count++;
    sent[side].push(frame);
    if (sent[side].length > 40) sent[side].shift();
    const gso = random.chance(0.05) ? { type: 5, size: 1 + random.below(20) } : {};
    if (side === "secondary") {
      const epoch = random.chance(0.9) ? bench.epoch : bench.epoch + random.below(4) - 1;
      bench.s(frame, { epoch: epoch & 0xffff, gso });
    } else if (random.chance(0.9)) {
      bench.p(frame, { gso });
    } else {
      // From another processor's ring, or held up on its way.
      bench.p(frame, { gso, timeNs: Math.max(0, bench.nowNs - random.below(300) * MS) });
    }
  };
  const step = () => {
    const what = random.below(100);
    if (what < 40) {
      // Both VMs send it.
      const made = next();
      const twin = random.chance(0.05) ? made.map((frame) => mutate(frame, made[0], random)) : made;
      if (made.length === 1 && twin.length === 1 && random.chance(0.3)) {
        count += 2;
        bench.pair(made[0], twin[0]);
        return;
      }
      const first = random.chance(0.5) ? "primary" : "secondary";
      for (const frame of made) put(first, first === "primary" ? frame : twin[made.indexOf(frame)]);
      for (const frame of twin) put(first === "primary" ? "secondary" : "primary", frame);
    } else if (what < 60) {
      for (const frame of next()) put(random.chance(0.5) ? "primary" : "secondary", frame);
    } else if (what < 80) {
      // Again, or what the other one has sent before.
      const [from, to] = random.chance(0.5) ? ["primary", "secondary"] : ["secondary", "primary"];
      const old = sent[from as "primary"];
      if (old.length > 0)
        put(random.chance(0.8) ? (to as "primary") : (from as "primary"), old[random.below(old.length)]);
    } else if (what < 90) {
      bench.nowNs += random.below(120) * MS;
      comparer.expire(bench.nowNs);
      comparer.nextDeadlineNs();
    } else if (what < 93) {
      comparer.beginCheckpoint(bench.nowNs - random.below(50) * MS);
    } else if (what < 94) {
      comparer.beginCheckpoint(bench.nowNs);
    } else if (what < 99) {
      bench.epoch = (bench.epoch + 1 + (random.chance(0.1) ? 1 : 0)) & 0xffff;
      comparer.checkpoint(bench.nowNs - random.below(60) * MS, bench.epoch);
    } else if (random.chance(0.2)) {
      comparer.releaseAll();
    }
    bench.check();
  };

  for (let i = 0; i < steps; i++) {
    step();
    if (i % 16 === 0) comparer.audit();
  }
  bench.nowNs += MS;
  bench.epoch = (bench.epoch + 1) & 0xffff;
  comparer.checkpoint(bench.nowNs, bench.epoch);
  bench.check();
  comparer.audit();
  const { stats } = comparer;
  if (stats.heldFrames !== 0)
    throw new Error(`${stats.heldFrames} frames are held behind a checkpoint of now`);
  comparer.releaseAll();
  bench.check();
  comparer.audit();
  if (stats.pendingFrames !== 0)
    throw new Error(`${stats.pendingFrames} secondary records were not finished`);
  if (stats.flows !== 0) throw new Error(`${stats.flows} flows were not forgotten`);
  return { frames: count, released: stats.releasedByComparison, classes: bench.classes };
}
