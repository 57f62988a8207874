/**
 * What the actions set going, with QEMU and the data plane: they take time, hang and fail. After
 * src/agent/{primary,secondary}.ts.
 */
import type { Agent } from "./agent.ts";
import { type Procedure, ProcedureError } from "./procedure.ts";
import { Pair, type Qemu } from "./vm.ts";

const QEMU_SILENT_MS = 600;
const SLACK_MS = 300;
const STEP_TIMEOUT_MS = 2_000;
const POLL_MS = 25;

/** A command to QEMU that takes `ms`; QEMU may hang, and end. */
function* qmp(agent: Agent, qemu: Qemu, ms: number, timeoutMs: number, outOfBand = false): Procedure<void> {
  const { world } = agent;
  const deadlineMs = world.nowMs + timeoutMs;
  yield agent.sleep(ms);
  for (;;) {
    if (!qemu.alive) throw new ProcedureError("QEMU is gone");
    if (qemu.answers(world.nowMs, outOfBand)) return;
    if (world.nowMs > deadlineMs) throw new ProcedureError("QEMU does not answer");
    yield agent.sleep(POLL_MS);
  }
}

function ownQemu(agent: Agent): Qemu {
  const { qemu } = agent.host;
  if (qemu === undefined) throw new ProcedureError("QEMU is gone");
  return qemu;
}

/** Each round: does QEMU answer? (src/agent/qemu_watch.ts) */
export function look(agent: Agent): void {
  const { qemu, world } = agent.host;
  const { leaseFrom, phase } = agent.state;
  if (qemu?.hang === undefined || !qemu.alive || qemu.answers(world.nowMs)) return;
  const silentMs = world.nowMs - qemu.hangSinceMs;
  if (qemu.hang === "silent") {
    if (silentMs > QEMU_SILENT_MS && (leaseFrom === "peer" || phase === "standby"))
      agent.tell({ type: "qemu_silent", reason: "QEMU hangs" });
  } else if (silentMs > QEMU_SILENT_MS + SLACK_MS && leaseFrom === "peer") {
    agent.tell({ type: "qemu_slow", reason: "QEMU's main loop hangs" });
  }
}

export function passAlone(agent: Agent): void {
  agent.host.release();
  agent.host.setRole("solo");
  agent.host.release();
}

export function* runAlone(agent: Agent): Procedure<void> {
  const { random } = agent.world;
  yield agent.sleep(random.skewed(0, 5));
  passAlone(agent);
  const qemu = ownQemu(agent);
  const { pair } = qemu;
  if (pair === undefined && !qemu.paused) return;
  yield* qmp(agent, qemu, random.skewed(5, 200), STEP_TIMEOUT_MS);
  if (pair !== undefined) pair.broken = true;
  qemu.pair = undefined;
  qemu.paused = false;
}

export function* probe(agent: Agent): Procedure<void> {
  const { random } = agent.world;
  const qemu = ownQemu(agent);
  yield* qmp(agent, qemu, random.skewed(0.5, 20), STEP_TIMEOUT_MS, true);
  // What it hung on is cut.
  if (qemu.pair !== undefined) qemu.pair.broken = true;
  if (qemu.hang === "slow" && random.chance(0.7)) qemu.hang = undefined;
  yield* qmp(agent, qemu, random.skewed(0.5, 20), STEP_TIMEOUT_MS);
}

function dataFlows(agent: Agent, own: Qemu, theirs: Qemu): boolean {
  const { world, host } = agent;
  const peer = theirs.host;
  const { network, nowMs } = world;
  return (
    own.answers(nowMs) &&
    theirs.answers(nowMs) &&
    peer.up &&
    network.linkUp(host, peer, "control") &&
    network.linkUp(peer, host, "control")
  );
}

export function* protect(agent: Agent, generation: number, progress: { entered: boolean }): Procedure<void> {
  const { world, host } = agent;
  const { random } = world;
  const qemu = ownQemu(agent);
  let pair: Pair | undefined;
  try {
    yield agent.asks("prepare_secondary", generation, 8_000);
    const theirs = world.peerOf(host).qemu;
    if (theirs === undefined || theirs.mode !== "receiving") throw new ProcedureError("the migration failed");
    // Disk and memory are copied while the VM runs.
    for (let leftMs = random.skewed(200, 4_000); leftMs > 0; leftMs -= 100) {
      yield agent.sleep(Math.min(100, leftMs));
      if (!qemu.alive || !theirs.alive) throw new ProcedureError("the migration failed");
    }
    for (let waitedMs = 0; !dataFlows(agent, qemu, theirs); waitedMs += 50) {
      if (waitedMs > 3_000 || !qemu.alive || !theirs.alive) throw new ProcedureError("the migration stalls");
      yield agent.sleep(50);
    }
    if (random.chance(0.03)) throw new ProcedureError("the migration failed by chance");
    qemu.paused = true;
    progress.entered = true;
    host.setRole("primary");
    yield agent.asks("enter_secondary", generation, 2_000);
    if (theirs.mode !== "receiving") throw new ProcedureError("the secondary's QEMU is another one");
    pair = new Pair(qemu, theirs);
    qemu.pair = pair;
    theirs.pair = pair;
    theirs.mode = "secondary";
    theirs.state = qemu.state;
    qemu.paused = false;
    agent.pair = pair;
    for (let i = 0; i < 2; i++) {
      yield agent.sleep(random.skewed(5, 2_500)); // all memory is copied
      yield* checkpoint(agent, pair);
    }
  } catch (error) {
    if (pair === undefined && progress.entered) {
      qemu.paused = false;
      passAlone(agent);
      progress.entered = false;
    }
    throw error;
  }
}

function* checkpoint(agent: Agent, pair: Pair): Procedure<void> {
  const { world, host } = agent;
  const { random } = world;
  const qemu = pair.primary;
  yield* qmp(agent, qemu, random.skewed(0.5, 10), STEP_TIMEOUT_MS);
  if (pair.broken) throw new ProcedureError("QEMU has left COLO");
  qemu.paused = true;
  const boundary = qemu.state;
  yield (resume, fail) => {
    const timer = world.after(STEP_TIMEOUT_MS, () =>
      agent.post(() => fail(new ProcedureError("the secondary did not load the checkpoint in time"))),
    );
    const before = pair.secondary.loads;
    agent.peerLoaded = (loads) => {
      if (loads <= before) return; // of a checkpoint that an earlier agent had asked for
      world.queue.cancel(timer);
      agent.peerLoaded = undefined;
      resume();
    };
    const secondary = pair.secondary.host.agent;
    world.engine.transfer(pair, () =>
      secondary?.post(() => {
        if (secondary.following && secondary.host.qemu === pair.secondary)
          secondary.request(
            "loaded",
            { generation: secondary.state.generation, reason: "", loads: pair.secondary.loads },
            1_000,
          );
      }),
    );
  };
  if (host.kernel.role === "primary") agent.host.release(boundary);
  world.coverage.count("checkpoints");
  for (let waitedMs = 0; qemu.paused; waitedMs += 5) {
    if (!qemu.alive || pair.broken) throw new ProcedureError("QEMU has left COLO");
    if (waitedMs > STEP_TIMEOUT_MS) throw new ProcedureError("the primary does not resume");
    yield agent.sleep(5);
  }
}

/** What an earlier agent had begun continues with a checkpoint. */
export function* resume(agent: Agent, generation: number): Procedure<void> {
  const qemu = ownQemu(agent);
  const { pair } = qemu;
  yield agent.asks("resume_secondary", generation, STEP_TIMEOUT_MS);
  if (pair === undefined) throw new ProcedureError("there is no pair");
  for (let waitedMs = 0; qemu.paused; waitedMs += 5) {
    if (!qemu.alive || pair.broken) throw new ProcedureError("QEMU has left COLO");
    if (waitedMs > STEP_TIMEOUT_MS) throw new ProcedureError("the primary does not resume");
    yield agent.sleep(5);
  }
  agent.pair = pair;
  yield* checkpoint(agent, pair);
}

/** Tells the primary that its replica is followed again. */
export function* comeBack(agent: Agent, generation: number): Procedure<void> {
  while (agent.following) {
    try {
      yield agent.asks("back", generation, 1_000);
      return;
    } catch (error) {
      if (!(error instanceof ProcedureError)) throw error;
      yield agent.sleep(100);
    }
  }
}

/** The loop of checkpoints while the VM is protected. */
export function* checkpoints(agent: Agent): Procedure<void> {
  const { world } = agent;
  const { pair } = agent;
  if (pair === undefined) throw new ProcedureError("there is no pair");
  for (;;) {
    if (agent.lastCheckpoint === undefined) {
      yield (resume) => {
        const timer = world.after(world.random.between(300, 1_500), () => agent.post(resume));
        agent.wake = () => {
          agent.wake = undefined;
          world.queue.cancel(timer);
          agent.post(resume);
        };
      };
    }
    while (agent.paused) yield agent.sleep(5);
    if (pair.broken) throw new ProcedureError("QEMU has left COLO");
    const last = agent.lastCheckpoint;
    agent.inCheckpoint = true;
    try {
      yield* checkpoint(agent, pair);
    } finally {
      agent.inCheckpoint = false;
    }
    if (last === undefined) continue;
    agent.lastCheckpoint = undefined;
    last.resolve();
    return;
  }
}

export function* handOver(agent: Agent, generation: number): Procedure<void> {
  yield (resolve, fail) => {
    agent.lastCheckpoint = { resolve, fail };
    agent.wake?.();
  };
  yield agent.asks("succeed", generation, 1_000);
  yield agent.sleep(agent.world.random.between(3, 20));
}

export function* prepare(agent: Agent): Procedure<void> {
  const qemu = ownQemu(agent);
  agent.host.block();
  agent.host.held = []; // of another time: it is never to be seen
  yield* qmp(agent, qemu, agent.world.random.skewed(20, 500), STEP_TIMEOUT_MS);
  if (qemu.mode !== "incoming") throw new ProcedureError("QEMU does not wait for a migration");
  if (agent.world.random.chance(0.02)) throw new ProcedureError("QEMU refused by chance");
  qemu.mode = "receiving";
}

export function* promote(agent: Agent): Procedure<void> {
  const { host } = agent;
  const { random } = agent.world;
  const qemu = ownQemu(agent);
  yield agent.sleep(random.skewed(0.5, 50)); // query-status, not waited for long
  agent.following = false;
  if (host.kernel.role === "successor") {
    agent.host.release();
  } else {
    host.held = []; // of another time
    host.setRole("solo");
  }
  yield* qmp(agent, qemu, random.skewed(5, 100), STEP_TIMEOUT_MS);
  if (random.chance(0.02)) {
    qemu.hurt ??= "refused to fail over";
    throw new ProcedureError("QEMU refused by chance");
  }
  if (qemu.pair !== undefined) qemu.pair.broken = true;
  qemu.pair = undefined;
  qemu.mode = "running";
  qemu.paused = false;
}
