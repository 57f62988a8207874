/** Our comparer, fed step by step like QEMU's. */
import { Comparer, type Divergence } from "../../src/compare/comparer.ts";
import { memcmpOf, Records } from "../compare/harness.ts";
import type { FrameStep } from "./sequence.ts";

const LIMITS = {
  heldFramesMax: 256,
  heldFramesPerFlowMax: 256,
  pendingFramesMax: 256,
  pendingFramesPerFlowMax: 256,
  flowsMax: 16,
};

interface OurReaction {
  released: number[];
  divergences: Divergence[];
}

export class OurCompare {
  private static readonly primary = new Records(1 << 18, 0x7f00_0000_0000);
  private static readonly secondary = new Records(1 << 18, 0x7e00_0000_0000);
  private readonly comparer: Comparer;
  private reaction: OurReaction = { released: [], divergences: [] };
  private nowNs = 1e9;
  private epoch = 0;
  private slots = 0;
  private secondarySlots = 0;

  constructor() {
    const { primary, secondary } = OurCompare;
    primary.rewind();
    secondary.rewind();
    this.comparer = new Comparer({
      primary,
      secondary,
      memcmp: memcmpOf(primary, secondary),
      limits: LIMITS,
      seed: 1,
      sink: {
        permit: (slot) => this.reaction.released.push(slot),
        finish: () => {},
        diverged: (divergence) => this.reaction.divergences.push(divergence),
      },
    });
  }

  add(step: FrameStep): OurReaction {
    this.nowNs += 1000;
    if (step.side === "primary") {
      const offset = OurCompare.primary.put(step.frame, this.nowNs, 0);
      this.comparer.addPrimary(this.slots++, offset);
    } else {
      const offset = OurCompare.secondary.put(step.frame, this.nowNs, this.epoch);
      this.comparer.addSecondary(this.secondarySlots++, offset);
    }
    return this.take();
  }

  checkpoint(): OurReaction {
    this.nowNs += 1000;
    this.comparer.beginCheckpoint(this.nowNs);
    this.comparer.checkpoint(this.nowNs, ++this.epoch);
    return this.take();
  }

  private take(): OurReaction {
    const { reaction } = this;
    this.reaction = { released: [], divergences: [] };
    return reaction;
  }
}
