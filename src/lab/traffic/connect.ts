/** Kind "connect": a new connection each time, a few bytes of the pattern there and back. */
import { GUEST_PORTS } from "../guest_ports.ts";
import { patternBytes } from "../pattern.ts";
import { endOf, mustStayOpen, open } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

const CONNECTION_BYTES = 2048;

export async function connections(recorder: Recorder): Promise<void> {
  const bytes = patternBytes(0, CONNECTION_BYTES);
  const end = endOf(recorder.options);
  while (!end.reached) {
    const begun = performance.now();
    const socket = await open(recorder, GUEST_PORTS.duplex);
    const { promise, resolve } = Promise.withResolvers<void>();
    let received = 0;
    mustStayOpen(recorder, socket, () => received === CONNECTION_BYTES);
    socket.on("data", (chunk) => {
      recorder.checkPattern(received, chunk as Buffer);
      received += chunk.length;
      recorder.arrived(chunk.length);
      if (received === CONNECTION_BYTES) resolve();
    });
    socket.write(bytes);
    recorder.sent += CONNECTION_BYTES;
    await promise;
    socket.end();
    recorder.latencies.push(performance.now() - begun);
    recorder.answers++;
    if (recorder.options.pauseMs) await Bun.sleep(recorder.options.pauseMs);
  }
}
