/**
 * RSTs occupy no place in the stream, so they are matched one by one: a primary RST needs one of the
 * secondary at the same sequence number.
 */
import { FLOW_RESET_ACK_KNOWN, FLOW_RESET_SEQUENCE_KNOWN } from "./flow_table.ts";
import { SEGMENT_ACK } from "./segment_pool.ts";
import type { CompareState } from "./state.ts";

export class TcpResets {
  readonly #state: CompareState;

  constructor(state: CompareState) {
    this.#state = state;
  }

  /**
   * A RST is released when the secondary has sent one at the same sequence number that acknowledges at least
   * as much; one with sequence number 0 answers a segment without a connection (RFC 9293 3.10.7.1), so its
   * acknowledgement must be the same. Each RST of the secondary serves one time. A repetition of the last
   * pair needs no other: it tells the client nothing new.
   */
  match(flow: number, segment: number): boolean {
    const state = this.#state;
    const { flows, primary, secondary, secondaryResets } = state;
    const sequence = primary.sequence[segment];
    const acknowledgement = primary.acknowledgement[segment];
    const acknowledges = primary.flags[segment] & SEGMENT_ACK;
    const bytes = primary.dataBytes[segment];
    for (let s = secondaryResets.head[flow]; s >= 0; s = secondaryResets.next[s]) {
      if (secondary.sequence[s] !== sequence) continue;
      if ((secondary.flags[s] & SEGMENT_ACK) !== acknowledges) continue;
      const ahead = (secondary.acknowledgement[s] - acknowledgement) | 0;
      if (acknowledges !== 0 && (sequence === 0 ? ahead !== 0 : ahead < 0)) continue;
      if (secondary.dataBytes[s] !== bytes) continue;
      if (state.compareBytes(primary.data[segment], secondary.data[s], bytes) !== 0) continue;
      flows.resetSequence[flow] = sequence;
      flows.resetAck[flow] = secondary.acknowledgement[s];
      const marks =
        acknowledges !== 0 ? FLOW_RESET_SEQUENCE_KNOWN | FLOW_RESET_ACK_KNOWN : FLOW_RESET_SEQUENCE_KNOWN;
      flows.flags[flow] = (flows.flags[flow] & ~FLOW_RESET_ACK_KNOWN) | marks;
      secondaryResets.remove(flow, s);
      state.finish(s);
      this.#finishRepeated(flow);
      return true;
    }
    return this.isRepeated(flow, acknowledges, sequence, acknowledgement, bytes);
  }

  #finishRepeated(flow: number): void {
    const state = this.#state;
    const { flags, sequence, acknowledgement, dataBytes } = state.secondary;
    let s = state.secondaryResets.head[flow];
    while (s >= 0) {
      const following = state.secondaryResets.next[s];
      if (this.isRepeated(flow, flags[s], sequence[s], acknowledgement[s], dataBytes[s])) {
        state.secondaryResets.remove(flow, s);
        state.finish(s);
      }
      s = following;
    }
  }

  /** Whether an RST says no more than the secondary's RST of the last matched pair. */
  isRepeated(flow: number, flags: number, sequence: number, acknowledgement: number, bytes: number): boolean {
    const { flows } = this.#state;
    const state = flows.flags[flow];
    if ((state & FLOW_RESET_SEQUENCE_KNOWN) === 0 || bytes !== 0 || flows.resetSequence[flow] !== sequence)
      return false;
    if ((flags & SEGMENT_ACK) === 0) return true;
    if ((state & FLOW_RESET_ACK_KNOWN) === 0) return false;
    const ahead = (flows.resetAck[flow] - acknowledgement) | 0;
    return sequence === 0 ? ahead === 0 : ahead >= 0;
  }
}
