/** Kinds "http" and "clock": a page again and again, on kept connections. */
import { bracketed } from "../../host/endpoint.ts";
import { patternBytes } from "../pattern.ts";
import { endOf } from "./connection.ts";
import type { Recorder } from "./recorder.ts";

const PAGE_BYTES = 4096;

/** Gets a page until the end. */
async function pages(
  recorder: Recorder,
  path: string,
  check: (body: Buffer) => string | undefined,
): Promise<void> {
  const end = endOf(recorder.options);
  while (!end.reached) {
    const begun = performance.now();
    let body: Buffer;
    try {
      const response = await fetch(`http://${bracketed(recorder.options.host)}${path}`);
      body = Buffer.from(await response.arrayBuffer());
    } catch (error) {
      recorder.fail(`HTTP: ${(error as Error).message}`);
    }
    const complaint = check(body);
    if (complaint !== undefined) recorder.fail(`HTTP: ${complaint}`);
    recorder.latencies.push(performance.now() - begun);
    recorder.arrived(body.length);
    recorder.answers++;
    if (recorder.options.pauseMs) await Bun.sleep(recorder.options.pauseMs);
  }
}

/** A page of the pattern. */
export function http(recorder: Recorder): Promise<void> {
  const expected = patternBytes(0, PAGE_BYTES);
  return pages(recorder, `/size/${expected.length}`, (body) =>
    body.equals(expected) ? undefined : "the body is wrong",
  );
}

/** The guest's clock: no two copies of a machine agree on it, and for the client it never goes back. */
export function clock(recorder: Recorder): Promise<void> {
  let latest = 0;
  return pages(recorder, "/time", (body) => {
    const seconds = Number.parseFloat(body.toString());
    if (!(seconds >= latest)) return `the clock says ${body.toString().trim()} after ${latest}`;
    latest = seconds;
    return undefined;
  });
}
