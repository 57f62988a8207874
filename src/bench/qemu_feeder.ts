/**
 * Feeds QEMU's two input sockets in turn in a thread of its own: see qemu_compare.ts. Patches a few headers
 * and makes two system calls for each batch, so that QEMU is what is measured.
 */
import { Mapping } from "../ffi/libc.ts";
import { StreamSocket } from "../ffi/stream_socket.ts";
import { QEMU_FRAMING_BYTES, writeQemuFraming } from "./qemu_process.ts";
import { Traffic, type TrafficOptions } from "./segments.ts";

declare const self: Worker;

const BATCH_BYTES = 64 * 1024;
const BATCH_FRAMES_MAX = 128;

export interface FeederSetup {
  primaryPath: string;
  secondaryPath: string;
  timeoutMs: number;
}

export interface FeederOrder {
  primary: TrafficOptions;
  secondary: TrafficOptions;
  streamStart: number;
}

export type FeederReport = { type: "ready" } | { type: "done" } | { type: "failed"; message: string };

class Side {
  readonly #socket: StreamSocket;
  #mapping: Mapping | undefined;

  constructor(path: string, timeoutMs: number) {
    this.#socket = StreamSocket.connect(path, timeoutMs);
  }

  /** Returns a function that sends the segments [from, to), of which there are at most BATCH_FRAMES_MAX. */
  sender(traffic: Traffic, streamStart: number): (from: number, to: number) => void {
    this.#mapping?.close();
    const mapping = new Mapping(batchFrames(traffic) * (QEMU_FRAMING_BYTES + traffic.bytesMax));
    this.#mapping = mapping;
    const bytes = new Uint8Array(mapping.buffer);
    const view = new DataView(mapping.buffer);
    const stride = QEMU_FRAMING_BYTES + traffic.bytesMax;
    for (let i = 0; i < batchFrames(traffic); i++) {
      traffic.lay(bytes, i * stride + QEMU_FRAMING_BYTES);
    }
    return (from, to) => {
      let pendingFrom = 0;
      let at = 0;
      for (let i = from; i < to; i++) {
        const length = traffic.patch(view, at + QEMU_FRAMING_BYTES, i, streamStart);
        writeQemuFraming(view, at, length);
        if (length < traffic.bytesMax) {
          // A short one: what follows it in memory does not belong to it.
          this.#socket.write(mapping.address + pendingFrom, at - pendingFrom + QEMU_FRAMING_BYTES + length);
          pendingFrom = at + stride;
        }
        at += stride;
      }
      if (at > pendingFrom) this.#socket.write(mapping.address + pendingFrom, at - pendingFrom);
    };
  }
}

function batchFrames(traffic: Traffic): number {
  const fitting = Math.floor(BATCH_BYTES / (QEMU_FRAMING_BYTES + traffic.bytesMax));
  return Math.min(BATCH_FRAMES_MAX, Math.max(1, fitting));
}

let sides: [Side, Side] | undefined;

self.onmessage = (message: MessageEvent<FeederSetup | FeederOrder>) => {
  const report = (what: FeederReport) => self.postMessage(what);
  try {
    const order = message.data;
    if ("primaryPath" in order) {
      const { primaryPath, secondaryPath, timeoutMs } = order;
      sides = [new Side(primaryPath, timeoutMs), new Side(secondaryPath, timeoutMs)];
      report({ type: "ready" });
      return;
    }
    if (sides === undefined) throw new Error("The feeder has no sockets yet.");
    const traffic = [new Traffic(order.primary), new Traffic(order.secondary)];
    const senders = sides.map((side, i) => side.sender(traffic[i], order.streamStart));
    const batch = batchFrames(traffic[0]);
    const count = Math.max(traffic[0].count, traffic[1].count);
    for (let from = 0; from < count; from += batch) {
      senders.forEach((send, i) => {
        const to = Math.min(from + batch, traffic[i].count);
        if (to > from) send(from, to);
      });
    }
    report({ type: "done" });
  } catch (error) {
    report({ type: "failed", message: (error as Error).message });
  }
};
