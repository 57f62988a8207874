/** Kinds "source" and "sink": bulk from and to the guest, in pieces. */
import { GUEST_PORTS } from "../guest_ports.ts";
import { patternBytes } from "../pattern.ts";
import { endOf, mustStayOpen, onLines, open } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

const PIECE_BYTES = 256 * 1024;
const RATE_DEFAULT = 10_000_000;

/** Starts pieces until the end, as the options say; run() returns when all are complete. */
function pieces(recorder: Recorder, start: () => void): { completed(): void; run(): Promise<void> } {
  const { bytesPerSecond: rate = RATE_DEFAULT, piecesAhead = 1 } = recorder.options;
  const begun: number[] = [];
  let wake: (() => void) | undefined;
  const oneLess = () =>
    new Promise<void>((resolve) => {
      wake = resolve;
    });
  const end = endOf(recorder.options);
  return {
    completed: () => {
      const since = begun.shift();
      if (since === undefined) recorder.fail("more bytes came than requested");
      recorder.answers++;
      recorder.latencies.push(performance.now() - since);
      wake?.();
    },
    run: async () => {
      while (!end.reached) {
        const now = performance.now();
        begun.push(now);
        start();
        while (begun.length >= piecesAhead) await oneLess();
        const rest = (PIECE_BYTES / rate) * 1000 - (performance.now() - now);
        if (rest > 0) await Bun.sleep(rest);
      }
      while (begun.length > 0) await oneLess();
    },
  };
}

/** Bulk from the guest. */
export async function source(recorder: Recorder): Promise<void> {
  const socket = await open(recorder, GUEST_PORTS.source);
  let ended = false;
  mustStayOpen(recorder, socket, () => ended);
  const { completed, run } = pieces(recorder, () => socket.write(`${PIECE_BYTES}\n`));
  socket.on("data", (chunk) => {
    recorder.checkPattern(recorder.received, chunk as Buffer);
    recorder.arrived(chunk.length);
    while (recorder.answers < Math.floor(recorder.received / PIECE_BYTES)) completed();
  });
  await run();
  ended = true;
  socket.end();
}

/** Bulk to the guest. */
export async function sink(recorder: Recorder): Promise<void> {
  const socket = await open(recorder, GUEST_PORTS.sink);
  let ended = false;
  mustStayOpen(recorder, socket, () => ended);
  const { completed, run } = pieces(recorder, () => {
    socket.write(`${PIECE_BYTES}\n`);
    socket.write(patternBytes(recorder.sent, PIECE_BYTES));
    recorder.sent += PIECE_BYTES;
  });
  onLines(recorder, socket, (line) => {
    if (line !== `OK ${PIECE_BYTES}`) recorder.fail(`the guest answered ${JSON.stringify(line)}`);
    completed();
  });
  await run();
  ended = true;
  socket.end();
}
