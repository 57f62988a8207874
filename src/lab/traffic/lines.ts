/** Kinds "random", "disk" and "files": one line out, one line back, one after the other. */
import { createHash } from "node:crypto";
import { GUEST_PORTS } from "../guest_ports.ts";
import { endOf, mustStayOpen, onLines, open } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

/** One line out, one line back, checked by `check`, until the end. */
async function requests(
  recorder: Recorder,
  port: number,
  request: (index: number) => string,
  check: (index: number, line: string) => string | undefined,
): Promise<void> {
  const socket = await open(recorder, port);
  let ended = false;
  mustStayOpen(recorder, socket, () => ended);
  let waiting: ((line: string) => void) | undefined;
  onLines(recorder, socket, (line) => waiting?.(line));
  const end = endOf(recorder.options);
  for (let index = 0; !end.reached; index++) {
    const line = request(index);
    const begun = performance.now();
    const answer = await new Promise<string>((resolve) => {
      waiting = resolve;
      socket.write(`${line}\n`);
      recorder.sent += line.length + 1;
    });
    recorder.latencies.push(performance.now() - begun);
    const complaint = check(index, answer);
    if (complaint !== undefined) recorder.fail(complaint);
    recorder.answers++;
    if (recorder.options.pauseMs) await Bun.sleep(recorder.options.pauseMs);
  }
  ended = true;
  socket.end();
}

/** Random output, chained, so that a mixture of two machines' streams is noticed. */
export function random(recorder: Recorder): Promise<void> {
  let chain = "";
  return requests(
    recorder,
    GUEST_PORTS.random,
    (index) => `request ${index}`,
    (index, line) => {
      const [digits, sum] = line.split(" ");
      if (digits === undefined || !/^[0-9a-f]{64}$/.test(digits))
        return `answer ${index} is malformed: ${line}`;
      chain = createHash("md5")
        .update(chain + digits)
        .digest("hex");
      return sum === chain
        ? undefined
        : `the chain is broken at answer ${index}: the stream is not from one machine`;
    },
  );
}

/** Numbered things that the guest acknowledges when they are on the medium. */
const numbered = (port: number, word: string, thing: string) => (recorder: Recorder) =>
  requests(
    recorder,
    port,
    (index) => `${word} ${index}`,
    (index, line) => (line === `ACK ${index}` ? undefined : `${thing} ${index} was answered: ${line}`),
  );

/** Blocks of the disk. */
export const disk = numbered(GUEST_PORTS.disk, "WRITE", "block");

/** Files, each under its final name. */
export const files = numbered(GUEST_PORTS.files, "PUT", "file");
