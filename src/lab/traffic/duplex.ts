/** Kind "duplex": the pattern both ways on one connection, at a steady rate. */
import { connect, type Socket } from "node:net";
import { GUEST_PORTS } from "../guest_ports.ts";
import { patternBytes } from "../pattern.ts";
import { FINISH_MS, untilEnd } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

const TICK_MS = 20;
const RATE_DEFAULT = 1_000_000;
const SEND_AHEAD_BYTES = 256 * 1024;
/** Before a broken connection is replaced. */
const RECONNECT_MS = 100;

/** One connection: the positions of the pattern are its own. */
class Stream {
  sent = 0;
  received = 0;
  readonly #socket: Socket;

  constructor(recorder: Recorder, { connected, ended }: { connected(): void; ended(why: string): void }) {
    const socket = connect({ host: recorder.options.host, port: GUEST_PORTS.duplex, noDelay: true });
    this.#socket = socket;
    let why = "the guest closed the connection";
    socket.once("connect", connected);
    socket.on("error", (error) => {
      why = `the connection broke: ${error.message}`;
    });
    socket.on("close", () => ended(why));
    socket.on("data", (chunk) => {
      recorder.checkPattern(this.received, chunk as Buffer);
      this.received += chunk.length;
      recorder.arrived(chunk.length);
      if (this.received > this.sent) recorder.fail("more bytes were returned than sent");
    });
  }

  get isOpen(): boolean {
    return this.#socket.readyState === "open";
  }

  send(bytes: number): void {
    this.#socket.write(patternBytes(this.sent, bytes));
    this.sent += bytes;
  }

  close(): void {
    this.#socket.destroy();
  }
}

export async function duplex(recorder: Recorder): Promise<void> {
  const rate = recorder.options.bytesPerSecond ?? RATE_DEFAULT;
  const { promise: finished, resolve: finish } = Promise.withResolvers<void>();
  const { promise: begun, resolve: begin } = Promise.withResolvers<void>();
  let connections = 0;
  let ending = false;
  const isComplete = () => stream.received === stream.sent;
  const start = (): Stream =>
    new Stream(recorder, {
      connected: () => {
        if (connections++ > 0) recorder.reconnects++;
        begin();
      },
      ended: (why) => {
        if (ending && isComplete()) return;
        if (recorder.options.counting !== true) recorder.fail(why);
        setTimeout(() => {
          stream = start();
        }, RECONNECT_MS);
      },
    });
  let stream = start();
  await begun;

  let credit = 0;
  let before = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    credit = Math.min(credit + ((now - before) / 1000) * rate, rate / 5);
    before = now;
    if (ending && isComplete()) finish();
    const bytes = Math.floor(Math.min(credit, SEND_AHEAD_BYTES - (stream.sent - stream.received)));
    if (ending || bytes <= 0 || !stream.isOpen) return;
    stream.send(bytes);
    recorder.sent += bytes;
    credit -= bytes;
  }, TICK_MS);
  await untilEnd(recorder.options);
  ending = true;
  const late = () => recorder.fail(`${stream.sent - stream.received} bytes were never returned`);
  setTimeout(late, FINISH_MS).unref();
  await finished;
  clearInterval(timer);
  stream.close();
}
