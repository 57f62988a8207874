/** From a QEMU that runs to an instance that keeps it: builds all its parts, complete. */
import type { Arbiter } from "../arbiter/index.ts";
import { inspectQemu } from "../colo/check.ts";
import type { Config, VmConfig } from "../config/config.ts";
import { DivergenceRecorder } from "../divergence/recorder.ts";
import type { DivergenceStore } from "../divergence/store.ts";
import type { Event } from "../failover/events.ts";
import type { QemuHas, Settings, State } from "../failover/state.ts";
import { ROLE } from "../ffi/layout.ts";
import type { Logger } from "../host/log.ts";
import type { PacketProxy } from "../proxy/proxy.ts";
import { QmpClient } from "../qmp/client.ts";
import type { ReplicaMarker } from "../storage/replica_marker.ts";
import type { Fence } from "./fence.ts";
import { VmInstance } from "./instance.ts";
import type { ReplicaAtRest } from "./instance_memory.ts";
import type { Machine } from "./machine.ts";
import type { AgentMetrics } from "./metrics/agent_metrics.ts";
import { openProxy } from "./open_proxy.ts";
import type { Peer } from "./peer_api.ts";
import { Primary } from "./primary.ts";
import { whatQemuHas } from "./qemu_found.ts";
import { QemuWatch } from "./qemu_watch.ts";
import { Secondary } from "./secondary.ts";
import { streamTls } from "./stream_tls.ts";
import type { Tuning } from "./tuning.ts";

const ARBITER_RETRY_MS = 300;
/** Pause between attempts to protect a VM that runs alone while the peer offers a replica. */
const PROTECT_RETRY_MS = 1_000;
const TAKEOVER_PATIENCE_MS = 10_000;
/** What a QEMU has where the data plane could not be kept as an earlier agent left it. */
const WITHOUT_DATA_PLANE: Partial<Record<QemuHas, QemuHas>> = { protected: "running", following: "replica" };

/** What all VMs of a host share. */
export interface HostParts {
  arbiter: Arbiter;
  fence: Fence;
  peer: Peer;
  metrics: AgentMetrics;
  divergences: DivergenceStore;
  log: Logger;
  /** The compiled BPF programs. */
  objectPath: string;
  /** A data plane has failed: only a new agent can continue from here. */
  failed(message: string): void;
}

/** What outlives one instance of a VM. */
interface VmParts {
  tuning: Tuning;
  /** Of a managed VM. */
  marker: ReplicaMarker | undefined;
  /** The replica that this host's agent left in good order before it was restarted. */
  rest: ReplicaAtRest | undefined;
  phaseChanged(state: Readonly<State>): void;
}

/**
 * Adopts the VM's QEMU. Everything that can be wrong with the configuration is found before the tap's traffic
 * is touched.
 * @throws Error whose message says what to do
 */
export async function adopt(
  config: VmConfig,
  agent: Config,
  host: HostParts,
  { tuning, marker, rest, phaseChanged }: VmParts,
): Promise<VmInstance> {
  const log = host.log.child({ vm: config.name });
  // What reports to the instance is made before it.
  let instance: VmInstance | undefined;
  let gone: string | undefined;
  const built = () => {
    if (instance === undefined) throw new Error(`the instance of VM ${config.name} is still being built`);
    return instance;
  };
  const tell = (event: Event) => instance?.tell(event);
  const qmp = await QmpClient.connect(config.qmp, {
    onClose: ({ message }) => {
      gone = message;
      instance?.qemuClosed(message);
    },
  });
  let proxy: PacketProxy | undefined;
  try {
    const facts = await inspectQemu(qmp);
    const found = await whatQemuHas(qmp, facts, rest !== undefined);
    const keep = found === "protected" ? ROLE.PRIMARY : found === "following" ? ROLE.SECONDARY : undefined;
    log.info("QEMU", { version: facts.version, verdict: facts.verdict.sentence, found });
    proxy = await openProxy(
      config,
      agent,
      { objectPath: host.objectPath, qmp: () => qmp, log, keep },
      {
        diverged: (divergence, epoch) => instance?.primary.diverged(divergence, epoch),
        differed: (tap) => instance?.primary.differed(tap),
        broken: (reason) => tell({ type: "pair_broken", reason }),
        failed: (message) => {
          log.error("the data plane failed; the VM's output stays held", { message });
          host.failed(`the data plane of VM ${config.name} failed: ${message}`);
        },
      },
    );
    const machine: Machine = {
      config,
      tuning,
      marker,
      qmp,
      proxy,
      peer: host.peer,
      replicationAddress: agent.agent.control.host,
      tls: streamTls(agent),
      log,
      metrics: host.metrics.vm(config.name, () => built().reading()),
      divergences: new DivergenceRecorder(host.divergences, config.name),
    };
    instance = new VmInstance({
      machine,
      settings: settingsOf(config, agent, host, proxy),
      primary: new Primary(machine, (reason) => tell({ type: "pair_broken", reason })),
      secondary: new Secondary(machine),
      qemuWatch: new QemuWatch(qmp, config, tell),
      arbiter: host.arbiter,
      fence: host.fence,
      agents: { name: agent.agent.name, peer: agent.peer.name },
      peerHost: agent.peer.control.host,
      restartMs: agent.heartbeat.restart_ms,
      rest,
      phaseChanged,
    });
    if (facts.unsuitable !== undefined)
      log.error("this VM cannot be protected and runs alone", { reason: facts.unsuitable });
    const has = proxy.adoption?.kept ? found : (WITHOUT_DATA_PLANE[found] ?? found);
    const generation = has === "following" ? rest?.generation : undefined;
    instance.tell({ type: "started", vm: has, generation, unsuitable: facts.unsuitable });
    if (gone !== undefined) instance.qemuClosed(gone);
    return instance;
  } catch (error) {
    qmp.close();
    await proxy?.close();
    throw error;
  }
}

function settingsOf(
  config: VmConfig,
  agent: Config,
  { arbiter, fence }: HostParts,
  proxy: PacketProxy,
): Settings {
  return {
    self: agent.agent.name,
    peer: agent.peer.name,
    configuredRole: config.initial_role,
    arbiter: arbiter.configured,
    timeoutMs: agent.heartbeat.timeout_ms,
    leaseMs: agent.heartbeat.lease_ms,
    marginMs: agent.heartbeat.margin_ms,
    arbiterRetryMs: ARBITER_RETRY_MS,
    protectRetryMs: PROTECT_RETRY_MS,
    restartMs: agent.heartbeat.restart_ms,
    takeoverPatienceMs: TAKEOVER_PATIENCE_MS,
    // QEMU's proxy keeps no state that a new agent could adopt.
    adoptable: proxy.adoption !== undefined,
    fence: fence.policy,
  };
}
