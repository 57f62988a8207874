/** Diverted input on its way back: from the input ring through a packet socket to the tap, which mirrors it to both VMs. */
import { RECORD, RECORD_HEADER_BYTES, RECORD_SEND_OFFSET } from "../ffi/layout.ts";
import { bootTimeNsNumber } from "../ffi/libc.ts";
import type { PacketSocket } from "../ffi/packet_socket.ts";
import type { Ring } from "../ffi/ring.ts";
import type { StateView } from "../ffi/state_view.ts";

/** Replayed frames are sent at least this often. */
const REPLAY_BATCH = 64;
/** Each round puts back what has come during the one before. */
const REPLAY_ROUNDS_MAX = 32;
/**
 * A program that found input diverted may put its frame into the ring only after the diversion is over and the ring was
 * seen empty. For so long it is looked for, this often.
 */
const LATE_INPUT_NS = 50_000_000;
export const LATE_INPUT_SLEEP_MS = 1;

export class InputReplay {
  /** Slots queued for sending, to be given back after the flush. */
  readonly #queued = new Int32Array(REPLAY_BATCH);
  #lateUntilNs = 0;

  constructor(
    private readonly ring: Ring,
    private readonly socket: PacketSocket,
    private readonly state: Pick<StateView, "divertInput">,
  ) {}

  /** Puts diverted input back in order, until none is left, and ends the diversion. Returns the number of frames. */
  replay(): number {
    let count = 0;
    // What arrives while we replay is diverted too, so that new input goes its own way again only when the ring is empty;
    // or when so much comes that it never would be. Then some is late, for both VMs alike.
    for (let round = 0; round < REPLAY_ROUNDS_MAX && this.ring.unreadBytes() > 0; round++) {
      count += this.#replayUpTo(this.ring.producedTo());
    }
    this.state.divertInput = false;
    this.#lateUntilNs = bootTimeNsNumber() + LATE_INPUT_NS;
    return count + this.#replayUpTo(this.ring.producedTo());
  }

  /** Whether the last diversion is over for so short a time that {@link replayLate} may find something. */
  looksForLate(nowNs: number): boolean {
    return nowNs < this.#lateUntilNs;
  }

  /** Puts back what was diverted so late that replay() did not find it. Returns the number of frames. */
  replayLate(): number {
    const until = this.ring.producedTo();
    // In this order: with the next checkpoint begun meanwhile, nothing in front of `until` is of its diversion.
    return this.state.divertInput ? 0 : this.#replayUpTo(until);
  }

  /** Drops what is in the ring. Returns the number of frames. */
  discard(): number {
    let count = 0;
    for (let slot = this.ring.next(); slot >= 0; slot = this.ring.next()) {
      this.ring.done(slot);
      count++;
    }
    return count;
  }

  close(): void {
    this.socket.close();
    this.ring.close();
  }

  /** Puts back what is in the ring in front of `until`. */
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
      socket.flush();
      for (let i = 0; i < queued; i++) ring.done(this.#queued[i]!);
      count += queued;
    }
  }
}
