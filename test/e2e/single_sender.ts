/**
 * The judge of one sender: frames of the VM's MAC as they came into the clients' switch, by port.
 *
 * Over time the ports are those of the hosts that held the VM, one after the other: each change of port needs
 * a takeover of its own, and a port that has been left is not seen again without another one. Every frame
 * counts, announcements of the MAC included.
 */
import { readFileSync } from "node:fs";
import type { HostLetter } from "../../src/lab/network.ts";

interface SeenFrame {
  port: HostLetter;
  /** Of the kernel that received it, both ports on one clock. */
  atNs: bigint;
}

/** Frames of one port without one of the other between them. */
interface SenderRun {
  port: HostLetter;
  frames: number;
  firstNs: bigint;
  lastNs: bigint;
}

interface Tenure {
  /** Who held the VM when the capture began. */
  holder: HostLetter;
  /** Takeovers since, by the terms of the arbiter's record. */
  takeovers: number;
}

/** tcpdump --time-stamp-precision=nano on a little-endian machine. */
const MAGIC_NANOSECONDS = 0xa1b23c4d;
const FILE_HEADER_BYTES = 24;
const RECORD_HEADER_BYTES = 16;

/** Times of the frames in a capture file. Throws when it is no capture, or cut off. */
export function frameTimes(path: string): bigint[] {
  const file = readFileSync(path);
  if (file.length < FILE_HEADER_BYTES || file.readUInt32LE(0) !== MAGIC_NANOSECONDS) {
    throw new Error(`${path} is not a capture with nanoseconds`);
  }
  const times: bigint[] = [];
  let at = FILE_HEADER_BYTES;
  while (at < file.length) {
    if (at + RECORD_HEADER_BYTES > file.length) throw new Error(`${path} is cut off at ${at}`);
    times.push(BigInt(file.readUInt32LE(at)) * 1_000_000_000n + BigInt(file.readUInt32LE(at + 4)));
    at += RECORD_HEADER_BYTES + file.readUInt32LE(at + 8);
  }
  return times;
}

/** The frames of both ports' captures in the order of time. */
export function mergeCaptures(paths: Record<HostLetter, string>): SeenFrame[] {
  const frames = (["a", "b"] as const).flatMap((port) =>
    frameTimes(paths[port]).map((atNs): SeenFrame => ({ port, atNs })),
  );
  return frames.sort((x, y) => (x.atNs < y.atNs ? -1 : x.atNs > y.atNs ? 1 : 0));
}

export function senderRuns(frames: readonly SeenFrame[]): SenderRun[] {
  const runs: SenderRun[] = [];
  for (const { port, atNs } of frames) {
    const last = runs.at(-1);
    if (last?.port === port) {
      last.frames++;
      last.lastNs = atNs;
    } else {
      runs.push({ port, frames: 1, firstNs: atNs, lastNs: atNs });
    }
  }
  return runs;
}

/** What is wrong with these frames, one sentence each; nothing if the VM had one sender at a time. */
export function judgeSenders(frames: readonly SeenFrame[], { holder, takeovers }: Tenure): string[] {
  const runs = senderRuns(frames);
  const complaints: string[] = [];
  if (runs.length === 0) complaints.push("no frame of the VM was seen at all");
  // A holder that the VM left before it sent anything leaves out a run; no run may come on top.
  const turns = runs.length - 1 + (runs[0] !== undefined && runs[0].port !== holder ? 1 : 0);
  if (turns > takeovers) {
    complaints.push(
      `the VM's frames changed ports ${turns} times with ${takeovers} takeover(s), beginning with host ` +
        `${holder}: ${describeRuns(runs)}`,
    );
  }
  return complaints;
}

/** "a: 1034 frames until 0.512 s, b: 1 frame at 0.600 s, …", times since the first frame. */
function describeRuns(runs: readonly SenderRun[]): string {
  const begin = runs[0]?.firstNs ?? 0n;
  const seconds = (ns: bigint) => `${(Number(ns - begin) / 1e9).toFixed(6)} s`;
  return runs
    .slice(0, 12)
    .map(
      ({ port, frames, firstNs, lastNs }) =>
        `${port}: ${frames} from ${seconds(firstNs)} to ${seconds(lastNs)}`,
    )
    .join(", ")
    .concat(runs.length > 12 ? `, … (${runs.length} in all)` : "");
}
