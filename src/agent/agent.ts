/** The agent of one host: its VMs, its peer, heartbeats and the HTTP interface. */
import { rmSync } from "node:fs";
import { join } from "node:path";
import type { Server } from "bun";
import { openArbiter } from "../arbiter/index.ts";
import { divergenceRoutes } from "../divergence/routes.ts";
import { DivergenceStore } from "../divergence/store.ts";
import { serveApi } from "./api.ts";
import { bootMs } from "./clock.ts";
import type { Config } from "./config.ts";
import { PeerClient, PeerServer, PeerUnreachableError } from "./control_channel.ts";
import type { Logger } from "./log.ts";
import { AgentMetrics } from "./metrics.ts";
import { disableDelayedAck } from "./netdev.ts";
import { type HeartbeatAnswer, Peer, type PeerRequests, type PeerRequestType } from "./peer_api.ts";
import { VERSION } from "./version.ts";
import { VmAgent } from "./vm.ts";

export class HostAgent {
  readonly #vms = new Map<string, VmAgent>();
  readonly #server: PeerServer;
  readonly #client: PeerClient;
  readonly #peer: Peer;
  readonly #metrics = new AgentMetrics(VERSION);
  readonly #divergences: DivergenceStore;
  readonly #apis: Server<undefined>[] = [];
  #timer: Timer | undefined;

  private constructor(
    private readonly config: Config,
    private readonly log: Logger,
  ) {
    this.#server = new PeerServer(
      config.agent.control,
      config.peer.control.host,
      (type, body) => this.#answer(type as PeerRequestType, body),
      log,
    );
    this.#client = new PeerClient(config.peer.control, config.agent.control.host, log, () => {
      for (const vm of this.#vms.values()) vm.peerDown();
    });
    this.#peer = new Peer(this.#client);
    this.#divergences = new DivergenceStore({
      path: join(config.agent.state_directory, "divergences.sqlite"),
      log,
    });
  }

  /** Starts everything; on an error nothing of it is left running. `objectPath`: the compiled BPF programs. */
  static async start(config: Config, log: Logger, objectPath: string): Promise<HostAgent> {
    const agent = new HostAgent(config, log);
    try {
      const arbiter = await openArbiter(config, log);
      await agent.#server.listen();
      for (const vm of config.vm) {
        const parts = {
          arbiter,
          peer: agent.#peer,
          metrics: agent.#metrics,
          divergences: agent.#divergences,
          log,
          objectPath,
        };
        agent.#vms.set(vm.name, await VmAgent.adopt(vm, config, parts));
      }
      await disableDelayedAck(config.peer.control.host);
      const sources = { metrics: () => agent.#metrics.text(), status: () => agent.status() };
      // The guest's payload is for the administrator of this host; others that can reach the address get it hidden.
      const payload = isLoopback(config.agent.api.host);
      const overTcp = divergenceRoutes(agent.#divergences, { payload });
      agent.#apis.push(serveApi(config.agent.api, { ...sources, divergences: overTcp }));
      const { socket } = config.agent;
      if (socket !== undefined) {
        rmSync(socket, { force: true }); // left behind by an agent that was killed
        const overSocket = divergenceRoutes(agent.#divergences);
        agent.#apis.push(serveApi({ socket }, { ...sources, divergences: overSocket }));
      }
      agent.#timer = setInterval(() => agent.#tick(), config.heartbeat.interval_ms);
      return agent;
    } catch (error) {
      await agent.close();
      throw error;
    }
  }

  status() {
    return {
      agent: this.config.agent.name,
      version: VERSION,
      pid: process.pid,
      peer: { name: this.config.peer.name, connected: this.#peer.connected },
      vms: [...this.#vms.values()].map((vm) => vm.status()),
    };
  }

  async close(): Promise<void> {
    clearInterval(this.#timer);
    for (const api of this.#apis) await api.stop(true);
    this.#client.close();
    this.#server.close();
    for (const vm of this.#vms.values()) await vm.close();
    this.#divergences.close();
  }

  #tick(): void {
    if (this.#client.connected) void this.#sendHeartbeat();
    for (const vm of this.#vms.values()) vm.tick();
  }

  async #sendHeartbeat(): Promise<void> {
    const sentMs = bootMs();
    const vms = [...this.#vms.values()].map((vm) => vm.heartbeat).filter((beat) => beat !== undefined);
    let answer: HeartbeatAnswer;
    try {
      answer = await this.#peer.ask("heartbeat", { vms }, this.config.heartbeat.timeout_ms);
    } catch (error) {
      if (!(error instanceof PeerUnreachableError)) this.log.warn("heartbeat", { error });
      return;
    }
    const asked = new Set(vms.map((vm) => vm.name));
    for (const [name, vm] of this.#vms) {
      const about = answer.vms[name];
      if (about === undefined) continue;
      // An answer about a VM that was not asked about says only whether the peer is ready.
      if (asked.has(name)) vm.onHeartbeatAnswer(sentMs, about);
      else vm.onPeerReady(about.ready);
    }
  }

  #answerHeartbeat(request: PeerRequests["heartbeat"][0]): HeartbeatAnswer {
    const accepted = new Set<string>();
    for (const { name } of request.vms) {
      if (this.#vms.get(name)?.onHeartbeat()) accepted.add(name);
    }
    const vms: HeartbeatAnswer["vms"] = {};
    for (const [name, vm] of this.#vms) {
      vms[name] = { accepted: accepted.has(name), ready: vm.ready, phase: vm.phase };
    }
    return { vms };
  }

  #vm(name: string): VmAgent {
    const vm = this.#vms.get(name);
    if (vm === undefined)
      throw new Error(`VM ${name} is not in the configuration of ${this.config.agent.name}`);
    return vm;
  }

  async #answer(type: PeerRequestType, raw: unknown): Promise<unknown> {
    switch (type) {
      case "heartbeat":
        return this.#answerHeartbeat(raw as PeerRequests["heartbeat"][0]);
      case "prepare_secondary": {
        const body = raw as PeerRequests["prepare_secondary"][0];
        return this.#vm(body.vm).asSecondary.prepare();
      }
      case "enter_secondary": {
        const body = raw as PeerRequests["enter_secondary"][0];
        this.#vm(body.vm).asSecondary.enter(
          body.epoch,
          body.mirroredFrames,
          Buffer.from(body.connections, "base64"),
        );
        return {};
      }
      case "abandon": {
        const body = raw as PeerRequests["abandon"][0];
        this.#vm(body.vm).asSecondary.abandon(body.reason);
        return {};
      }
      case "drain_input": {
        const body = raw as PeerRequests["drain_input"][0];
        return {
          drained: await this.#vm(body.vm).asSecondary.drainInput(body.mirroredFrames, body.timeoutMs),
        };
      }
      case "loaded": {
        const body = raw as PeerRequests["loaded"][0];
        this.#vm(body.vm).asPrimary.peerLoaded(body.epoch);
        return {};
      }
      case "replica_lost": {
        const body = raw as PeerRequests["replica_lost"][0];
        void this.#vm(body.vm).asPrimary.goAlone(body.reason);
        return {};
      }
      case "checkpoint_wanted": {
        const body = raw as PeerRequests["checkpoint_wanted"][0];
        this.#vm(body.vm).asPrimary.checkpointWanted(body.reason);
        return {};
      }
      case "give_up": {
        const body = raw as PeerRequests["give_up"][0];
        this.#vm(body.vm).asSecondary.giveUp(body.reason);
        return {};
      }
      default:
        throw new Error(
          `unknown request ${String(type)}; both hosts must run the same version of colo-agent`,
        );
    }
  }
}

function isLoopback(host: string): boolean {
  return host.startsWith("127.") || host === "::1" || host === "[::1]" || host === "localhost";
}
