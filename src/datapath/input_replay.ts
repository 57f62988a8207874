/**
 * Diverted input on its way back. During a checkpoint the programs put the primary's input into a ring
 * (bpf/input.h); afterwards it is sent to the tap again, with a mark, and passes the mirror in its old order.
 */
import { RECORD, RECORD_HEADER_BYTES, RECORD_SEND_OFFSET } from "../ffi/layout.ts";
import { bootTimeNsNumber } from "../ffi/libc.ts";
import type { PacketSocket } from "../ffi/packet_socket.ts";
import { discardRecords, type Ring } from "../ffi/ring.ts";
import type { StateView } from "../ffi/state_view.ts";

/** Frames queued at the socket before it sends them. */
const REPLAY_BATCH = 64;
/** Each round replays the frames that arrived during the one before. */
const REPLAY_ROUNDS_MAX = 32;
/**
 * A program that read the diversion's flag just before it was cleared may still add a frame to the ring. Such
 * late frames are looked for during this time, at this interval.
 */
const LATE_INPUT_NS = 50_000_000;
export const LATE_INPUT_SLEEP_MS = 1;

export class InputReplay {
  /** Slots of the ring queued at the socket, given back when they have been sent. */
  readonly #queued = new Int32Array(REPLAY_BATCH);
  #lateUntilNs = 0;

  /** Ring and socket stay the caller's. */
  constructor(
    private readonly ring: Ring,
    private readonly socket: PacketSocket,
    private readonly state: Pick<StateView, "divertInput">,
  ) {}

  /**
   * Replays diverted input in order, until the ring is empty, and ends the diversion. Returns the number of
   * frames.
   */
  replay(): number {
    let count = 0;
    // Frames that arrive meanwhile are diverted too, so that new input takes its direct way only when the
    // ring is empty. At a rate at which it never would be, the rounds end: some input is then late, for both
    // VMs alike.
    for (let round = 0; round < REPLAY_ROUNDS_MAX && this.ring.unreadBytes() > 0; round++) {
      count += this.#replayUpTo(this.ring.producedTo());
    }
    this.state.divertInput = false;
    this.#lateUntilNs = bootTimeNsNumber() + LATE_INPUT_NS;
    return count + this.#replayUpTo(this.ring.producedTo());
  }

  /** Whether the last diversion ended so recently that {@link replayLate} may find frames. */
  looksForLate(nowNs: number): boolean {
    return nowNs < this.#lateUntilNs;
  }

  /** Replays frames that were diverted too late for replay(). Returns their number. */
  replayLate(): number {
    const until = this.ring.producedTo();
    // In this order: if the next checkpoint has begun meanwhile, no frame before `until` is of its diversion.
    return this.state.divertInput ? 0 : this.#replayUpTo(until);
  }

  /** Drops what is in the ring. Returns the number of frames. */
  discard(): number {
    return discardRecords(this.ring);
  }

  /** Replays the records in front of `until`, a place of Ring.producedTo(). */
  #replayUpTo(until: number): number {
    const { ring, socket } = this;
    const { view } = ring;
    let count = 0;
    for (;;) {
      let queued = 0;
      while (queued < REPLAY_BATCH && !ring.hasRead(until)) {
        const slot = ring.next();
        if (slot < 0) break;
        const offset = ring.offset(slot);
        const bytes =
          RECORD_HEADER_BYTES - RECORD_SEND_OFFSET + view.getUint32(offset + RECORD.frame_bytes, true);
        socket.queue(ring.address + offset + RECORD_SEND_OFFSET, bytes);
        this.#queued[queued++] = slot;
      }
      if (queued === 0) return count;
      socket.send();
      for (let i = 0; i < queued; i++) ring.done(this.#queued[i]!);
      count += queued;
    }
  }
}
