/**
 * Random connections as two machines would send them: other numbers, other segments, retransmissions, another
 * order, connections interleaved differently. Nothing must be reported; and one changed byte, or one missing
 * tail, exactly as such. A failure names its seed: COLO_CAPTURE_SEED=n runs that one alone.
 */
import { afterAll, expect, test } from "bun:test";
import { udp } from "../compare/frames.ts";
import { Random } from "../random.ts";
import { count, given } from "../variables.ts";
import { CaptureFolder } from "./capture_files.ts";
import { comparer } from "./comparison.ts";
import { Conversation, flipped, pattern } from "./conversation.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());
const compare = comparer(folder);

const SEEDS = 60;
const seeds =
  given("COLO_CAPTURE_SEED") === undefined
    ? Array.from({ length: SEEDS }, (_, i) => i + 1)
    : [count("COLO_CAPTURE_SEED")];

/** What is said on one connection, whoever sends it how. */
interface Talk {
  guestPort: number;
  clientPort: number;
  version: 4 | 6;
  turns: { byGuest: boolean; data: Uint8Array }[];
  closes: boolean;
}

function randomTalks(random: Random): Talk[] {
  return Array.from({ length: 1 + random.below(8) }, () => ({
    guestPort: 80 + random.below(2),
    // Few ports, so that some are used again.
    clientPort: 40_000 + random.below(4),
    version: random.chance(0.3) ? 6 : 4,
    turns: Array.from({ length: 1 + random.below(5) }, () => ({
      byGuest: random.chance(0.6),
      data: pattern(1 + random.below(6_000), random.below(1e9)),
    })),
    closes: random.chance(0.7),
  }));
}

/** One machine's frames of a connection. */
function framesOf(talk: Talk, random: Random): Uint8Array[] {
  const { guestPort, clientPort, version } = talk;
  // Apart enough from each other for a new connection on the same ports.
  const numbers = { guestIsn: random.below(2 ** 32), clientIsn: random.below(2 ** 32) };
  const conversation = new Conversation({ guestPort, clientPort, version, ...numbers }).open();
  for (const { byGuest, data } of talk.turns) {
    const segments: [number, number][] = [];
    for (let at = 0; at < data.length; ) {
      const to = Math.min(data.length, at + 1 + random.below(random.chance(0.2) ? 5_000 : 700));
      segments.push([at, to]);
      // Sent again, perhaps cut differently.
      if (random.chance(0.15)) segments.push([Math.max(0, at - random.below(300)), to]);
      at = to;
    }
    // Neighbours change places.
    for (let i = 1; i < segments.length; i++) {
      if (random.chance(0.15)) segments.splice(i - 1, 2, segments[i]!, segments[i - 1]!);
    }
    for (const [from, to] of segments) {
      const payload = data.subarray(from, to);
      if (byGuest)
        conversation.fromGuest({
          seq: (conversation.guestNext + from) >>> 0,
          ack: conversation.clientNext,
          payload,
        });
      else
        conversation.fromClient({
          seq: (conversation.clientNext + from) >>> 0,
          ack: conversation.guestNext,
          payload,
        });
    }
    if (byGuest) conversation.guestNext = (conversation.guestNext + data.length) >>> 0;
    else conversation.clientNext = (conversation.clientNext + data.length) >>> 0;
    for (let i = random.below(3); i >= 0; i--) conversation.acknowledge(byGuest ? "client" : "guest");
  }
  if (talk.closes) conversation.close();
  return conversation.frames;
}

const portsOf = (talk: Talk) => `${talk.version} ${talk.guestPort} ${talk.clientPort}`;

/** One machine's capture: its connections side by side, those on the same ports one after the other. */
function capture(talks: readonly Talk[], random: Random): Uint8Array[] {
  const lanes = new Map<string, Uint8Array[]>();
  for (const talk of talks) {
    const lane = lanes.get(portsOf(talk)) ?? [];
    lane.push(...framesOf(talk, random));
    lanes.set(portsOf(talk), lane);
  }
  lanes.set(
    "udp",
    Array.from({ length: 20 }, (_, n) => udp(pattern(30, n), { sourcePort: 53 })),
  );
  const rest = [...lanes.values()];
  const frames: Uint8Array[] = [];
  while (rest.length > 0) {
    const lane = random.below(rest.length);
    frames.push(...rest[lane]!.splice(0, 1 + random.below(12)));
    if (rest[lane]!.length === 0) rest.splice(lane, 1);
  }
  return frames;
}

test.each(seeds)("seed %d: nothing but the numbers and the segments differ", (seed) => {
  const talks = randomTalks(new Random(seed));
  const report = compare(capture(talks, new Random(seed * 3)), capture(talks, new Random(seed * 5 + 1)));
  expect(report.divergences).toEqual([]);
  const bytes = talks.flatMap((talk) => talk.turns).reduce((sum, { data }) => sum + data.length, 0);
  expect(report.compared_bytes).toBe(bytes + 20 * 30);
});

test.each(seeds)("seed %d: one changed byte is found where it is", (seed) => {
  const random = new Random(seed * 7);
  const talks = randomTalks(random);
  const changed = talks.map((talk) => ({ ...talk, turns: [...talk.turns] }));
  const talk = changed[random.below(changed.length)]!;
  const turn = random.below(talk.turns.length);
  const { byGuest, data } = talk.turns[turn]!;
  const at = random.below(data.length);
  talk.turns[turn] = { byGuest, data: flipped(data, at) };
  const before = talk.turns.slice(0, turn).filter((one) => one.byGuest === byGuest);
  const report = compare(capture(talks, new Random(seed)), capture(changed, new Random(seed + 1e6)));
  expect(report.divergences).toMatchObject([
    {
      class: "payload",
      stream_offset: before.reduce((sum, one) => sum + one.data.length, at),
      primary: { byte: data[at]! },
      secondary: { byte: data[at]! ^ 0x20 },
    },
  ]);
  const ports = byGuest ? [talk.guestPort, talk.clientPort] : [talk.clientPort, talk.guestPort];
  expect(report.divergences[0]?.flow).toMatch(new RegExp(`^tcp \\S+:${ports[0]} > \\S+:${ports[1]}$`));
});

test.each(seeds)("seed %d: what the secondary has not said is missing from there on", (seed) => {
  const random = new Random(seed * 11);
  const talks = randomTalks(random).filter((talk, i, all) => {
    return all.findIndex((other) => portsOf(other) === portsOf(talk)) === i;
  });
  const talk = talks[0]!;
  const said = pattern(500, seed);
  const short = { ...talk, closes: false, turns: [...talk.turns] };
  const long = { ...short, turns: [...short.turns, { byGuest: true, data: said }] };
  const rest = talks.slice(1);
  const report = compare(
    capture([long, ...rest], new Random(seed)),
    capture([short, ...rest], new Random(seed + 1)),
  );
  const offset = talk.turns.filter((turn) => turn.byGuest).reduce((sum, turn) => sum + turn.data.length, 0);
  // The client's acknowledgement of it is missing as well.
  expect(report.divergences.map((d) => d.class)).toEqual(["missing_on_secondary", "missing_on_secondary"]);
  expect(report.divergences).toContainEqual(
    expect.objectContaining({
      stream_offset: offset,
      secondary: null,
      context: {
        before: 0,
        primary: expect.stringMatching(new RegExp(`^${Buffer.from(said.subarray(0, 1)).toString("hex")}`)),
        secondary: null,
      },
    }),
  );
});
