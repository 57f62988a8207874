/** The divergences of a comparison, with what the report says of each. */
import { type DivergenceClass, describeFlow } from "../compare/divergence.ts";
import { parseRecord } from "../compare/parse.ts";
import { ParsedFrame } from "../compare/parsed_frame.ts";
import type { SegmentPool } from "../compare/segment_pool.ts";
import type { CompareState } from "../compare/state.ts";
import type { Finding } from "./finding.ts";
import type { FrameWindow } from "./frame_window.ts";
import type { CaptureContext, CaptureDivergence, CapturePlace } from "./report.ts";
import type { StreamPair } from "./sequence_map.ts";

const CONTEXT_BYTES = 32;
const CONTEXT_BYTES_BEFORE = 16;

/** A frame's payload in its window, and where in it the difference is. */
interface Payload {
  readonly window: FrameWindow;
  readonly frame: number;
  readonly from: number;
  readonly to: number;
  /** `from` when the difference is not in the payload. */
  readonly at: number;
  readonly isInside: boolean;
}

export class DivergenceList {
  readonly shown: CaptureDivergence[] = [];
  total = 0;
  readonly #parsed = new ParsedFrame();

  readonly #state: CompareState;
  readonly #primary: FrameWindow;
  readonly #secondary: FrameWindow;
  readonly #limit: number;

  /** @param limit of those with details; all are counted */
  constructor(state: CompareState, primary: FrameWindow, secondary: FrameWindow, limit: number) {
    this.#state = state;
    this.#primary = primary;
    this.#secondary = secondary;
    this.#limit = limit;
  }

  /**
   * Counts a divergence; returns its entry unless there are enough of them. The flow's lists are still whole.
   */
  add(
    flow: number,
    why: DivergenceClass,
    finding: Finding,
    pair: StreamPair | null,
  ): CaptureDivergence | undefined {
    this.total++;
    if (this.shown.length >= this.#limit) return undefined;
    const state = this.#state;
    const { place, sequence } = finding;
    const primary = this.#payloadOf(this.#primary, state.primary, place.primary, place.primaryAt);
    const secondary = this.#payloadOf(this.#secondary, state.secondary, place.secondary, place.secondaryAt);
    const entry: CaptureDivergence = {
      class: why,
      flow: describeFlow(state.flows, flow),
      stream_offset: pair === null || sequence === undefined ? null : pair.streamOffset(sequence),
      detail: finding.detail,
      primary: placeOf(primary, sequence),
      secondary: placeOf(secondary, sequence === undefined ? undefined : sequence + (pair?.offset ?? 0)),
      context: contextOf(primary, secondary),
      // Those of the primary are counted when they are dropped.
      frames_not_compared: { primary: 0, secondary: state.flows.pending[flow] },
    };
    this.shown.push(entry);
    return entry;
  }

  #payloadOf(window: FrameWindow, pool: SegmentPool, item: number, at?: number): Payload | undefined {
    if (item < 0) return undefined;
    const parsed = this.#parsed;
    // What waits may be a part of the frame's payload: without its beginning, or one of several fragments.
    parseRecord(window.bytes, pool.record[item], parsed);
    const from = parsed.data;
    const to = from + parsed.dataBytes;
    const frame = window.numberOf(pool.slot[item]);
    return { window, frame, from, to, at: at ?? from, isInside: at !== undefined && at >= from && at < to };
  }
}

function placeOf(payload: Payload | undefined, sequence: number | undefined): CapturePlace | null {
  if (payload === undefined) return null;
  const { frame, from, at, isInside, window } = payload;
  return {
    frame,
    sequence: sequence === undefined ? null : sequence >>> 0,
    payload_offset: at - from,
    byte: isInside ? window.bytes[at] : null,
  };
}

function contextOf(primary: Payload | undefined, secondary: Payload | undefined): CaptureContext | null {
  const payloads = [primary, secondary].filter((payload) => payload !== undefined);
  const before = Math.min(CONTEXT_BYTES_BEFORE, ...payloads.map(({ at, from }) => at - from));
  const hex = (payload: Payload | undefined) => {
    if (payload === undefined) return null;
    const start = payload.at - before;
    const end = Math.min(payload.to, start + CONTEXT_BYTES);
    return Buffer.from(payload.window.bytes.subarray(start, end)).toString("hex");
  };
  const context = { before, primary: hex(primary), secondary: hex(secondary) };
  return context.primary || context.secondary ? context : null;
}
