/** The agent of one host: its VMs, its peer, heartbeats and the HTTP interface. */
import { chmodSync, rmSync } from "node:fs";
import { join } from "node:path";
import type { Server } from "bun";
import { serveApi } from "../api/serve.ts";
import type { AgentStatus, CommandNumbers } from "../api/status.ts";
import { openArbiter } from "../arbiter/index.ts";
import { checkStreamTls } from "../certificates/qemu_files.ts";
import { agentPair, type Config } from "../config/config.ts";
import { divergenceRoutes } from "../divergence/routes.ts";
import { DivergenceStore } from "../divergence/store.ts";
import { bootMs } from "../host/clock.ts";
import { isLoopback } from "../host/endpoint.ts";
import { disableDelayedAck } from "../host/links.ts";
import type { Logger } from "../host/log.ts";
import { VERSION } from "../host/version.ts";
import type { HostParts } from "./adopt.ts";
import { ClientPath } from "./client_path.ts";
import { PeerUnreachableError } from "./control_channel.ts";
import { quickenAcks } from "./delayed_ack.ts";
import { openFence } from "./fence.ts";
import { Heartbeats } from "./heartbeats.ts";
import { VmKeeper } from "./keeper.ts";
import { AgentMetrics } from "./metrics/agent_metrics.ts";
import { removeUnconfigured } from "./open_proxy.ts";
import { checkedRequests, type HeartbeatAnswer, Peer } from "./peer_api.ts";
import { PeerClient } from "./peer_client.ts";
import { peerHandlers } from "./peer_requests.ts";
import { PeerServer } from "./peer_server.ts";
import { NoWatchdog, openWatchdog, type Watchdog } from "./watchdog.ts";

export class HostAgent {
  readonly #vms = new Map<string, VmKeeper>();
  readonly #server: PeerServer;
  readonly #client: PeerClient;
  readonly #peer: Peer;
  readonly #metrics = new AgentMetrics(VERSION);
  readonly #divergences: DivergenceStore;
  readonly #apis: Server<undefined>[] = [];
  #clientPath: ClientPath | undefined;
  #watchdog: Watchdog = new NoWatchdog();
  readonly #heartbeats = new Heartbeats(() =>
    [...this.#vms].map(([name, { instance }]) => [name, instance] as const),
  );
  #closed = false;
  readonly #failed = Promise.withResolvers<string>();
  readonly #restart = Promise.withResolvers<void>();

  private constructor(
    private readonly config: Config,
    private readonly log: Logger,
  ) {
    this.#server = new PeerServer(
      config.agent.control,
      config.peer.control.host,
      checkedRequests(
        peerHandlers({
          heartbeats: this.#heartbeats,
          instance: (vm) => this.#vm(vm).presentInstance,
        }),
      ),
      log,
    );
    this.#client = new PeerClient(config.peer.control, config.agent.control.host, log, {
      // Each time: a link that was down has lost its routes.
      up: () => {
        quickenAcks(config.peer.control.host, log);
      },
      down: () => {
        for (const { instance } of this.#vms.values()) instance?.tell({ type: "control_closed" });
      },
    });
    this.#peer = new Peer(this.#client);
    this.#divergences = new DivergenceStore({
      path: join(config.agent.state_directory, "divergences.sqlite"),
      log,
    });
  }

  /**
   * Starts everything; on an error nothing of it is left running. `objectPath`: the compiled BPF programs.
   */
  static async start(config: Config, log: Logger, objectPath: string): Promise<HostAgent> {
    const agent = new HostAgent(config, log);
    try {
      const arbiter = await openArbiter(config.arbiter, agentPair(config), log);
      const fence = openFence(config.fence);
      if (config.tls !== undefined) checkStreamTls(config.tls.directory, config.agent.name);
      agent.#createKeepers({
        arbiter,
        fence,
        peer: agent.#peer,
        metrics: agent.#metrics,
        divergences: agent.#divergences,
        log,
        objectPath,
        failed: (message) => agent.#failed.resolve(message),
      });
      // The peer may ask from here on: each configured VM has an entry, whether it has a QEMU yet or not.
      await agent.#server.listen();
      if (config.client_path !== undefined) {
        agent.#clientPath = await ClientPath.open(
          config.client_path,
          {
            asked: (request, answer) => agent.#heartbeats.came("client", request, answer),
            answered: (sentMs, asked, answer) => agent.#heartbeats.answered("client", sentMs, asked, answer),
          },
          log,
        );
      }
      await removeUnconfigured(config, log);
      for (const vm of agent.#vms.values()) await vm.begin();
      await disableDelayedAck(config.peer.control.host);
      const sources = { metrics: () => agent.#metrics.text(), status: () => agent.status() };
      // The guest's payload is for the administrator of this host; others that can reach the address get it
      // hidden.
      const payload = isLoopback(config.agent.api.host);
      const overTcp = divergenceRoutes(agent.#divergences, { payload });
      agent.#apis.push(serveApi(config.agent.api, { ...sources, divergences: overTcp }));
      const { socket } = config.agent;
      if (socket !== undefined) {
        rmSync(socket, { force: true }); // left behind by an agent that was killed
        const overSocket = divergenceRoutes(agent.#divergences);
        const command = agent.#command.bind(agent);
        const restart = agent.#announceRestart.bind(agent);
        agent.#apis.push(serveApi({ socket }, { ...sources, divergences: overSocket, command, restart }));
        chmodSync(socket, 0o600);
      }
      // Only now: from here on rounds follow each other, and adopting VMs may take longer than its timeout.
      agent.#watchdog = openWatchdog(config.watchdog, log);
      void agent.#loop();
      return agent;
    } catch (error) {
      await agent.close();
      throw error;
    }
  }

  #createKeepers(parts: HostParts): void {
    for (const vm of this.config.vm) this.#vms.set(vm.name, VmKeeper.create(vm, this.config, parts));
  }

  status(): AgentStatus {
    return {
      agent: this.config.agent.name,
      version: VERSION,
      pid: process.pid,
      peer: { name: this.config.peer.name, connected: this.#peer.connected },
      vms: [...this.#vms.values()].map((vm) => vm.status()),
    };
  }

  /**
   * Resolves when the administrator has asked for a restart and the peer knows of it; what follows is to be
   * {@link close}.
   */
  get restartWanted(): Promise<void> {
    return this.#restart.promise;
  }

  /**
   * Resolves with a sentence when a data plane has failed. The kernel drops and the lease runs out until a
   * new agent adopts the VMs.
   */
  get failed(): Promise<string> {
    return this.#failed.promise;
  }

  async #announceRestart(): Promise<string> {
    const vms = [...this.#vms.values()];
    const announced = await Promise.allSettled(vms.map((vm) => vm.announceRestart()));
    const refusal = announced.find((one) => one.status === "rejected");
    if (refusal !== undefined) {
      for (const vm of vms) vm.cancelRestart();
      throw refusal.reason;
    }
    this.#restart.resolve();
    const { restart_ms } = this.config.heartbeat;
    return (
      `${this.config.agent.name}'s agent ends; protection continues if it starts again within ` +
      `${restart_ms / 1000} s`
    );
  }

  async close(): Promise<void> {
    this.#closed = true;
    for (const api of this.#apis) await api.stop(true);
    this.#client.close();
    this.#clientPath?.close();
    this.#watchdog.close();
    this.#server.close();
    for (const vm of this.#vms.values()) await vm.close();
    this.#divergences.close();
  }

  /**
   * The agent's main loop. All that keeps a VM sending comes from a completed round of it, so that an agent
   * that is stuck anywhere stops sending.
   */
  async #loop(): Promise<void> {
    const { interval_ms } = this.config.heartbeat;
    while (!this.#closed) {
      const begun = performance.now();
      for (const { instance } of this.#vms.values()) instance?.round();
      this.#watchdog.kick();
      void this.#sendHeartbeats();
      await Bun.sleep(Math.max(1, begun + interval_ms - performance.now()));
    }
  }

  async #sendHeartbeats(): Promise<void> {
    const sentMs = bootMs();
    const asked = this.#heartbeats.request();
    this.#clientPath?.ask(asked, sentMs);
    if (!this.#client.connected) return;
    let answer: HeartbeatAnswer;
    try {
      answer = await this.#peer.ask("heartbeat", asked, this.config.heartbeat.timeout_ms);
    } catch (error) {
      if (!(error instanceof PeerUnreachableError)) this.log.warn("heartbeat", { error });
      return;
    }
    this.#heartbeats.answered("control", sentMs, asked, answer);
  }

  #command(name: string, command: string, numbers: CommandNumbers): string {
    const vm = this.#vm(name);
    vm.command(command, numbers);
    return vm.status().words.now;
  }

  #vm(name: string): VmKeeper {
    const vm = this.#vms.get(name);
    if (vm === undefined)
      throw new Error(`VM ${name} is not in the configuration of ${this.config.agent.name}`);
    return vm;
  }
}
