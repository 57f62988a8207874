/**
 * Segments that leave in parts or changed, which QEMU does not know: the same sequences, without QEMU, held
 * against the truth. Nothing may leave, in whatever form, that the secondary has not produced. What is
 * repeated may overtake what waits.
 */
import { expect, test } from "bun:test";
import { Comparer, type ComparerSink } from "../../src/compare/comparer.ts";
import { memcmpOf, Records } from "../compare/harness.ts";
import { count, given } from "../variables.ts";
import { Generator } from "./generator.ts";
import { describeSteps, FIN_VALUE, type Step, SYN_VALUE, type TcpContent } from "./sequence.ts";
import { isFrame, Truth } from "./truth.ts";

const single = given("COLO_DIFF_SEED") !== undefined;
const sequences = single ? 1 : count("COLO_DIFF_SEQUENCES");
const first = count(single ? "COLO_DIFF_SEED" : "COLO_DIFF_FIRST");

type Change = NonNullable<Parameters<ComparerSink["permit"]>[1]>;

const totals = { parts: 0, changed: 0, silent: 0 };
const primary = new Records(1 << 18, 0x7f00_0000_0000);
const secondary = new Records(1 << 18, 0x7e00_0000_0000);

function run(steps: readonly Step[]): void {
  primary.rewind();
  secondary.rewind();
  const truth = new Truth();
  /** Up to which place each held segment has been sent. */
  const sentTo = new Map<number, number>();
  const frames: Uint8Array[] = [];
  let atCheckpoint = false;
  let nowNs = 1e9;
  let epoch = 0;
  let secondarySlots = 0;

  const verify = (slot: number, change: Change, isWhole: boolean): void => {
    const content = truth.contentOf(slot) as TcpContent;
    const frame = Buffer.from(frames[slot]);
    const ip = frame.readUInt16BE(12) === 0x8100 ? 18 : 14;
    const transport = frame[ip] >> 4 === 4 ? ip + 20 : ip + 40;
    const isSyn = content.values[0] === SYN_VALUE;
    const place = content.from + ((change.sequence - frame.readUInt32BE(transport + 4)) | 0);
    const from = sentTo.get(slot) ?? content.from;
    const to = place + change.payloadBytes + (change.fin ? 1 : 0) + (isSyn ? 1 : 0);
    if (place !== from) throw new Error(`#${slot} goes on at place ${place}, it had come to ${from}`);
    if (isWhole && to !== content.to)
      throw new Error(`#${slot} ends at place ${to} instead of ${content.to}`);
    for (let i = 0; i < change.payloadBytes; i++) {
      const value = content.values[place - content.from + (isSyn ? 1 : 0) + i];
      if (primary.bytes[change.payload + i] !== value) throw new Error(`#${slot}: byte ${i} is not its own`);
    }
    if (change.fin && content.values.at(-1) !== FIN_VALUE) throw new Error(`#${slot} has no FIN`);
    const behind = (frame.readUInt32BE(transport + 8) - change.acknowledgement) | 0;
    const received = content.received === undefined ? undefined : content.received - behind;
    const reasons = atCheckpoint ? [] : truth.forbidden(slot, from, to, received);
    if (reasons.length > 0) throw new Error(`RULE 1: #${slot} sent [${from}, ${to}): ${reasons}`);
    sentTo.set(slot, to);
  };

  const comparer = new Comparer({
    primary,
    secondary,
    memcmp: memcmpOf(primary, secondary),
    limits: { heldFramesMax: 256, pendingFramesMax: 256, flowsMax: 16 },
    partAfterNs: 3000,
    seed: 1,
    sink: {
      permit: (slot, change) => {
        if (change !== null) {
          totals.changed++;
          if (change.silent) totals.silent++;
          else verify(slot, change, true);
          truth.forget(slot);
          return;
        }
        if (sentTo.has(slot)) throw new Error(`#${slot} is sent as a whole although a part of it has left`);
        if (atCheckpoint) return;
        const reasons = truth.released(slot).filter((reason) => reason !== "behind");
        if (reasons.length > 0) throw new Error(`RULE 1: #${slot} was released: ${reasons}`);
      },
      permitPart: (slot, change) => {
        totals.parts++;
        verify(slot, change, false);
      },
      finish: () => {},
      diverged: (divergence) => {
        if (!divergence.class.startsWith("missing")) diverged.push(divergence.class);
      },
    },
  });
  const diverged: string[] = [];
  for (const step of [...steps, { side: "checkpoint" } as const]) {
    nowNs += 1000;
    if (!isFrame(step)) {
      atCheckpoint = true;
      comparer.beginCheckpoint(nowNs);
      comparer.checkpoint(nowNs, ++epoch);
      truth.checkpoint();
      atCheckpoint = false;
    } else if (step.side === "primary") {
      truth.add(step, frames.length);
      frames.push(step.frame);
      comparer.addPrimary(frames.length - 1, primary.put(step.frame, nowNs, 0));
    } else {
      truth.add(step, -1);
      comparer.addSecondary(secondarySlots++, secondary.put(step.frame, nowNs, epoch));
    }
    comparer.expire(nowNs);
    if (diverged.length > 0 && isFrame(step)) truth.diverged(step.content.flow);
    diverged.length = 0;
  }
  expect(comparer.stats.heldFrames).toBe(0);
}

test("no part of a segment leaves that the secondary has not produced", () => {
  for (let seed = first; seed < first + sequences; seed++) {
    const generator = new Generator(seed);
    const steps = generator.run();
    try {
      run(steps);
    } catch (cause) {
      const message = `Run it again with COLO_DIFF_SEED=${seed} (${generator.features}):`;
      throw new Error(`${message}\n${(cause as Error).message}\n${describeSteps(steps)}`, { cause });
    }
  }
  if (given("COLO_DIFF_VERBOSE") !== undefined) console.log(totals);
  if (sequences < 2000) return;
  expect(totals.parts).toBeGreaterThan(sequences / 10);
  expect(totals.changed).toBeGreaterThan(sequences / 10);
}, 600_000);
