/** Runs a sequence through both comparers and accounts for every step at which they disagree. */
import type { Divergence } from "../../src/compare/comparer.ts";
import {
  type DifferenceName,
  type Discrepancy,
  describeDiscrepancy,
  explain,
  type QemuView,
} from "./differences.ts";
import { OurCompare } from "./our_compare.ts";
import type { QemuCompare, Reaction } from "./qemu_compare.ts";
import { type Prediction, QemuRules, type Release } from "./qemu_rules.ts";
import { describeSteps, type Step } from "./sequence.ts";
import { isFrame, Truth } from "./truth.ts";

/**
 * What one of the comparers did, without the checkpoints unless it says so. Slots count the primary's
 * frames from 0.
 */
interface Verdicts<Asked> {
  released: number[];
  releasedByCheckpoints: number[];
  asked: Asked[];
}

export interface Comparison {
  steps: number;
  /** For each time that QEMU asked, the frame concerned. */
  qemu: Verdicts<number>;
  /** For each time that our comparer asked, the class of divergence. */
  ours: Verdicts<string>;
  /** How often each documented difference was seen. */
  differences: Map<DifferenceName, number>;
  /** Frames released by both in the same step without a checkpoint. */
  releasedTogether: number;
  /** Steps at which both asked for a checkpoint for the first time since the last one. */
  askedTogether: number;
  /** QEMU has compared bytes behind the end of its buffer; the rest of the sequence was left out. */
  unpredictable: boolean;
}

/** Something that no documented difference explains, or that is wrong in itself. */
class Unexplained extends Error {}

export async function runSideBySide(steps: readonly Step[], qemu: QemuCompare): Promise<Comparison> {
  const run = new Run(steps, qemu);
  try {
    return await run.run();
  } catch (error) {
    if (!(error instanceof Unexplained)) throw error;
    throw new Unexplained(`${error.message}\n${describeSteps(steps)}`);
  } finally {
    // The next sequence finds empty queues, whatever happened.
    await qemu.checkpoint().catch(() => {});
  }
}

class Run {
  private readonly ours = new OurCompare();
  private readonly rules = new QemuRules();
  private readonly truth = new Truth();
  private readonly frames: Uint8Array[] = [];
  private readonly releasedByQemu = new Map<number, Release>();
  private readonly releasedByUs = new Set<number>();
  private readonly outstanding = new Map<string, number[]>();
  /** Flows for which a checkpoint was requested since the last one. */
  private readonly askedByQemu = new Set<number>();
  private readonly result: Comparison = {
    steps: 0,
    qemu: { released: [], releasedByCheckpoints: [], asked: [] },
    ours: { released: [], releasedByCheckpoints: [], asked: [] },
    differences: new Map(),
    releasedTogether: 0,
    askedTogether: 0,
    unpredictable: false,
  };

  constructor(
    private readonly steps: readonly Step[],
    private readonly qemu: QemuCompare,
  ) {}

  async run(): Promise<Comparison> {
    for (const [at, step] of this.steps.entries()) {
      try {
        await this.step(step);
      } catch (error) {
        if (error instanceof Unexplained) throw new Unexplained(`step ${at}: ${error.message}`);
        throw error;
      }
      this.result.steps++;
      if (this.rules.unpredictable) {
        this.result.unpredictable = true;
        return this.result;
      }
    }
    await this.step({ side: "checkpoint" });
    for (let slot = 0; slot < this.frames.length; slot++) {
      if (!this.releasedByUs.has(slot)) throw new Unexplained(`our comparer never released #${slot}`);
      if (!this.releasedByQemu.has(slot)) throw new Unexplained(`QEMU never released #${slot}`);
    }
    return this.result;
  }

  private async step(step: Step): Promise<void> {
    const slot = isFrame(step) && step.side === "primary" ? this.addFrame(step.frame) : -1;
    let reaction: Reaction;
    let prediction: Prediction;
    let ours: { released: number[]; divergences: Divergence[] };
    if (isFrame(step)) {
      prediction = this.rules.add(step, slot);
      reaction = await (step.side === "primary"
        ? this.qemu.addPrimary(step.frame)
        : this.qemu.addSecondary(step.frame));
      this.truth.add(step, slot);
      ours = this.ours.add(step);
    } else {
      prediction = this.rules.checkpoint();
      reaction = await this.qemu.checkpoint();
      ours = this.ours.checkpoint();
    }
    const flow = isFrame(step) ? step.content.flow : -1;
    if (isFrame(step)) this.checkOurs(flow, ours);
    else this.truth.checkpoint();
    for (const released of ours.released) this.releasedByUs.add(released);

    const qemuOrder = this.checkPrediction(reaction, prediction);
    if (this.rules.unpredictable) return;
    this.note(!isFrame(step), qemuOrder, prediction, ours);
    this.truth.divergingNow = ours.divergences.length > 0 ? flow : -1;
    this.compareReleases(prediction, ours.released);
    this.compareOrder(ours.released, qemuOrder, !isFrame(step));
    if (isFrame(step)) this.compareAsks(flow, prediction, ours.divergences);
    else this.askedByQemu.clear();
  }

  private note(
    atCheckpoint: boolean,
    qemuOrder: number[],
    prediction: Prediction,
    ours: { released: number[]; divergences: Divergence[] },
  ): void {
    const { result } = this;
    const where = atCheckpoint ? "releasedByCheckpoints" : "released";
    result.qemu[where].push(...qemuOrder);
    result.ours[where].push(...ours.released);
    result.qemu.asked.push(...prediction.asked.map((ask) => ask.slot));
    result.ours.asked.push(...ours.divergences.map((divergence) => divergence.class));
  }

  private addFrame(frame: Uint8Array): number {
    const slot = this.frames.length;
    this.frames.push(frame);
    const key = keyOf(frame);
    const slots = this.outstanding.get(key);
    if (slots === undefined) this.outstanding.set(key, [slot]);
    else slots.push(slot);
    return slot;
  }

  /** Holds QEMU to its rules; returns the slots it released, in order. */
  private checkPrediction(reaction: Reaction, prediction: Prediction): number[] {
    const expected = prediction.released.map((release) => release.slot);
    // Frames with the same bytes cannot be told apart, so they are given out as the rules say.
    const actual = reaction.released.map((frame) => {
      const slots = this.outstanding.get(keyOf(frame)) ?? [];
      if (slots.length === 0) {
        throw new Unexplained(
          `QEMU released a frame that nobody sent: ${Buffer.from(frame).toString("hex")}`,
        );
      }
      const wanted = slots.findIndex((slot) => expected.includes(slot));
      const [slot] = slots.splice(Math.max(wanted, 0), 1);
      return slot;
    });
    const asked = prediction.asked.length;
    if (this.rules.unpredictable) return actual;
    if (JSON.stringify(actual) !== JSON.stringify(expected) || reaction.asked !== asked) {
      throw new Unexplained(
        `QEMU released [${actual}] and asked ${reaction.asked} times; ` +
          `its rules say [${expected}] and ${asked}`,
      );
    }
    for (const release of prediction.released) this.releasedByQemu.set(release.slot, release);
    return actual;
  }

  /** Holds our comparer to the truth. */
  private checkOurs(flow: number, ours: { released: number[]; divergences: Divergence[] }): void {
    const { truth } = this;
    for (const slot of ours.released) {
      const reasons = truth.released(slot);
      if (reasons.length > 0) throw new Unexplained(`RULE 1: our comparer released #${slot}: ${reasons}`);
    }
    const difference = truth.isDiverged(flow) ? undefined : truth.difference(flow);
    const says = ours.divergences.map((divergence) => `${divergence.class}: ${divergence.detail}`).join("; ");
    if (ours.divergences.length > 0 && difference === undefined) {
      throw new Unexplained(`our comparer sees a divergence where there is none: ${says}`);
    }
    if (ours.divergences.length === 0 && difference !== undefined && !truth.isUncertain(flow)) {
      throw new Unexplained(`our comparer does not see that #${difference} differs`);
    }
    if (ours.divergences.length > 1) throw new Unexplained(`our comparer reports more than once: ${says}`);
  }

  private compareReleases(prediction: Prediction, ours: number[]): void {
    const { truth } = this;
    const byUs = new Set(ours);
    for (const release of prediction.released) {
      const { slot } = release;
      if (byUs.has(slot) && release.rule !== "checkpoint") this.result.releasedTogether++;
      if (this.releasedByUs.has(slot)) continue;
      const reasons = truth.whyHeld(slot);
      const content = truth.contentOf(slot);
      this.account(content.flow, { kind: "qemu_released", slot, content, release, reasons });
    }
    for (const slot of ours) {
      if (this.releasedByQemu.has(slot)) continue;
      const covered = truth.isCovered(slot);
      this.account(truth.flowOf(slot), { kind: "we_released", slot, qemu: this.viewOf(slot), covered });
    }
  }

  private compareOrder(ours: number[], qemu: number[], atCheckpoint: boolean): void {
    const { truth } = this;
    const place = new Map(qemu.map((slot, at) => [slot, at]));
    const common = ours.filter((slot) => place.has(slot));
    for (const [i, first] of common.entries()) {
      for (const second of common.slice(i + 1)) {
        if (place.get(first)! < place.get(second)!) continue;
        const contents = { first: truth.contentOf(first), second: truth.contentOf(second) };
        this.account(contents.first.flow, { kind: "order", ...contents, atCheckpoint });
      }
    }
  }

  private compareAsks(flow: number, prediction: Prediction, divergences: Divergence[]): void {
    const { truth, askedByQemu } = this;
    const weHadAsked = truth.isDiverged(flow);
    const [divergence] = divergences;
    const [ask] = prediction.asked;
    const firstOfQemu = ask !== undefined && !askedByQemu.has(flow);
    if (divergence !== undefined && firstOfQemu) this.result.askedTogether++;
    if (divergence !== undefined && ask === undefined && !askedByQemu.has(flow)) {
      const slots = truth.difference(flow) ?? [];
      this.account(flow, {
        kind: "we_asked",
        divergence,
        views: slots.map((slot) => this.viewOf(slot)),
        sentElsewhere: slots.some((slot) => truth.isSentElsewhere(slot)),
      });
    }
    if (divergence !== undefined) truth.diverged(flow);
    if (firstOfQemu && !weHadAsked && divergence === undefined) {
      const { slot } = ask;
      const reasons = truth.whyHeld(slot);
      this.account(flow, { kind: "qemu_asked", ask, content: truth.contentOf(slot), reasons });
    }
    if (ask !== undefined) askedByQemu.add(flow);
    for (const slot of truth.heldOf(flow)) {
      if (truth.whyHeld(slot).size === 0)
        throw new Unexplained(`our comparer holds #${slot} without a reason`);
    }
  }

  private viewOf(slot: number): QemuView {
    const wait = this.rules.waitOf(slot);
    return {
      content: this.truth.contentOf(slot),
      release: this.releasedByQemu.get(slot),
      wait,
      askReasons: wait?.why === "asked" ? this.truth.whyHeld(wait.ask.slot) : new Set(),
      lost: this.rules.lostOf(slot),
    };
  }

  private account(flow: number, discrepancy: Discrepancy): void {
    const names = explain(discrepancy, this.truth.hasFragments(flow));
    if (names.length === 0) {
      throw new Unexplained(`no documented difference explains ${describeDiscrepancy(discrepancy)}`);
    }
    const { differences } = this.result;
    for (const name of names) differences.set(name, (differences.get(name) ?? 0) + 1);
  }
}

function keyOf(frame: Uint8Array): string {
  return Buffer.from(frame).toString("latin1");
}
