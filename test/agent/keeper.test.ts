/**
 * One QEMU after the other, with the real keeper, instance and decisions; QEMU and its data plane are the
 * test's.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { adopt, HostParts } from "../../src/agent/adopt.ts";
import { openFence } from "../../src/agent/fence.ts";
import { VmInstance } from "../../src/agent/instance.ts";
import { VmKeeper } from "../../src/agent/keeper.ts";
import type { Machine } from "../../src/agent/machine.ts";
import { AgentMetrics } from "../../src/agent/metrics/agent_metrics.ts";
import { Peer } from "../../src/agent/peer_api.ts";
import { Primary } from "../../src/agent/primary.ts";
import { QemuWatch } from "../../src/agent/qemu_watch.ts";
import { Secondary } from "../../src/agent/secondary.ts";
import type { Arbiter, SwapResult } from "../../src/arbiter/index.ts";
import { parseConfig } from "../../src/config/load.ts";
import { DivergenceRecorder } from "../../src/divergence/recorder.ts";
import { DivergenceStore } from "../../src/divergence/store.ts";
import type { QemuHas, Settings, State } from "../../src/failover/state.ts";
import type { VmRecord, VmRecordUpdate } from "../../src/failover/vm_record.ts";
import { createLogger } from "../../src/host/log.ts";
import type { PacketProxy } from "../../src/proxy/proxy.ts";
import { ProcessEndError } from "../../src/qemu/process.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { quiet, until } from "../until.ts";
import { ScriptedQmp } from "./scripted_qmp.ts";

/** This host holds the VM, whose QEMU is gone; the peer's replica is to take it over. */
const WAITS: VmRecord = { revision: 4, term: 2, generation: 3, holder: "host-a", replicaValid: true };
const log = createLogger("error");

/** The record in memory, as the witness keeps it. */
class Register implements Arbiter {
  readonly configured = true;
  readonly description = "a register";
  record: VmRecord | undefined = WAITS;
  /** Happens before the next write arrives. */
  beforeWrite: () => void = () => undefined;

  async read(): Promise<VmRecord | undefined> {
    return this.record;
  }

  async compareAndSwap(_: string, revision: number, update: VmRecordUpdate): Promise<SwapResult> {
    this.beforeWrite();
    if (revision !== (this.record?.revision ?? 0)) return { swapped: false, current: this.record };
    this.record = { ...update, revision: revision + 1 };
    return { swapped: true, record: this.record };
  }
}

/** A data plane that passes nothing on. */
const proxy: PacketProxy = {
  kind: "ebpf",
  epoch: 0,
  block: () => undefined,
  extendLease: () => undefined,
  dropLease: () => undefined,
  passAlone: async () => 0,
  hold: async () => ({ epoch: 1, nics: [] }),
  follow: async () => undefined,
  takeOver: async () => undefined,
  takenOver: async () => undefined,
  ping: async () => undefined,
  close: async () => undefined,
};

let directory: string;
let arbiter: Register;
let server: ScriptedQmp;
let keeper: VmKeeper;
let divergences: DivergenceStore;
/** What is done to the host's QEMU, in order. */
let done: string[];
let qemuRuns: boolean;
/** What the next QEMU has. */
let has: QemuHas;
let endFails: Error | undefined;

const CONFIG = `
[agent]
name = "host-a"
control = "198.18.1.1:7400"
state_directory = "DIRECTORY"
[peer]
name = "host-b"
control = "198.18.1.2:7400"
[[vm]]
name = "vm1"
initial_role = "primary"
[[vm.nic]]
tap = "tap0"
mac = "52:54:00:12:34:56"
[vm.qemu]
command = ["qemu-system-x86_64"]
restart = false
`;

async function begin(): Promise<void> {
  const config = parseConfig(CONFIG.replace("DIRECTORY", directory), "agent.toml");
  const vm = config.vm[0];
  if (vm === undefined) throw new Error("the configuration has no VM");
  divergences = new DivergenceStore({ path: join(directory, "divergences.sqlite") });
  const unreachable = {
    connected: false,
    request: async () => {
      throw new Error("there is no peer");
    },
  };
  const parts: HostParts = {
    arbiter,
    fence: openFence(undefined),
    peer: new Peer(unreachable),
    metrics: new AgentMetrics("test"),
    divergences,
    log,
    objectPath: "",
    failed: () => undefined,
  };
  keeper = VmKeeper.create(vm, config, parts, {
    adopt: adoptScripted,
    checkTap: async () => undefined,
    findQemu: () => (qemuRuns ? { pid: 1, startTicks: 1 } : undefined),
    startQemu: async (_, role) => {
      done.push(`start ${role}`);
      qemuRuns = true;
      has = role === "primary" ? "running" : "incoming";
      return { pid: 1, startTicks: 1 };
    },
    endQemu: async () => {
      done.push("end");
      if (endFails !== undefined) throw endFails;
      qemuRuns = false;
    },
    commitOverlays: async () => [],
  });
  await keeper.begin();
}

const adoptScripted: typeof adopt = async (config, agent, host, { tuning, marker, rest, phaseChanged }) => {
  let instance: VmInstance | undefined;
  const qmp = await QmpClient.connect(join(directory, "qmp.sock"), {
    onClose: ({ message }) => instance?.qemuClosed(message),
  });
  const machine: Machine = {
    config,
    tuning,
    marker,
    qmp,
    proxy,
    peer: host.peer,
    replicationAddress: agent.agent.control.host,
    tls: undefined,
    log,
    metrics: host.metrics.vm(config.name, () => {
      if (instance === undefined) throw new Error("no instance yet");
      return instance.reading();
    }),
    divergences: new DivergenceRecorder(host.divergences, config.name),
  };
  const settings: Settings = {
    self: "host-a",
    peer: "host-b",
    configuredRole: "primary",
    arbiter: true,
    timeoutMs: 60_000,
    leaseMs: 60_000,
    marginMs: 1_000,
    arbiterRetryMs: 5,
    protectRetryMs: 60_000,
    restartMs: 60_000,
    takeoverPatienceMs: 0,
    adoptable: true,
    fence: "none",
  };
  instance = new VmInstance({
    machine,
    settings,
    primary: new Primary(machine, () => undefined),
    secondary: new Secondary(machine),
    qemuWatch: new QemuWatch(qmp, config, () => undefined),
    arbiter: host.arbiter,
    fence: host.fence,
    agents: { name: "host-a", peer: "host-b" },
    peerHost: agent.peer.control.host,
    restartMs: settings.restartMs,
    rest,
    phaseChanged,
  });
  instance.tell({ type: "started", vm: has });
  return instance;
};

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-keeper-"));
  arbiter = new Register();
  done = [];
  qemuRuns = false;
  has = "incoming";
  endFails = undefined;
  server = await ScriptedQmp.listen(join(directory, "qmp.sock"), (command) => {
    if (command === "query-migrate") return { status: "none" };
    if (command === "query-colo-status") return { mode: "none", "last-mode": "none", reason: "none" };
    if (["query-yank", "query-jobs", "qom-list", "query-block-jobs"].includes(command)) return [];
    if (command === "query-status") return { running: true, status: "running" };
    return undefined;
  });
});

afterEach(async () => {
  await keeper.close();
  divergences.close();
  server.close();
  rmSync(directory, { recursive: true, force: true });
});

const inPhase = (phase: State["phase"]) =>
  until(`the VM is ${phase}`, () => keeper.instance?.state.phase === phase, {
    seen: () => [keeper.status().phase, keeper.status().reason],
  });

describe("a VM whose replica is to take over, and does not", () => {
  test("boots from this host's disks, once the record says so", async () => {
    await begin();
    await inPhase("waiting");
    keeper.command("start", {});
    await inPhase("alone");
    expect(done).toEqual(["start secondary", "end", "start primary"]);
    expect(arbiter.record).toMatchObject({ holder: "host-a", term: 2, replicaValid: false });
  });

  test("does not boot if the peer takes over first, and `start` has no effect later", async () => {
    await begin();
    await inPhase("waiting");
    arbiter.beforeWrite = () => {
      arbiter.record = { revision: 9, term: 3, generation: 3, holder: "host-b", replicaValid: false };
    };
    keeper.command("start", {});
    await until("the lost write is known", () => keeper.status().reason === "host-b runs the VM");
    expect(() => keeper.command("start", {})).toThrow("there is nothing to start");
    // Later this host's QEMU becomes a replica, and the arbiter loses the record: an administrator has to
    // look.
    const instance = keeper.presentInstance;
    for (const type of ["prepare", "entered"] as const) {
      let refusal: string | undefined = "no answer";
      instance.ask({ type, generation: 4 }, (answer) => {
        refusal = answer;
      });
      expect(refusal).toBeUndefined();
    }
    arbiter.record = undefined;
    instance.tell({ type: "peer_gave_up", generation: 4, reason: "" });
    await until("it has stopped", () => keeper.status().phase === "stopped");
    expect(keeper.status().reason).toContain("the arbiter has lost this VM's record");
    await quiet(50);
    expect([keeper.instance === instance, done]).toEqual([true, ["start secondary"]]);
  });

  test("stops when the replica is gone too, and stays off where restart = false", async () => {
    mkdirSync(join(directory, "vm"));
    const kept = { recordSeen: true, lastRun: "with_replica" };
    writeFileSync(join(directory, "vm", "vm1.json"), JSON.stringify(kept));
    await begin();
    await inPhase("waiting");
    arbiter.record = { ...WAITS, revision: 5, replicaValid: false };
    await until("it is off", () => keeper.status().off);
    expect(keeper.status().reason).toContain("restart = false");
    expect(done).toEqual(["start secondary", "end"]);
  });
});

test("a QEMU that does not end does not stop the keeper: status says so, and it is tried again", async () => {
  await begin();
  await inPhase("waiting");
  endFails = new ProcessEndError("process 1 has not ended 30 s after SIGKILL (state D)");
  keeper.presentInstance.tell({ type: "qemu_gone", reason: "it hangs" });
  await until("that is said", () => keeper.status().reason?.includes("has not ended"));
  expect(keeper.status()).toMatchObject({ phase: "starting", off: false });
  expect(keeper.status().reason).toContain("the next attempt is in 1 s");
  endFails = undefined;
  keeper.command("start", {}); // wakes it
  await inPhase("waiting");
  expect(done).toEqual(["start secondary", "end", "end", "start secondary"]);
});

test("a VM has an entry before it has a QEMU", async () => {
  const starting = begin();
  expect(() => keeper.presentInstance).toThrow("VM vm1 has no QEMU on this host: the agent begins");
  await starting;
  await inPhase("waiting");
});
