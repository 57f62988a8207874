/** Connections of the lab's client, and the moment at which its traffic ends. */
import { connect, type Socket } from "node:net";
import { LineSplitter } from "../../qmp/lines.ts";
import type { ClientOptions } from "./contract.ts";
import type { Recorder } from "./recorder.ts";

/** After the last request, this long without an answer is an error. */
export const FINISH_MS = 30_000;
/** Far above any answer of the guest. */
const LINE_BYTES_MAX = 65_536;

/** Resolves when the traffic is to end. */
export function untilEnd(options: ClientOptions): Promise<void> {
  return new Promise((resolve) => {
    if (options.seconds !== undefined) {
      setTimeout(resolve, options.seconds * 1000);
      return;
    }
    process.stdin.on("end", () => resolve());
    process.stdin.on("error", () => resolve());
    process.stdin.resume();
  });
}

/** `reached` once the traffic is to end: for loops that make one request after the other. */
export function endOf(options: ClientOptions): { readonly reached: boolean } {
  const end = { reached: false };
  void untilEnd(options).then(() => {
    end.reached = true;
  });
  return end;
}

/** A connection to a service of the guest. One that breaks is an error of the client. */
export function open(recorder: Recorder, port: number): Promise<Socket> {
  return new Promise((resolve) => {
    const socket = connect({ host: recorder.options.host, port, noDelay: true });
    socket.once("connect", () => resolve(socket));
    socket.on("error", (error) => recorder.fail(`the connection broke: ${error.message}`));
  });
}

/** The guest must not close the connection before `finished()`. */
export function mustStayOpen(recorder: Recorder, socket: Socket, finished: () => boolean): void {
  socket.on("close", () => {
    if (!finished()) recorder.fail("the guest closed the connection");
  });
}

/** Calls `take` with each line that arrives. */
export function onLines(recorder: Recorder, socket: Socket, take: (line: string) => void): void {
  const lines = new LineSplitter(LINE_BYTES_MAX);
  socket.on("data", (chunk) => {
    recorder.arrived(chunk.length);
    for (const line of lines.push(chunk as Buffer)) take(line);
  });
}
