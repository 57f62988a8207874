/**
 * The comparer of the live path without its clock: the same flows, the same comparison of streams, datagrams
 * and fragments (src/compare/), but no epochs, no checkpoints and no time limit. A frame waits for its
 * counterpart until the caller says that it has waited enough; a flow that has diverged is dropped, and the
 * others go on.
 *
 * What has been compared is given back to the windows, so that they bound what is kept.
 */
import { DatagramFlows } from "../compare/datagram.ts";
import type { DivergenceClass } from "../compare/divergence.ts";
import { KEY_KIND, KIND_TCP } from "../compare/flow_key.ts";
import {
  FLOW_FRAGMENTS,
  FLOW_FROZEN,
  FLOW_IGNORED_SET_KNOWN,
  FLOW_PASSTHROUGH,
  FLOW_TCP,
  FLOW_VERIFIED_KNOWN,
} from "../compare/flow_table.ts";
import { FragmentFlows, isWaitingRoom } from "../compare/fragments.ts";
import type { ParsedFrame } from "../compare/parsed_frame.ts";
import { rowOf } from "../compare/rows.ts";
import type { Rules } from "../compare/rules.ts";
import { CompareState, type DivergencePlace } from "../compare/state.ts";
import { TcpFlows } from "../compare/tcp.ts";
import { memcmp } from "../ffi/libc.ts";
import { DivergenceList } from "./divergence_list.ts";
import { differenceOf, type Finding, lackOf } from "./finding.ts";
import type { FrameWindow } from "./frame_window.ts";
import type { CaptureDivergence } from "./report.ts";
import type { StreamPair } from "./sequence_map.ts";

/**
 * Bits 18 to 23 of a TCP key's first word are free: connections that follow each other on the same ports are
 * flows of their own.
 */
const KEY_PAIR_SHIFT = 18;
const KEY_PAIRS = 63;
/** Resets that answer a segment for which there is no connection. */
const KEY_LONE_RESETS = 63;

type SideName = "primary" | "secondary";

const SEEN_ON = { primary: 1, secondary: 2 } as const;

/** CompareState that tells of a divergence while the flow's lists still hold the frames concerned. */
class CaptureState extends CompareState {
  beforeDivergence: (flow: number, why: DivergenceClass, detail: string, place?: DivergencePlace) => void =
    () => {};

  override diverge(
    flow: number,
    why: DivergenceClass,
    detail: string,
    streamOffset?: number,
    place?: DivergencePlace,
  ): void {
    if ((this.flows.flags[flow] & FLOW_FROZEN) !== 0) return;
    this.beforeDivergence(flow, why, detail, place);
    super.diverge(flow, why, detail, streamOffset, place);
  }

  /** diverge() for what has been told of already. */
  freeze(flow: number, why: DivergenceClass, detail: string): void {
    super.diverge(flow, why, detail);
  }
}

/** What the comparer asks of its caller. */
interface CaptureComparerHost {
  /** A slot of a window is free again. */
  done(side: SideName, slot: number): void;
  /**
   * A TCP segment was put together from fragments: which connection it belongs to. The secondary's is given
   * the primary's numbers.
   */
  locate(side: SideName, frame: ParsedFrame): StreamPair | null;
}

interface CaptureComparerOptions {
  primary: FrameWindow;
  secondary: FrameWindow;
  rules: Rules;
  /** Divergences that are kept with their details; all are counted. */
  limit: number;
  host: CaptureComparerHost;
}

/** Frames of one side, but for the flows. */
export interface SideCounts {
  flows: number;
  /** Have a counterpart. */
  compared: number;
  /** Of flows with a divergence. */
  notCompared: number;
  /** Taken out by a passthrough rule. */
  ignored: number;
}

export class CaptureComparer {
  readonly divergences: DivergenceList;
  gapBytes = 0;
  readonly #state: CaptureState;
  readonly #tcp: TcpFlows;
  readonly #datagrams: DatagramFlows;
  readonly #fragments: FragmentFlows;
  readonly #rules: Rules;
  readonly #host: CaptureComparerHost;
  /** Flows; frames that came too late for their flow, and frames that a rule takes out. */
  readonly #flowsSeen = { primary: 0, secondary: 0 };
  readonly #skipped = { primary: 0, secondary: 0 };
  readonly #passed = { primary: 0, secondary: 0 };
  /** By slot: whether its frame waits here. */
  readonly #primaryWaits: Uint8Array;
  readonly #secondaryWaits: Uint8Array;
  /** By the flow's row. */
  readonly #pairs: (StreamPair | null)[] = [];
  readonly #entries: (CaptureDivergence | undefined)[] = [];
  readonly #seen: Uint8Array;
  /** For connections whose flow may be forgotten. */
  readonly #pairEntries = new WeakMap<StreamPair, CaptureDivergence>();
  /** Side of the frame that is being added, and the flows that it has touched. */
  #side: SideName = "primary";
  readonly #touched: number[] = [];

  constructor(options: CaptureComparerOptions) {
    const { primary, secondary, rules, host } = options;
    this.#rules = rules;
    this.#host = host;
    this.#primaryWaits = new Uint8Array(primary.framesMax);
    this.#secondaryWaits = new Uint8Array(secondary.framesMax);
    // Every flow that cannot be forgotten has a frame in a window; one more is being looked at.
    const flowsMax = primary.framesMax + secondary.framesMax + 2;
    this.#seen = new Uint8Array(flowsMax);
    this.#state = new CaptureState({
      primary,
      secondary,
      rules,
      memcmp,
      seed: (Math.random() * 2 ** 32) | 0,
      limits: {
        heldFramesMax: primary.framesMax,
        heldFramesPerFlowMax: primary.framesMax,
        pendingFramesMax: secondary.framesMax,
        pendingFramesPerFlowMax: secondary.framesMax,
        flowsMax,
      },
      sink: {
        permit: (slot) => {
          this.#primaryWaits[slot] = 0;
          host.done("primary", slot);
        },
        finish: (slot) => {
          this.#secondaryWaits[slot] = 0;
          host.done("secondary", slot);
        },
        diverged: () => {},
      },
    });
    this.divergences = new DivergenceList(this.#state, primary, secondary, options.limit);
    this.#state.beforeDivergence = (flow, why, detail, place) => {
      this.#report(flow, why, differenceOf(this.#state, flow, detail, place));
      this.#touched.push(flow);
    };
    this.#tcp = new TcpFlows(this.#state);
    this.#datagrams = new DatagramFlows(this.#state);
    this.#fragments = new FragmentFlows(this.#state, this.#tcp, this.#datagrams, (frame) =>
      this.#flowOfWhole(frame),
    );
  }

  get comparedBytes(): number {
    return this.#state.stats.comparedBytes;
  }

  get primaryCounts(): SideCounts {
    const { releasedByComparison, releasedPassthrough } = this.#state.stats;
    return {
      flows: this.#flowsSeen.primary,
      compared: releasedByComparison,
      notCompared: this.#skipped.primary,
      ignored: this.#passed.primary + releasedPassthrough,
    };
  }

  get secondaryCounts(): SideCounts {
    const { finishedFrames, discardedFrames } = this.#state.stats;
    return {
      flows: this.#flowsSeen.secondary,
      compared: finishedFrames - discardedFrames,
      notCompared: this.#skipped.secondary + discardedFrames,
      ignored: this.#passed.secondary,
    };
  }

  /**
   * A frame of the primary's window. `pair` says which connection, for TCP; null for a lone reset and for
   * everything else.
   */
  addPrimary(slot: number, frame: ParsedFrame, pair: StreamPair | null): void {
    const state = this.#state;
    const flow = this.#admit("primary", slot, frame, pair);
    if (flow < 0) return;
    state.stats.primaryAdded++;
    state.stats.heldFrames++;
    const segment = state.hold(flow, slot, frame);
    if (segment < 0) throw new Error("the comparer's pool is smaller than the primary's window");
    this.#primaryWaits[slot] = 1;
    if (frame.kind === KIND_TCP) this.#tcp.primaryAdded(flow, segment);
    else if ((state.flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.#fragments.primaryAdded(flow, segment);
    else this.#datagrams.run(flow);
    this.#dropDiverged();
  }

  /** A frame of the secondary's window, in the primary's TCP numbers. */
  addSecondary(slot: number, frame: ParsedFrame, pair: StreamPair | null): void {
    const state = this.#state;
    const flow = this.#admit("secondary", slot, frame, pair);
    if (flow < 0) return;
    state.stats.secondaryAdded++;
    state.stats.pendingFrames++;
    this.#secondaryWaits[slot] = 1;
    let hasRoom = true;
    if (frame.kind === KIND_TCP) {
      hasRoom = this.#tcp.secondaryAdded(flow, slot, frame);
    } else {
      const segment = state.wait(flow, slot, frame);
      hasRoom = segment >= 0;
      if (hasRoom) {
        state.secondaryQueue.push(flow, segment);
        if ((state.flows.flags[flow] & FLOW_FRAGMENTS) !== 0) this.#fragments.secondaryAdded(flow, segment);
        else this.#datagrams.run(flow);
      }
    }
    if (!hasRoom) throw new Error("the comparer's pool is smaller than the secondary's window");
    this.#dropDiverged();
  }

  /** Whether the frame was handed over and still waits here. Only for slots in use. */
  isWaiting(side: SideName, slot: number): boolean {
    return (side === "primary" ? this.#primaryWaits : this.#secondaryWaits)[slot] === 1;
  }

  /**
   * The flow that this frame waits in has waited enough: if both captures lack the same bytes, they are
   * passed over, else it is reported and dropped.
   * @param ended which captures have been read to their end
   * @param window what to say of the window when more could have come
   */
  giveUp(side: SideName, slot: number, ended: Record<SideName, boolean>, window: string): void {
    const state = this.#state;
    const [age, pool] =
      side === "primary" ? [state.primaryAge, state.primary] : [state.secondaryAge, state.secondary];
    let item = age.head[0];
    while (pool.slot[item] !== slot) item = age.next[item];
    this.#settle(pool.flow[item], ended, window);
  }

  /** Both captures have been read: what is left has no counterpart. */
  finish(): void {
    const { primaryAge, secondaryAge, primary, secondary } = this.#state;
    const ended = { primary: true, secondary: true };
    for (let item = primaryAge.head[0]; item >= 0; item = primaryAge.head[0]) {
      this.#settle(primary.flow[item], ended, "");
    }
    for (let item = secondaryAge.head[0]; item >= 0; item = secondaryAge.head[0]) {
      this.#settle(secondary.flow[item], ended, "");
    }
  }

  #settle(flow: number, ended: Record<SideName, boolean>, window: string): void {
    if (!this.#crossGap(flow)) {
      const finding = lackOf(this.#state, flow);
      const onSecondary = finding.place.primary >= 0;
      const isFinal = onSecondary ? ended.secondary : ended.primary;
      const missing = onSecondary ? "missing_on_secondary" : "missing_on_primary";
      const why = isFinal ? missing : "overflow";
      const detail = isFinal ? finding.detail : `${window}: ${finding.detail}`;
      this.#report(flow, why, { ...finding, detail });
      this.#state.freeze(flow, why, detail);
      this.#touched.push(flow);
    }
    this.#dropDiverged();
  }

  /** The frame's flow; -1 if the frame is not compared, which is counted, and its slot given back. */
  #admit(side: SideName, slot: number, frame: ParsedFrame, pair: StreamPair | null): number {
    const state = this.#state;
    this.#side = side;
    state.nowNs = frame.timeNs;
    if (pair?.diverged) {
      this.#skip(side, this.#pairEntries.get(pair));
      this.#host.done(side, slot);
      return -1;
    }
    const flow = this.#flowOf(frame, pair);
    const flags = state.flows.flags[flow];
    if ((flags & (FLOW_FROZEN | FLOW_PASSTHROUGH)) === 0) return flow;
    if ((flags & FLOW_PASSTHROUGH) !== 0) this.#passed[side]++;
    else this.#skip(side, this.#entries[rowOf(flow)]);
    this.#host.done(side, slot);
    return -1;
  }

  /** The flow of a frame, made if need be. */
  #flowOf(frame: ParsedFrame, pair: StreamPair | null): number {
    const state = this.#state;
    const seen = this.#seen;
    const side = this.#side;
    const { flows } = state;
    if (frame.kind === KIND_TCP) {
      const index = pair === null ? KEY_LONE_RESETS : pair.index % KEY_PAIRS;
      frame.key[KEY_KIND] |= index << KEY_PAIR_SHIFT;
    }
    let flow = flows.find(frame.key);
    if (flow >= 0 && this.#pairs[rowOf(flow)] !== pair && flows.isQuiet(flow)) {
      // A connection long before on the same ports.
      flows.remove(flow);
      flow = -1;
    }
    if (flow < 0) flow = this.#newFlow(frame, pair);
    flows.lastSeenNs[flow] = state.nowNs;
    // Fragments count where their datagram does.
    if ((seen[rowOf(flow)] & SEEN_ON[side]) === 0 && (flows.flags[flow] & FLOW_FRAGMENTS) === 0) {
      seen[rowOf(flow)] |= SEEN_ON[side];
      this.#flowsSeen[side]++;
    }
    return flow;
  }

  /** The flow of a datagram that was put together, or of fragments that can only be compared as they are. */
  #flowOfWhole(frame: ParsedFrame): number {
    const pair = frame.kind === KIND_TCP ? this.#host.locate(this.#side, frame) : null;
    const flow = this.#flowOf(frame, pair);
    if (pair?.diverged) this.#state.flows.flags[flow] |= FLOW_FROZEN;
    else if (this.#side === "primary") pair?.noteFed(frame.end);
    this.#touched.push(flow);
    return flow;
  }

  #newFlow(frame: ParsedFrame, pair: StreamPair | null): number {
    const state = this.#state;
    const rules = this.#rules;
    const { flows } = state;
    const kind = frame.kind === KIND_TCP ? FLOW_TCP : isWaitingRoom(frame.key) ? FLOW_FRAGMENTS : 0;
    let flow = flows.add(frame.key, kind, state.nowNs);
    if (flow < 0) {
      // Quiet flows have no frame in a window, so that at least one goes.
      const idle = flows.collect(flows.capacity, state.nowNs, flows.capacity, flows.capacity);
      if (idle < flows.capacity / 8) flows.collect(flows.capacity, state.nowNs, 0, 0);
      flow = flows.add(frame.key, kind, state.nowNs);
      if (flow < 0) throw new Error("the flow table is smaller than the windows");
    }
    this.#pairs[rowOf(flow)] = pair;
    this.#entries[rowOf(flow)] = undefined;
    this.#seen[rowOf(flow)] = 0;
    if (rules.passes(frame.key)) flows.flags[flow] |= FLOW_PASSTHROUGH;
    flows.ignoredSet[flow] = rules.hasIgnore ? rules.ignoredSet(frame.key) : 0;
    if (flows.ignoredSet[flow] > 0) flows.flags[flow] |= FLOW_IGNORED_SET_KNOWN;
    if (pair !== null && (pair.hasFed || pair.hasStart)) {
      // Without its SYN, or forgotten when all of it had been compared.
      flows.verified[flow] = pair.hasFed ? pair.fedEnd : pair.start;
      flows.flags[flow] |= FLOW_VERIFIED_KNOWN;
    }
    return flow;
  }

  #skip(side: SideName, entry: CaptureDivergence | undefined): void {
    this.#skipped[side]++;
    if (entry !== undefined) entry.frames_not_compared[side]++;
  }

  /** The flow's lists are still whole. */
  #report(flow: number, why: DivergenceClass, finding: Finding): void {
    const pair = this.#pairs[rowOf(flow)] ?? null;
    const entry = this.divergences.add(flow, why, finding, pair);
    this.#entries[rowOf(flow)] = entry;
    if (pair === null) return;
    pair.diverged = true;
    if (entry !== undefined) this.#pairEntries.set(pair, entry);
  }

  /** Gives back what waits in flows that have been reported. Secondary frames have gone already. */
  #dropDiverged(): void {
    const state = this.#state;
    const touched = this.#touched;
    const { flows, queue } = state;
    for (let flow = touched.pop(); flow !== undefined; flow = touched.pop()) {
      if ((flows.flags[flow] & FLOW_FROZEN) === 0) continue;
      state.primarySorted.clear(flow);
      for (let item = queue.head[flow]; item >= 0; item = queue.head[flow]) {
        this.#skip("primary", this.#entries[rowOf(flow)]);
        state.release(item);
      }
      flows.openings[flow] = 0;
    }
  }

  /** Passes over bytes that neither capture has. True if the flow could go on. */
  #crossGap(flow: number): boolean {
    const state = this.#state;
    const { flows, primary, secondary } = state;
    const flags = flows.flags[flow];
    if ((flags & FLOW_TCP) === 0 || (flags & FLOW_VERIFIED_KNOWN) === 0) return false;
    const p = state.primarySorted.head[flow];
    const s = state.secondarySorted.head[flow];
    if (p < 0 || s < 0) return false;
    const verified = flows.verified[flow];
    const primaryGap = (primary.sequence[p] - verified) | 0;
    const secondaryGap = (secondary.sequence[s] - verified) | 0;
    if (primaryGap <= 0 || secondaryGap <= 0) return false;
    const gap = Math.min(primaryGap, secondaryGap);
    this.gapBytes += gap;
    flows.verified[flow] = (verified + gap) | 0;
    this.#tcp.run(flow);
    return true;
  }
}
