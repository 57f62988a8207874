import { expect, test } from "bun:test";
import { Random } from "../random.ts";
import { count, given, seedOf } from "../variables.ts";
import { episode, FrameMaker, mutate } from "./fuzz.ts";
import { parseAtEnd } from "./harness.ts";

/** COLO_FUZZ_SEED=n starts there and runs that seed alone, unless COLO_FUZZ_SECONDS gives a time. */
const seconds = count("COLO_FUZZ_SECONDS");
const firstSeed = seedOf("COLO_FUZZ_SEED");
const single = given("COLO_FUZZ_SEED") !== undefined && given("COLO_FUZZ_SECONDS") === undefined;

const STEPS = 300;

/** Runs one seed after the other for a share of the time, at least `least` of them. */
function forSeeds(share: number, least: number, run: (seed: number) => void): number {
  const until = performance.now() + seconds * 1000 * share;
  let runs = 0;
  while (runs < (single ? 1 : least) || (!single && performance.now() < until)) {
    const seed = firstSeed + runs++;
    try {
      run(seed);
    } catch (cause) {
      const again = `Run it again with COLO_FUZZ_SEED=${seed}`;
      throw new Error(`${again}: ${(cause as Error).message}`, { cause });
    }
  }
  return runs;
}

test("the parser reads nothing outside of a damaged frame", () => {
  const kinds = new Set<number>();
  forSeeds(0.2, 20, (seed) => {
    const random = new Random(seed);
    const maker = new FrameMaker(random);
    for (let i = 0; i < 50; i++) {
      const [frame, other = frame] = maker.make();
      kinds.add(parseAtEnd(frame).kind);
      const damaged = mutate(frame, other, random);
      kinds.add(parseAtEnd(damaged).kind);
      // As the first fragment of a datagram that has at least as many bytes.
      parseAtEnd(damaged, damaged.length + random.below(65_536));
      parseAtEnd(maker.noise(random.below(100)));
    }
  });
  if (!single) expect([...kinds].toSorted()).toEqual([1, 2, 3, 4, 5]);
}, 3_600_000);

test("the comparer stays whole whatever comes, and gives back every record once", () => {
  let frames = 0;
  let released = 0;
  const classes = new Set<string>();
  const episodes = forSeeds(0.8, 20, (seed) => {
    const result = episode(seed, STEPS);
    frames += result.frames;
    released += result.released;
    for (const name of result.classes) classes.add(name);
  });
  if (single) return;
  // It must have been where it hurts.
  expect(frames).toBeGreaterThan(100 * episodes);
  expect(released).toBeGreaterThan(20 * episodes);
  for (const name of ["payload", "length", "missing_on_secondary", "missing_on_primary", "overflow"]) {
    expect([...classes]).toContain(name);
  }
}, 3_600_000);
