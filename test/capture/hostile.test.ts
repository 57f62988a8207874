/**
 * Frames with bytes changed at random, dropped, repeated and moved: whatever is in a capture, it is the same
 * as itself, every frame is accounted for, and nothing but a report comes of it. COLO_CAPTURE_SEED=n runs one
 * seed alone.
 */
import { afterAll, expect, test } from "bun:test";
import { icmp, udp } from "../compare/frames.ts";
import { count, given } from "../variables.ts";
import { CaptureFolder } from "./capture_files.ts";
import { comparer } from "./comparison.ts";
import { Conversation, pattern } from "./conversation.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());
const compare = comparer(folder);

const SEEDS = 60;
const seeds =
  given("COLO_CAPTURE_SEED") === undefined
    ? Array.from({ length: SEEDS }, (_, i) => i + 1)
    : [count("COLO_CAPTURE_SEED")];

/** Random numbers below n. */
function randomOf(seed: number): (n: number) => number {
  let state = Math.imul(seed, 0x9e3779b1) | 1;
  return (n) => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
}

/** From a frame's IP addresses to the end of TCP's acknowledgement number. */
function numbersOf(frame: Uint8Array): [number, number] {
  const ip = frame[12] === 0x81 ? 18 : 14;
  return frame[ip]! >>> 4 === 6 ? [ip + 8, ip + 52] : [ip + 12, ip + 32];
}

function hostileFrames(seed: number, keepNumbers = false): Uint8Array[] {
  const random = randomOf(seed);
  const frames: Uint8Array[] = [];
  for (let i = 0; i < 1 + random(6); i++) {
    const conversation = new Conversation({
      guestIsn: random(2 ** 32),
      clientIsn: random(2 ** 32),
      clientPort: 40_000 + random(2),
      segmentBytes: 1 + random(300),
      version: random(3) === 0 ? 6 : 4,
      ...(random(4) === 0 ? { vlans: [random(3)] } : {}),
    });
    conversation
      .open()
      .client(pattern(1 + random(500), i))
      .guest(pattern(1 + random(3_000), i))
      .close();
    frames.push(...conversation.frames, udp(pattern(random(50), i)), icmp(pattern(random(50), i)));
  }
  for (let i = random(frames.length); i >= 0; i--) {
    const at = random(frames.length);
    const frame = frames[at]!;
    switch (random(6)) {
      case 0:
        frames.splice(at, 1);
        break;
      case 1:
        frames.splice(Math.max(0, at + random(13) - 6), 0, frame);
        break;
      case 2:
        frames[at] = frame.subarray(0, random(frame.length));
        break;
      default: {
        const copy = frame.slice();
        for (let n = random(3); n >= 0; n--) {
          // Mostly in the headers.
          const where = random(random(2) === 0 ? copy.length : Math.min(80, copy.length));
          const [from, to] = numbersOf(frame);
          const kept = keepNumbers && where >= from && where < to;
          if (!kept) copy[where] = random(256);
        }
        frames[at] = copy;
      }
    }
    if (frames.length === 0) frames.push(udp("left"));
  }
  return frames;
}

test.each(seeds)("seed %d: a capture is the same as itself", (seed) => {
  // Not where the numbers of several connections are mixed: there is no highest acknowledgement, and one
  // place has several bytes.
  const frames = hostileFrames(seed, true);
  expect(compare(frames, frames).divergences).toEqual([]);
});

test.each(seeds)("seed %d: any two captures end in a report", (seed) => {
  const primary = hostileFrames(seed);
  for (const options of [{}, { windowMib: 1 }, { guests: ["198.18.0.2"] }]) {
    const report = compare(primary, hostileFrames(seed + 1_000_000), options);
    expect(report.same).toBe(false);
  }
});
