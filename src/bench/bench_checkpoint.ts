/**
 * `bench checkpoint`: how long the VM stands still for a checkpoint, on both hosts, idle and while the guest
 * changes memory. The agents' way against QEMU's own: an ordinary TCP migration with QEMU's parameters and
 * its timer, no proxy, between the same namespaces. Both let the VM run for as long in between, so that about
 * as much memory has been changed each time.
 */
import { readFileSync } from "node:fs";
import { requireRoot } from "../host/root.ts";
import { GUEST_PORTS } from "../lab/guest_ports.ts";
import { Lab } from "../lab/lab.ts";
import { GUEST_IPV4, inNamespace, type LabNamespaces } from "../lab/network.ts";
import { PATIENT_AGENTS, PATIENT_CHECKPOINTS, withLabs } from "./labs.ts";
import { PauseWatch } from "./pauses.ts";
import { QemuPair } from "./qemu_pair.ts";
import { type Bench, type BenchContext, median, ResultSet, type Subject } from "./result.ts";

const NAME = "bench-cp";
const MEMORY_MIB = 256;
const PERIOD_MS = 250;
/**
 * QEMU's timer runs from the beginning of a checkpoint (migration/colo.c, colo_checkpoint_notify), the
 * agents' from its end: with a pause of about this length more, both VMs run as long in between.
 */
const QEMU_DELAY_MS = PERIOD_MS + 50;
const CHECKPOINTS = 15;
const CHECKPOINTS_QUICK = 4;
/** Left out of the figures after a change of the guest's work. */
const SETTLE_CHECKPOINTS = 2;
const TIMEOUT_MS = 60_000;
/** As src/lab/network.ts names it. */
const REPLICATION_LINK = "repl";
const RATES_MIB_S = [0, 16, 64] as const;

interface RunningPair {
  namespaces: LabNamespaces;
  qmp: { primary: string; secondary: string };
  /** Of the primary host; its /proc/PID/net is that host's network. */
  qemuPid: number;
  /**
   * All checkpoints so far, with the time that the VM's input was withheld for them; left out where that is
   * not done.
   */
  withheld?(): Promise<{ seconds: number; checkpoints: number }>;
  down(): Promise<void>;
}

const SUBJECTS = [
  { subject: "qemu", up: qemuAlone },
  { subject: "colo-agent", up: withAgents },
] as const;

const caseName = (rate: number): string => (rate === 0 ? "idle" : `${rate} MiB/s changed`);

export const benchCheckpoint: Bench = async (given) => {
  requireRoot("run this benchmark");
  if (!RATES_MIB_S.some((rate) => given.wanted(caseName(rate)))) return [];
  const results = new ResultSet("checkpoint");
  await withLabs([NAME], given, async (context) => {
    const repetitions = context.runs;
    for (let repetition = 1; repetition <= repetitions; repetition++) {
      for (const { subject, up } of SUBJECTS) {
        const where = `${subject}, ${repetition} of ${repetitions}`;
        const pair = await up((step) => context.progress(`${where}: ${step}`));
        try {
          await measurePair(context, results, subject, pair, where);
        } finally {
          await pair.down();
        }
      }
    }
  });
  // Only the agents withhold input: put each case together again.
  return Object.values(Object.groupBy(results.toJson(), (one) => one.case)).flatMap((one) => one ?? []);
};

async function qemuAlone(progress: (step: string) => void): Promise<RunningPair> {
  const pair = await QemuPair.up(
    { name: NAME, memoryMib: MEMORY_MIB, proxy: false, checkpointDelayMs: QEMU_DELAY_MS },
    progress,
  );
  return {
    namespaces: pair.namespaces,
    qmp: { primary: pair.spareQmp("a"), secondary: pair.spareQmp("b") },
    qemuPid: pair.pid("a"),
    down: () => pair.down(),
  };
}

async function withAgents(progress: (step: string) => void): Promise<RunningPair> {
  const lab = await Lab.up(
    {
      name: NAME,
      memoryMib: MEMORY_MIB,
      proxy: "agent",
      agentConfig: PATIENT_AGENTS,
      vmConfig: `checkpoint = { period_ms = ${PERIOD_MS}, ${PATIENT_CHECKPOINTS} }`,
    },
    progress,
  );
  return {
    namespaces: lab.namespaces,
    qmp: { primary: lab.host("a").qmp!, secondary: lab.host("b").qmp! },
    qemuPid: lab.process("qemu-a")!.pid,
    withheld: async () => {
      const text = await lab.metrics("a");
      return {
        seconds: sampleOf(text, "colo_checkpoint_duration_seconds_sum"),
        checkpoints: sampleOf(text, "colo_checkpoint_duration_seconds_count"),
      };
    },
    down: async () => void (await Lab.down(NAME)),
  };
}

async function measurePair(
  context: BenchContext,
  results: ResultSet,
  subject: Subject,
  pair: RunningPair,
  where: string,
): Promise<void> {
  const primary = await PauseWatch.open(pair.qmp.primary);
  const secondary = await PauseWatch.open(pair.qmp.secondary);
  const count = context.quick ? CHECKPOINTS_QUICK : CHECKPOINTS;
  try {
    for (const rate of RATES_MIB_S) {
      const name = caseName(rate);
      if (!context.wanted(name)) continue;
      context.progress(`${where}: ${name}`);
      if (rate > 0) await setDirtyRate(pair.namespaces, rate);
      primary.clear();
      await primary.until(SETTLE_CHECKPOINTS, TIMEOUT_MS);
      primary.clear();
      secondary.clear();
      const sentBefore = bytesSent(pair.qemuPid);
      const withheldBefore = await pair.withheld?.();
      await Promise.all([primary.until(count, TIMEOUT_MS), secondary.until(count, TIMEOUT_MS)]);
      const sentMib = (bytesSent(pair.qemuPid) - sentBefore) / 2 ** 20;
      const withheldAfter = await pair.withheld?.();

      const add = (metric: string, unit: string, value: number) =>
        results.add({ case: name, subject, metric, unit }, value);
      for (const [side, watch] of [
        ["primary", primary],
        ["secondary", secondary],
      ] as const) {
        const lengths = watch.lengthsMs();
        add(`${side} stopped`, "ms", median(lengths));
        add(`${side} stopped, longest`, "ms", Math.max(...lengths));
      }
      add("primary runs in between", "ms", median(primary.gapsMs()));
      add("sent to the secondary per checkpoint", "MiB", sentMib / primary.pauses.length);
      if (withheldBefore !== undefined && withheldAfter !== undefined) {
        const seconds = withheldAfter.seconds - withheldBefore.seconds;
        const checkpoints = withheldAfter.checkpoints - withheldBefore.checkpoints;
        add("primary's input withheld, mean", "ms", (seconds / checkpoints) * 1000);
      }
    }
  } finally {
    primary.close();
    secondary.close();
  }
}

/** Bytes that a process's host has sent over the replication link. */
function bytesSent(pid: number): number {
  const line = readFileSync(`/proc/${pid}/net/dev`, "latin1")
    .split("\n")
    .find((one) => one.trim().startsWith(`${REPLICATION_LINK}:`));
  if (line === undefined) throw new Error(`there is no interface ${REPLICATION_LINK} on the primary's host`);
  // receive: bytes packets errs drop fifo frame compressed multicast; transmit: bytes ...
  return Number(
    line
      .slice(line.indexOf(":") + 1)
      .trim()
      .split(/\s+/)[8],
  );
}

/** The only sample of that name in a Prometheus text. */
function sampleOf(text: string, name: string): number {
  const match = new RegExp(`^${name}(?:\\{.*\\})? (\\S+)$`, "m").exec(text);
  if (match === null) throw new Error(`the agent's metrics have no ${name}`);
  return Number(match[1]);
}

/** Tells the guest how much memory to change from now on; a program of the client's namespace does it. */
async function setDirtyRate(namespaces: LabNamespaces, mibPerSecond: number): Promise<void> {
  const program = `
    const socket = require("node:net").connect(${GUEST_PORTS.memory}, "${GUEST_IPV4}");
    socket.on("data", (answer) => { process.stdout.write(answer); process.exit(0); });
    socket.on("error", (error) => { process.stderr.write(error.message); process.exit(1); });
    socket.write("DIRTYRATE ${mibPerSecond}\\n");`;
  const child = Bun.spawn([...inNamespace(namespaces.client), process.execPath, "-e", program], {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: TIMEOUT_MS,
  });
  const [answer, complaint] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  if (answer !== "DONE\n") throw new Error(`the guest did not take DIRTYRATE: ${answer}${complaint}`);
}
