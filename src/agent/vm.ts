/** One VM on this host: adopts its QEMU and its tap, finds out its role and passes events to the duty in charge. */
import { existsSync } from "node:fs";
import { DataPath } from "../datapath/handle.ts";
import { DivergenceRecorder } from "../divergence/recorder.ts";
import type { DivergenceStore } from "../divergence/store.ts";
import { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import { checkQemu } from "../qmp/check.ts";
import { QmpClient } from "../qmp/client.ts";
import type { Arbiter } from "../witness/client.ts";
import { Authority } from "./authority.ts";
import type { Config, VmConfig } from "./config.ts";
import { decideInitialRole } from "./decision.ts";
import type { Logger } from "./log.ts";
import { type Machine, type Phase, setPhase } from "./machine.ts";
import { type AgentMetrics, roleOf } from "./metrics.ts";
import { ensureDevices, type VmDevices } from "./netdev.ts";
import type { Peer } from "./peer_api.ts";
import { PrimaryDuty } from "./primary.ts";
import { SecondaryDuty } from "./secondary.ts";

const PIN_ROOT = "/sys/fs/bpf/colo-agent";
/** Pause between attempts to protect a VM that runs alone while the peer offers a replica. */
const PROTECT_RETRY_MS = 1_000;
const COLLECT_INTERVAL_MS = 10_000;
/** A closed connection may still retransmit its FIN: twice the maximum segment lifetime of Linux (TCP_TIMEWAIT_LEN). */
const CONNECTION_CLOSED_FOR_MS = 120_000;
/** As long as Linux's connection tracking keeps an established connection (nf_conntrack_tcp_timeout_established). */
const CONNECTION_IDLE_FOR_MS = 5 * 24 * 3_600_000;

export interface VmStatus {
  name: string;
  phase: Phase;
  role: string;
  protected: boolean;
  reason: string | undefined;
  epoch: number;
  term: number | undefined;
  tap: string;
  qmp: string;
  heartbeatAgeMs: number | undefined;
  framesHeld: number;
  counters: Record<string, number>;
}

export class VmAgent {
  #machine!: Machine;
  #primary: PrimaryDuty | undefined;
  #secondary: SecondaryDuty | undefined;
  #peerReady = false;
  #lastProtectMs = Number.NEGATIVE_INFINITY;
  #lastCollectMs = performance.now();

  private constructor(readonly config: VmConfig) {}

  /**
   * Adopts the VM. Everything that can be wrong with the configuration is found before the tap's traffic is touched.
   * Throws an Error whose message says what to do.
   */
  static async adopt(
    config: VmConfig,
    agent: Config,
    parts: {
      arbiter: Arbiter | undefined;
      peer: Peer;
      metrics: AgentMetrics;
      divergences: DivergenceStore;
      log: Logger;
      objectPath: string;
    },
  ): Promise<VmAgent> {
    const vm = new VmAgent(config);
    const log = parts.log.child({ vm: config.name });
    if (!existsSync(config.qmp)) {
      throw new Error(
        `VM ${config.name}: there is no QMP socket at ${config.qmp}; start its QEMU with -qmp unix:${config.qmp},server=on,wait=off`,
      );
    }
    const qmp = await QmpClient.connect(config.qmp, { onClose: (reason) => vm.#qemuClosed(reason.message) });
    let dataPlane: DataPlane | undefined;
    try {
      const facts = await checkQemu(qmp);
      log.info("QEMU", { version: facts.version, verdict: facts.verdict.sentence });
      const authority = new Authority(config.name, agent.agent.name, parts.arbiter, log);
      const record = await authority.refresh();
      const devices = await ensureDevices({
        tap: config.tap,
        tunnelId: config.tunnel_id,
        tunnelPort: config.tunnel_port,
        peerAddress: agent.peer.control.host,
      });
      dataPlane = loadDataPlane(config, agent, devices, parts.objectPath);
      // A state that an earlier agent left behind is closed before anything looks at it.
      dataPlane.state.leaseDeadlineNs = 0n;
      dataPlane.state.role = ROLE.BLOCKED;
      const dataPath = openDataPath(vm, config, dataPlane, devices);
      await dataPath.ready();
      vm.#machine = {
        config,
        heartbeat: agent.heartbeat,
        qmp,
        dataPlane,
        dataPath,
        authority,
        peer: parts.peer,
        replicationAddress: agent.agent.control.host,
        log,
        metrics: parts.metrics.vm(config.name, () => vm.#reading()),
        divergences: new DivergenceRecorder(parts.divergences, config.name),
        phase: "starting",
        reason: undefined,
      };
      const role = decideInitialRole(record, agent.agent.name, config.initial_role);
      if (role === "primary") {
        await authority.writeReplicaValid(false, AbortSignal.timeout(60_000));
        vm.#primary = new PrimaryDuty(vm.#machine, dataPlane.state.epoch);
        await vm.#primary.adopt(facts.migrationStatus);
      } else {
        vm.#secondary = new SecondaryDuty(vm.#machine, (epoch) => vm.#taken(epoch));
        setPhase(vm.#machine, "waiting");
      }
      return vm;
    } catch (error) {
      qmp.close();
      dataPlane?.close();
      throw error;
    }
  }

  get phase(): Phase {
    return this.#machine.phase;
  }

  /** The VM and the term to send in heartbeats; undefined when there is nothing to keep alive. */
  get heartbeat(): { name: string; term: number } | undefined {
    if (!this.#primary?.wantsHeartbeat) return undefined;
    return { name: this.config.name, term: this.#machine.authority.record?.term ?? 0 };
  }

  /** Whether this host's QEMU waits for a primary. */
  get ready(): boolean {
    return this.#machine.phase === "waiting";
  }

  tick(): void {
    this.#primary?.tick();
    this.#secondary?.tick();
    this.#collectConnections();
    if (this.#primary !== undefined && this.#machine.phase === "alone" && this.#peerReady) {
      const now = performance.now();
      if (now - this.#lastProtectMs < PROTECT_RETRY_MS) return;
      this.#lastProtectMs = now;
      this.#primary.protect().catch(() => undefined); // logged there; tried again
    }
  }

  /** The peer's heartbeat for this VM, which it holds. */
  onHeartbeat(): boolean {
    return this.#secondary?.heartbeat() ?? false;
  }

  /** The peer's answer about this VM. */
  onHeartbeatAnswer(sentMs: number, answer: { accepted: boolean; ready: boolean }): void {
    this.#peerReady = answer.ready;
    this.#primary?.heartbeatAnswered(sentMs, answer.accepted);
  }

  onPeerReady(ready: boolean): void {
    this.#peerReady = ready;
  }

  peerDown(): void {
    this.#peerReady = false;
    this.#secondary?.peerDown();
    void this.#primary?.goAlone("the connection to the secondary's agent closed");
  }

  get asSecondary(): SecondaryDuty {
    if (this.#secondary === undefined)
      throw new Error(`this host holds VM ${this.config.name}; it is no secondary`);
    return this.#secondary;
  }

  get asPrimary(): PrimaryDuty {
    if (this.#primary === undefined) throw new Error(`this host does not hold VM ${this.config.name}`);
    return this.#primary;
  }

  status(): VmStatus {
    const reading = this.#reading();
    return {
      name: this.config.name,
      phase: reading.phase,
      role: roleOf(reading.phase),
      protected: reading.phase === "protected",
      reason: this.#machine.reason,
      epoch: reading.epoch,
      term: this.#machine.authority.record?.term,
      tap: this.config.tap,
      qmp: this.config.qmp,
      heartbeatAgeMs: reading.heartbeatAgeMs,
      framesHeld: reading.shared.stat("held_frames"),
      counters: reading.counters,
    };
  }

  /** Ends the agent's part; filters stay, so that nothing unverified leaves without it. */
  async close(): Promise<void> {
    await this.#machine.dataPath.close();
    this.#machine.qmp.close();
    this.#machine.dataPlane.close();
  }

  onDiverged(...args: Parameters<PrimaryDuty["diverged"]>): void {
    this.#primary?.diverged(...args);
  }

  onDataPathFailed(message: string): void {
    const machine: Machine | undefined = this.#machine; // it can fail before the VM is adopted
    if (machine === undefined) throw new Error(`the data path failed: ${message}`);
    machine.log.error("the data path failed; the VM's output stays held", { message });
    process.exitCode = 1;
    // A new agent adopts the VM; until then the kernel drops and the lease runs out.
    process.exit();
  }

  /** Forgets connections that have ended. */
  #collectConnections(): void {
    const now = performance.now();
    if (now - this.#lastCollectMs < COLLECT_INTERVAL_MS) return;
    this.#lastCollectMs = now;
    this.#machine.dataPlane.collectConnections({
      closedForMs: CONNECTION_CLOSED_FOR_MS,
      idleForMs: CONNECTION_IDLE_FOR_MS,
    });
  }

  #taken(epoch: number): void {
    this.#secondary = undefined;
    this.#primary = new PrimaryDuty(this.#machine, epoch);
    void this.#primary.runAlone();
  }

  #qemuClosed(reason: string): void {
    if (this.#machine === undefined) return;
    this.#machine.log.error("QEMU is gone", { reason });
    void this.#primary?.qemuLost(reason);
    void this.#secondary?.qemuLost(reason);
  }

  #reading() {
    const machine = this.#machine;
    return {
      phase: machine.phase,
      epoch: this.#primary?.epoch ?? this.#secondary?.epoch ?? 0,
      heartbeatAgeMs: this.#primary?.heartbeatAgeMs() ?? this.#secondary?.heartbeatAgeMs(),
      shared: machine.dataPath.shared,
      counters: machine.dataPlane.counters(),
    };
  }
}

/** Marks live in the skb only inside this host; the tunnel id keeps those of several VMs apart. */
function marks(tunnelId: number) {
  return {
    injectMark: 0xc0100000 + tunnelId,
    deliverMark: 0xc0200000 + tunnelId,
    replayMark: 0xc0300000 + tunnelId,
  };
}

function loadDataPlane(config: VmConfig, agent: Config, devices: VmDevices, objectPath: string): DataPlane {
  const [a, b, c, d] = agent.peer.control.host.split(".").map(Number) as [number, number, number, number];
  const dataPlane = DataPlane.load({
    objectPath,
    pinDirectory: `${PIN_ROOT}/${agent.agent.name}/${config.name}`,
    settings: {
      tapIfindex: devices.tapIfindex,
      tunnelIfindex: devices.tunnelIfindex,
      peerIpv4: a * 2 ** 24 + b * 2 ** 16 + c * 2 ** 8 + d,
      tunnelId: config.tunnel_id,
      ...marks(config.tunnel_id),
    },
    ringBytes: config.ring_bytes,
    connectionsMax: config.connections_max,
  });
  dataPlane.attach({
    tapIfindex: devices.tapIfindex,
    tunnelIfindex: devices.tunnelIfindex,
    injectIfindex: devices.injectIfindex,
  });
  return dataPlane;
}

function openDataPath(vm: VmAgent, config: VmConfig, dataPlane: DataPlane, devices: VmDevices): DataPath {
  const { ringFds, ringBytes } = dataPlane;
  return new DataPath(
    {
      primaryRing: { fd: ringFds.primary, bytes: ringBytes.primary },
      secondaryRing: { fd: ringFds.secondary, bytes: ringBytes.secondary },
      inputRing: { fd: ringFds.input, bytes: ringBytes.input },
      doorbellFd: ringFds.doorbell,
      stateFd: dataPlane.stateFd,
      injectIfindex: devices.injectIfindex,
      tapIfindex: devices.tapIfindex,
      replayMark: marks(config.tunnel_id).replayMark,
      maxWaitMs: config.checkpoint.max_wait_ms,
      rules: { passthrough: config.passthrough, ignore: config.ignore },
      limits: {
        heldFramesMax: config.limits.held_frames_max,
        heldFramesPerFlowMax: config.limits.held_frames_per_flow_max,
        flowsMax: config.limits.flows_max,
      },
    },
    {
      diverged: (divergence, epoch) => vm.onDiverged(divergence, epoch),
      failed: (message) => vm.onDataPathFailed(message),
    },
  );
}
