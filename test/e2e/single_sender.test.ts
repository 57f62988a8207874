/** The judge of one sender, on captures that were made up: it has to find what must not be. */
import { afterAll, describe, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { HostLetter } from "../../src/lab/network.ts";
import { frameTimes, judgeSenders, mergeCaptures, senderRuns } from "./single_sender.ts";

const directory = mkdtempSync(join(tmpdir(), "colo-test-single-sender-"));
afterAll(() => rmSync(directory, { recursive: true }));

/**
 * A classic capture file with nanoseconds, as tcpdump writes it: an announcement of the VM's MAC at each
 * time.
 */
function capture(name: string, timesMs: readonly number[]): string {
  const header = Buffer.alloc(24);
  header.writeUInt32LE(0xa1b23c4d, 0);
  header.writeUInt16LE(2, 4);
  header.writeUInt16LE(4, 6);
  header.writeUInt32LE(96, 16);
  header.writeUInt32LE(1, 20);
  const records = timesMs.map((ms) => {
    const record = Buffer.alloc(16 + 60);
    record.writeUInt32LE(1_800_000_000 + Math.floor(ms / 1000), 0);
    record.writeUInt32LE((ms % 1000) * 1_000_000, 4);
    record.writeUInt32LE(60, 8);
    record.writeUInt32LE(60, 12);
    record.fill(0xff, 16, 22);
    record.set([0x52, 0x54, 0x00, 0xc0, 0x10, 0x0a], 22);
    record.writeUInt16BE(0x8035, 28);
    return record;
  });
  const path = join(directory, name);
  writeFileSync(path, Buffer.concat([header, ...records]));
  return path;
}

let number = 0;
/** Both ports' files from "a:10 b:20 …" (milliseconds), judged. */
function judged(frames: string, holder: HostLetter, takeovers: number): string[] {
  const times: Record<HostLetter, number[]> = { a: [], b: [] };
  for (const frame of frames.split(" ").filter(Boolean)) {
    const [port, ms] = frame.split(":") as [HostLetter, string];
    times[port].push(Number(ms));
  }
  number++;
  const paths = { a: capture(`${number}-a.pcap`, times.a), b: capture(`${number}-b.pcap`, times.b) };
  return judgeSenders(mergeCaptures(paths), { holder, takeovers });
}

describe("the judge of one sender", () => {
  test.each([
    ["one host, no takeover", "a:1 a:2 a:2500", "a", 0],
    ["a takeover", "a:1 a:2 b:1300 b:1301", "a", 1],
    ["a takeover to the other side", "b:1 a:900", "b", 1],
    ["a holder that is lost before it sends", "b:1300 b:1400", "a", 1],
    ["there and back, each by a takeover", "a:1 b:2 a:3", "a", 2],
    ["a takeover after which nothing was sent", "a:1 a:2", "a", 1],
  ] as const)("accepts %s", (_what, frames, holder, takeovers) => {
    expect(judged(frames, holder, takeovers)).toEqual([]);
  });

  test.each([
    ["two senders without a takeover", "a:1 b:2", "a", 0, "changed ports 1 times"],
    ["the secondary alone without a takeover", "b:1 b:2", "a", 0, "changed ports 1 times"],
    ["the old primary after the new one", "a:1 a:2 b:1300 a:1300.5", "a", 1, "changed ports 2 times"],
    ["one late frame among many", "a:1 b:1300 b:1301 b:1302 a:1303 b:1304 b:1305", "a", 1, "a: 1 from"],
    ["two that alternate", "a:1 b:2 a:3 b:4 a:5", "a", 1, "changed ports 4 times"],
    [
      "a secondary that announces itself before it has taken over",
      "b:1 a:2 b:3",
      "a",
      1,
      "changed ports 3 times",
    ],
    ["an empty capture, which proves nothing", "", "a", 0, "no frame"],
  ] as const)("finds %s", (_what, frames, holder, takeovers, complaint) => {
    expect(judged(frames, holder, takeovers).join("\n")).toContain(complaint);
  });

  test("files are merged by time, and runs counted", () => {
    const paths = { a: capture("m-a.pcap", [5, 1, 2000]), b: capture("m-b.pcap", [1500]) };
    const runs = senderRuns(mergeCaptures(paths));
    expect(runs.map(({ port, frames }) => `${port}${frames}`)).toEqual(["a2", "b1", "a1"]);
    expect(runs[1]!.firstNs - runs[0]!.firstNs).toBe(1_499_000_000n);
  });

  test("a file that is cut off, or of another kind, is an error", () => {
    const path = capture("cut.pcap", [1, 2]);
    const whole = readFileSync(path);
    writeFileSync(path, whole.subarray(0, whole.length - 70));
    expect(() => frameTimes(path)).toThrow("cut off");
    writeFileSync(path, "not a capture, but long enough to be one");
    expect(() => frameTimes(path)).toThrow("not a capture");
  });
});
