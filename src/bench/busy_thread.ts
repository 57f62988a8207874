/** A thread that takes all the time it can get: a VM's guest, or one that only counts (neighbours.ts). */
import { Mapping } from "../ffi/libc.ts";
import { readAvailable } from "../ffi/stream_socket.ts";
import { TAP_FRAME_BYTES_MAX, writeFrame } from "../ffi/tap.ts";
import { Traffic } from "./segments.ts";

declare const self: Worker;

const TRAFFIC = { payloadBytes: 64, flows: 100, rounds: 1 };
/** Frames under way; a tap's queue holds more (500 is half of its default). */
const WINDOW = 500;
/** For those that are under way at the end. */
const LAST_MS = 1_000;

/** What a busy thread is started with. */
export interface BusySetup {
  /** Float64: frames that have gone through, behind an Int32 that ends the thread when it is not 0. */
  buffer: SharedArrayBuffer;
  /** Taps of a VM to keep busy; without them the thread counts. */
  taps: { vms: readonly number[]; far: number } | undefined;
}

function count(stop: Int32Array): void {
  for (let i = 0; Atomics.load(stop, 0) === 0; i++) Math.sqrt(i);
}

/** Sends the same frames into both VMs' taps, never more than can be under way without a loss. */
function beGuest({ vms, far }: NonNullable<BusySetup["taps"]>, stop: Int32Array, frames: Float64Array): void {
  const first = frames[0];
  const traffic = new Traffic(TRAFFIC);
  const out = new Mapping(TAP_FRAME_BYTES_MAX);
  const into = new Mapping(TAP_FRAME_BYTES_MAX);
  const view = new DataView(out.buffer);
  traffic.lay(new Uint8Array(out.buffer), 0);
  let sent = first;
  let got = first;
  while (Atomics.load(stop, 0) === 0) {
    while (sent - got < WINDOW) {
      const round = Math.floor(sent / traffic.count);
      const length = traffic.patch(view, 0, sent % traffic.count, round * TRAFFIC.payloadBytes);
      for (const fd of vms) writeFrame(fd, out.address, length);
      sent++;
    }
    while (readAvailable(far, into.address, TAP_FRAME_BYTES_MAX) >= 0) got++;
    frames[0] = got;
  }
  // The next thread continues where this one ends.
  for (const until = performance.now() + LAST_MS; got < sent && performance.now() < until; ) {
    while (readAvailable(far, into.address, TAP_FRAME_BYTES_MAX) >= 0) got++;
  }
  frames[0] = sent;
  out.close();
  into.close();
}

self.onmessage = ({ data: { buffer, taps } }: MessageEvent<BusySetup>) => {
  const stop = new Int32Array(buffer, 0, 1);
  try {
    if (taps === undefined) count(stop);
    else beGuest(taps, stop, new Float64Array(buffer, 8, 1));
    self.postMessage(undefined);
  } catch (error) {
    self.postMessage((error as Error).message);
  }
};
