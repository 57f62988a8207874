/**
 * A pair (Comparer.addPair) must do what the two records do one after the other. Two comparers get the same
 * frames, one of them in pairs wherever it takes them; after each step all that can be seen of the two is the
 * same, and all that their tables say of each flow.
 */
import { expect, test } from "bun:test";
import { Random } from "../random.ts";
import { count, given, seedOf } from "../variables.ts";
import { CLIENT6, PSH, RST, SYN, tcp, timestamps } from "./frames.ts";
import { mutate } from "./fuzz.ts";
import { Bench, MS } from "./harness.ts";

const SEEDS = count("COLO_PAIRS_SEEDS");
const STEPS = 120;
const firstSeed = seedOf("COLO_PAIRS_SEED");

function seen({ comparer, released, finished, divergences, departures }: Bench): unknown {
  return { stats: { ...comparer.stats }, released, finished, divergences, departures };
}

/** One connection of the script, as far as it has come. */
interface Stream {
  options: { version: 4 | 6; sourcePort: number; destination6?: string };
  sequence: number;
  acknowledgement: number;
}

/** A secondary's segment may say other things than the primary's about everything but its bytes. */
function segmentOf(stream: Stream, payload: Uint8Array, random: Random): Uint8Array {
  const behind = random.chance(0.2) ? random.below(40) : 0;
  return tcp({
    ...stream.options,
    seq: stream.sequence >>> 0,
    ack: (stream.acknowledgement - behind) >>> 0,
    window: random.chance(0.5) ? 500 : random.below(65_536),
    identification: random.below(65_536),
    flags: random.chance(0.3) ? PSH : random.chance(0.03) ? [SYN, RST, 0x20, 0x01][random.below(4)] : 0,
    tos: random.chance(0.05) ? 4 : 0,
    padding: random.chance(0.05) ? 6 : 0,
    options: random.chance(0.1) ? new Uint8Array(0) : timestamps(random.below(1000), 1),
    payload,
  });
}

function run(seed: number): number {
  const random = new Random(seed);
  const options = {
    seed,
    parts: random.chance(0.5),
    partAfterNs: 20 * MS,
    crossedAfterNs: 40 * MS,
    limits: random.chance(0.3) ? { heldFramesMax: 8, pendingFramesPerFlowMax: 5, flowsMax: 3 } : {},
  };
  const together = new Bench(options);
  const apart = new Bench(options);
  const both = (what: (bench: Bench) => void) => {
    what(together);
    what(apart);
  };
  let pairs = 0;
  const pair = (own: Uint8Array, theirs: Uint8Array, timeNs?: number, epoch?: number) => {
    const how = { ...(timeNs === undefined ? {} : { timeNs }), ...(epoch === undefined ? {} : { epoch }) };
    if (together.pair(own, theirs, how)) pairs++;
    apart.pair(own, theirs, { ...how, apart: true });
  };
  const streams: Stream[] = Array.from({ length: 1 + random.below(4) }, (_, i) => ({
    options: {
      version: i % 2 === 0 ? 4 : 6,
      sourcePort: 80 + (i >> 1),
      ...(i > 2 ? { destination6: CLIENT6 } : {}),
    },
    sequence: [0, 0x7fff_fff0, 0xffff_fff0][random.below(3)],
    acknowledgement: 1000,
  }));
  // With windows that are known: the handshake has been seen.
  for (const stream of streams.filter(() => random.chance(0.6))) {
    const syn = tcp({
      ...stream.options,
      seq: (stream.sequence - 1) >>> 0,
      ack: stream.acknowledgement,
      flags: SYN,
      options: Uint8Array.from([3, 3, 3, 1]),
    });
    pair(syn, syn);
  }
  for (let step = 0; step < STEPS; step++) {
    const stream = streams[random.below(streams.length)];
    const bytes = random.chance(0.2) ? 0 : 1 + random.below(30);
    const payload = new Uint8Array(bytes).fill(random.below(256));
    const own = segmentOf(stream, payload, random);
    const what = random.below(100);
    if (what < 80) {
      let theirs = random.chance(0.2) ? own : segmentOf(stream, payload, random);
      if (random.chance(0.02)) theirs = mutate(theirs, own, random);
      const late = random.chance(0.03) ? together.nowNs - random.below(300) * MS : undefined;
      const epoch = random.chance(0.02) ? (together.epoch + random.below(3) - 1) & 0xffff : undefined;
      pair(own, theirs, late, epoch);
      stream.sequence = (stream.sequence + bytes) | 0;
    } else if (what < 84) {
      both((bench) => bench.s(own));
      if (random.chance(0.7)) {
        both((bench) => bench.p(own));
        stream.sequence = (stream.sequence + bytes) | 0;
      }
    } else if (what < 88) {
      stream.acknowledgement += random.below(200);
    } else if (what < 90) {
      // Again from further back, or with a gap.
      stream.sequence = (stream.sequence - random.below(40) + random.below(10)) | 0;
    } else if (what < 94) {
      const ms = random.below(60);
      both((bench) => bench.wait(ms));
    } else if (what < 95) {
      const horizon = together.nowNs - random.below(5) * MS;
      both((bench) => bench.comparer.beginCheckpoint(horizon));
    } else if (what < 99) {
      const boundary = together.nowNs - random.below(3) * MS;
      both((bench) => bench.checkpoint(boundary));
    } else {
      both((bench) => bench.comparer.releaseAll());
    }
    expect(seen(together)).toEqual(seen(apart));
    // A column that counts only with its flag may hold anything, the same in both.
    expect(together.comparer.tables()).toEqual(apart.comparer.tables());
  }
  both((bench) => bench.comparer.audit());
  return pairs;
}

test("a pair does what the two records do one after the other", () => {
  let pairs = 0;
  const seeds = given("COLO_PAIRS_SEED") === undefined ? SEEDS : 1;
  for (let seed = firstSeed; seed < firstSeed + seeds; seed++) {
    try {
      pairs += run(seed);
    } catch (cause) {
      throw new Error(`Run it again with COLO_PAIRS_SEED=${seed}: ${(cause as Error).message}`, { cause });
    }
  }
  // It must have been what is tested, and often.
  if (seeds > 1) expect(pairs).toBeGreaterThan(20 * seeds);
}, 600_000);
