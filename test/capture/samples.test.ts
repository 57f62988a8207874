/** Captures of real networks against copies that Scapy has cut, numbered and changed anew. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { isIPv6 } from "node:net";
import { join } from "node:path";
import { CaptureFolder } from "./capture_files.ts";
import { compareCommandLine, reportOf } from "./command.ts";
import { compareFiles } from "./comparison.ts";
import { type Resegmented, type ResegmentJob, resegment, type Samples, samples } from "./samples.ts";

const folder = new CaptureFolder();
afterAll(() => folder.remove());

const WITH_TCP = ["http", "pppoe", "ethernet", "loopback"] as const;
const SEEDS = [1, 2, 3, 4];
/** The first byte, the last, and some between. */
const FLIPS = [0, 0.1, 0.37, 0.5, 0.73, 0.99, 1];

let found: Samples;
const jobs: ResegmentJob[] = [];
let results: Resegmented[];

beforeAll(async () => {
  found = samples();
  for (const name of WITH_TCP) {
    const file = found.captures[name];
    for (const seed of SEEDS) jobs.push({ in: file, out: folder.next(), seed, flip: null });
    for (const flip of FLIPS) jobs.push({ in: file, out: folder.next(), seed: jobs.length, flip });
  }
  results = await resegment(found.scapy, jobs);
}, 300_000);

test("every sample is the same as itself", () => {
  for (const file of Object.values(found.captures)) {
    const report = compareFiles(file, file);
    expect(report).toMatchObject({ same: true, divergences: [] });
    const { frames, frames_compared, frames_ignored } = report.primary;
    expect(frames_compared).toBe(frames - frames_ignored);
    expect(frames_compared).toBeGreaterThan(0);
  }
});

test("a copy with other numbers and other segments is equal", () => {
  const copies = jobs.map((job, i) => ({ job, result: results[i]! })).filter(({ job }) => job.flip === null);
  expect(copies).toHaveLength(WITH_TCP.length * SEEDS.length);
  for (const { job, result } of copies) {
    const report = compareFiles(job.in, job.out);
    expect(report.divergences).toEqual([]);
    // Repeated bytes are compared once.
    expect(report.compared_bytes).toBeGreaterThanOrEqual(result.bytes);
    expect(report.primary.frames_before_start + report.secondary.frames_before_start).toBe(0);
    expect(compareFiles(job.out, job.in)).toMatchObject({ same: true });
  }
});

test("one changed byte is found where it is, in either capture", () => {
  const copies = jobs.map((job, i) => ({ job, result: results[i]! })).filter(({ job }) => job.flip !== null);
  expect(copies).toHaveLength(WITH_TCP.length * FLIPS.length);
  const end = ([address, port]: [string, number]) =>
    isIPv6(address) ? `[${address}]:${port}` : `${address}:${port}`;
  for (const { job, result } of copies) {
    const { source, destination, offset } = result.flipped!;
    const flow = `tcp ${end(source)} > ${end(destination)}`;
    for (const order of [[job.in, job.out] as const, [job.out, job.in] as const]) {
      const { divergences } = compareFiles(...order);
      expect(divergences).toMatchObject([{ class: "payload", flow, stream_offset: offset }]);
      const [{ primary, secondary }] = divergences as [(typeof divergences)[0]];
      expect(primary!.byte! ^ secondary!.byte!).toBe(1);
    }
  }
});

test("the frame that is named is the one that has the byte", async () => {
  const at = jobs.findIndex((job) => job.in === found.captures.http && job.flip === 0.5);
  const result = await compareCommandLine("--json", jobs[at]!.in, jobs[at]!.out);
  expect(result.status).toBe(1);
  const [divergence] = reportOf(result).divergences;
  // tcpdump's own numbering and sequence numbers.
  for (const [file, place] of [
    [jobs[at]!.in, divergence!.primary!],
    [jobs[at]!.out, divergence!.secondary!],
  ] as const) {
    const dump = Bun.spawnSync(["tcpdump", "-n", "-S", "-#", "-t", "-r", file]).stdout.toString();
    const line = dump.split("\n").find((text) => text.trimStart().startsWith(`${place.frame} `));
    const [, from, to] = /seq (\d+):(\d+)/.exec(line ?? "") ?? [];
    expect(Number(from) + place.payload_offset).toBe(place.sequence!);
    expect(Number(to)).toBeGreaterThan(place.sequence!);
  }
});

test("pcapng of either byte order has the same packets", () => {
  let compared = 0;
  for (const name of readdirSync(found.bigEndian)) {
    if (!name.endsWith(".pcapng")) continue;
    const big = join(found.bigEndian, name);
    const little = join(found.littleEndian, name);
    const verdict = (primary: string, secondary: string) => {
      try {
        return compareFiles(primary, secondary);
      } catch (error) {
        expect(error).toHaveProperty("name", "CaptureError");
        return (error as Error).message.replace(primary, "FILE");
      }
    };
    const report = verdict(big, little);
    if (typeof report === "string") {
      // Several kinds of interface, frames cut off, none at all: refused in both byte orders for the same
      // reason.
      expect(verdict(little, big)).toBe(report);
      continue;
    }
    expect(report.divergences).toEqual([]);
    compared++;
  }
  expect(compared).toBeGreaterThanOrEqual(7);
});
