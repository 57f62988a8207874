/**
 * The lab's client: traffic against the lab guest's services (guest/README.md) that notices every wrong,
 * missing or doubled byte. It is a process of its own inside the client's namespace. It reports on standard
 * output, one JSON object a line (contract.ts). It ends when its standard input closes, or after `seconds`. A
 * line "mark" on standard input restarts the longest gap.
 *
 *   bun client.ts KIND '{"host": "198.18.0.10", "seconds": 10, ...}'
 */
import { blocks } from "./blocks.ts";
import { sink, source } from "./bulk.ts";
import { connections } from "./connect.ts";
import { FINISH_MS } from "./connection.ts";
import type { ClientKind, ClientOptions } from "./contract.ts";
import { duplex } from "./duplex.ts";
import { clock, http } from "./http.ts";
import { disk, files, random } from "./lines.ts";
import { Recorder } from "./recorder.ts";
import { udp } from "./udp.ts";

const KINDS: Record<ClientKind, (recorder: Recorder) => Promise<void>> = {
  duplex,
  random,
  disk,
  files,
  blocks,
  source,
  sink,
  http,
  connect: connections,
  clock,
  udp,
};

const [kind, options] = process.argv.slice(2);
const run = KINDS[kind as ClientKind];
if (run === undefined) throw new Error(`kinds of traffic: ${Object.keys(KINDS).join(", ")}`);
const recorder = new Recorder(kind as ClientKind, JSON.parse(options ?? "{}") as ClientOptions);
process.stdin.on("data", (chunk) => {
  for (const line of chunk.toString().split("\n")) if (line === "mark") recorder.mark();
});
// Whoever started it may be gone, and the guest too: it must not wait for an answer for ever.
const late = () => recorder.fail(`it did not end within ${FINISH_MS / 1000} s`);
process.stdin.on("end", () => setTimeout(late, FINISH_MS));
await run(recorder);
recorder.report("end");
process.exit(0);
