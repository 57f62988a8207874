/**
 * What a comparer is made of and tied to: the record memories, the sink for its decisions, limits and times.
 */
import type { Divergence } from "./divergence.ts";
import type { FrameChange } from "./frame_change.ts";
import type { Rules } from "./rules.ts";

/** Where records are read from. A Ring of src/ffi/ring.ts satisfies it. */
export interface RecordMemory {
  readonly bytes: Uint8Array;
  readonly view: DataView;
  /** Address of bytes[0], for memcmp. */
  readonly address: number;
}

/**
 * Where the comparer's decisions go. The methods are called in the middle of it: they must not call it back.
 */
export interface ComparerSink {
  /**
   * The primary frame of this slot may be sent, in the order of these calls, those of permitPart() included.
   * With a change (valid during the call), only as that says.
   */
  permit(slot: number, change: FrameChange | null): void;
  /**
   * Some of the primary frame of this slot may be sent as `change` says; permit() for the rest comes later.
   */
  permitPart?(slot: number, change: FrameChange): void;
  /** The secondary record of this slot is not needed any more. */
  finish(slot: number): void;
  /** Asks for a checkpoint. */
  diverged(divergence: Divergence): void;
}

/** How many of each there may be at once. Passing one costs a checkpoint, never a frame. */
export interface ComparerLimits {
  /** Primary frames that are tracked; those beyond are held until the next checkpoint. Default 65 536. */
  heldFramesMax: number;
  /** Default 16 384. */
  heldFramesPerFlowMax: number;
  /** Secondary records that wait for their primary frame. Default 65 536. */
  pendingFramesMax: number;
  /** Default 16 384. */
  pendingFramesPerFlowMax: number;
  /** Default 65 536. */
  flowsMax: number;
}

export interface ComparerOptions {
  /** The ring of what the primary VM has sent. */
  primary: RecordMemory;
  /** The ring of what the secondary VM has sent. */
  secondary: RecordMemory;
  sink: ComparerSink;
  /** memcmp(3) on addresses; 0 when equal. */
  memcmp: (a: number, b: number, n: number) => number;
  /** A frame that has waited longer for its counterpart is a divergence. Default 200e6. */
  maxWaitNs?: number;
  /**
   * A TCP segment that has waited longer is sent as far as both sides agree on it, if the sink takes parts.
   * Default Infinity: never.
   */
  partAfterNs?: number;
  /**
   * When the primary has waited longer in one flow and the secondary in another, the VMs wait for each other:
   * a divergence, before maxWaitNs is over. Default Infinity: never.
   */
  crossedAfterNs?: number;
  /** Epoch of the secondary's records that are compared until the first checkpoint. Default 0. */
  epoch?: number;
  limits?: Partial<ComparerLimits>;
  /** What is taken out of the comparison. Default nothing. */
  rules?: Rules;
  /** Flows without traffic are forgotten after this time. Default 300e9. */
  idleNs?: number;
  /** ... and those that were closed after this one. Default 10e9. */
  closedIdleNs?: number;
  /** Seed of the flow table's hash, 32 bits. Default random. */
  seed?: number;
}

export const COMPARER_LIMITS: ComparerLimits = {
  heldFramesMax: 65_536,
  heldFramesPerFlowMax: 16_384,
  pendingFramesMax: 65_536,
  pendingFramesPerFlowMax: 16_384,
  flowsMax: 65_536,
};
