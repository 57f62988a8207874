/**
 * `bench vm`: what protection costs a guest's network. The same guest, the same traffic from the client's
 * namespace, four ways: unprotected; two unprotected guests that do the same work at once (what two VMs cost
 * this machine without anything that keeps them in step); QEMU's own proxy; the agents. Each repetition
 * starts each way once and sends all traffic.
 */
import { readFileSync } from "node:fs";
import { requireRoot } from "../host/root.ts";
import { GUEST_IPV4 } from "../lab/network.ts";
import type { ClientKind, ClientOptions, ClientReport } from "../lab/traffic/contract.ts";
import { LabTraffic } from "../lab/traffic.ts";
import { withLabs } from "./labs.ts";
import { PauseWatch } from "./pauses.ts";
import { type Bench, type BenchContext, ResultSet, type Subject } from "./result.ts";
import { type RunningWay, startWays, VM_LABS } from "./vm_ways.ts";

/**
 * The same traffic first, not measured: TCG has to translate the code for it, on a secondary again after each
 * checkpoint.
 */
const WARM_UP_SECONDS = 2;
const TRAFFIC_SECONDS = 5;
const TRAFFIC_SECONDS_QUICK = 1;
/** Given to traffic that has come to its end, to get its last answers. */
const LAST_ANSWERS_MS = 20_000;
const TICKS_PER_SECOND = 100; // USER_HZ, the unit of /proc/PID/stat, the same on every architecture

interface Figure {
  metric: string;
  unit: string;
  value(report: ClientReport, seconds: number): number;
}

interface Case {
  name: string;
  kind: ClientKind;
  options?: Partial<ClientOptions>;
  figures: readonly Figure[];
}

const latency = (share: "p50" | "p99"): Figure => ({
  metric: `latency ${share}`,
  unit: "ms",
  value: (report) => report.latencyMs?.[share] ?? Number.NaN,
});
const throughput = (direction: "sent" | "received"): Figure => ({
  metric: "throughput",
  unit: "MB/s",
  value: (report) => report[direction] / report.elapsedMs / 1000,
});
const requests: Figure = {
  metric: "requests",
  unit: "1/s",
  value: (report) => report.answers / (report.elapsedMs / 1000),
};
const bulk = { bytesPerSecond: Number.MAX_SAFE_INTEGER, piecesAhead: 4 };

/** Datagrams are offered at a fixed rate, everything else as fast as answers come. */
const UDP_PAUSE_MS = 2;
const UDP_BYTES = 512;

const CASES: readonly Case[] = [
  { name: "TCP from the guest", kind: "source", options: bulk, figures: [throughput("received")] },
  { name: "TCP to the guest", kind: "sink", options: bulk, figures: [throughput("sent")] },
  { name: "HTTP, 4 KiB page", kind: "http", figures: [requests, latency("p50"), latency("p99")] },
  // No two copies of a guest agree on their clock, so each answer is a divergence.
  { name: "HTTP, the guest's clock", kind: "clock", figures: [requests, latency("p50"), latency("p99")] },
  {
    name: `UDP echo, ${1000 / UDP_PAUSE_MS}/s offered`,
    kind: "udp",
    options: { pauseMs: UDP_PAUSE_MS },
    figures: [
      { metric: "echoes", unit: "1/s", value: (report, seconds) => report.answers / seconds },
      { metric: "lost", unit: "%", value: ({ lost, sent }) => (100 * lost) / (sent / UDP_BYTES) },
      latency("p50"),
      latency("p99"),
    ],
  },
];

export const benchVm: Bench = async (given) => {
  requireRoot("run this benchmark");
  if (!CASES.some(({ name }) => given.wanted(name))) return [];
  const results = new ResultSet("vm");
  await withLabs(VM_LABS, given, async (context) => {
    const repetitions = context.runs;
    for (let repetition = 1; repetition <= repetitions; repetition++) {
      const say = (subject: Subject, step: string) =>
        context.progress(`${repetition} of ${repetitions}, ${subject}: ${step}`);
      for await (const way of startWays(say)) {
        await measureWay(context, results, way, (step) => say(way.subject, step));
      }
    }
  });
  // A way without a secondary or agents has fewer figures: put each case together again.
  return Object.values(Object.groupBy(results.toJson(), (one) => one.case)).flatMap((one) => one ?? []);
};

async function measureWay(
  context: BenchContext,
  results: ResultSet,
  way: RunningWay,
  say: (step: string) => void,
): Promise<void> {
  const pauses = await PauseWatch.open(way.qmp);
  try {
    for (const one of CASES) {
      if (!context.wanted(one.name)) continue;
      say(one.name);
      try {
        await measureCase(results, way, one, pauses, context.quick);
      } catch (error) {
        // What QEMU's proxy does not carry is a finding about it; the other ways have to work.
        if (way.subject !== "qemu") throw error;
        context.skipped(way.subject, `${one.name}: ${(error as Error).message}`);
        if (!way.alive()) return;
      }
    }
  } finally {
    pauses.close();
  }
}

async function measureCase(
  results: ResultSet,
  way: RunningWay,
  { name, kind, options, figures }: Case,
  pauses: PauseWatch,
  quick: boolean,
): Promise<void> {
  const seconds = quick ? TRAFFIC_SECONDS_QUICK : TRAFFIC_SECONDS;
  const traffic = (length: number) =>
    trafficOnAll(way, kind, { host: GUEST_IPV4, seconds: length, ...options }, length);
  if (!quick) await traffic(WARM_UP_SECONDS);
  pauses.clear();
  const cpuBefore = way.processes.map(({ pid }) => cpuSeconds(pid));
  const begun = performance.now();
  const report = await traffic(seconds);
  const wallSeconds = (performance.now() - begun) / 1000;

  const key = { case: name, subject: way.subject };
  for (const { metric, unit, value } of figures)
    results.add({ ...key, metric, unit }, value(report, seconds));
  results.add({ ...key, metric: "checkpoints", unit: "1/s" }, pauses.pauses.length / wallSeconds);
  const stoppedMs = pauses.lengthsMs().reduce((sum, length) => sum + length, 0);
  results.add({ ...key, metric: "VM stopped", unit: "% of the time" }, stoppedMs / wallSeconds / 10);
  const used = new Map<string, number>();
  way.processes.forEach(({ name: process, pid }, index) => {
    used.set(process, (used.get(process) ?? 0) + cpuSeconds(pid) - cpuBefore[index]!);
  });
  for (const [process, cpu] of used) {
    results.add({ ...key, metric: `CPU of ${process}`, unit: "s/s" }, cpu / wallSeconds);
  }
}

/** The same traffic to every guest of the way at once; the first one's report. */
async function trafficOnAll(
  way: RunningWay,
  kind: ClientKind,
  options: ClientOptions,
  seconds: number,
): Promise<ClientReport> {
  const all = way.labs.map((lab) => new LabTraffic(lab, kind, options));
  const limitMs = seconds * 1000 + LAST_ANSWERS_MS;
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    for (const traffic of all) traffic.kill();
  }, limitMs);
  try {
    const reports = await Promise.all(all.map((traffic) => traffic.ended()));
    return reports[0]!;
  } catch (error) {
    if (!late) throw error;
    throw new Error(`the traffic stood still: not all answers within ${limitMs} ms`, { cause: error });
  } finally {
    clearTimeout(timer);
    for (const traffic of all) traffic.kill();
  }
}

/** CPU time of a process so far, its ended threads included. 0 for one that is gone. */
function cpuSeconds(pid: number): number {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND;
  } catch {
    // It has ended.
    return 0;
  }
}
