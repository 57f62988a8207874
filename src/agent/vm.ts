/** One VM on this host: tells src/failover/decide.ts what happens and carries out what it decides. */
import type { OperatorCommand, VmStatus } from "../api/status.ts";
import type { Arbiter } from "../arbiter/index.ts";
import { inspectQemu } from "../colo/check.ts";
import type { Config, VmConfig } from "../config/config.ts";
import { DivergenceRecorder } from "../divergence/recorder.ts";
import type { DivergenceStore } from "../divergence/store.ts";
import { nextDeadlineMs } from "../failover/deadlines.ts";
import { decide, heartbeatGeneration } from "../failover/decide.ts";
import { describe } from "../failover/describe.ts";
import {
  type Action,
  type ArbiterResult,
  type Event,
  initialState,
  isHolder,
  type Path,
  PHASES,
  type Phase,
  type QemuHas,
  type Settings,
  type State,
} from "../failover/state.ts";
import { isRunning } from "../ffi/interface_flags.ts";
import { ROLE } from "../ffi/layout.ts";
import { bootMs } from "../host/clock.ts";
import { disableDelayedAck } from "../host/links.ts";
import type { Logger } from "../host/log.ts";
import { countersOf, type PacketProxy, type ProxyEntry, type ProxyKind } from "../proxy/proxy.ts";
import { QmpClient } from "../qmp/client.ts";
import type { ReplicaMarker } from "../storage/replica_marker.ts";
import type { Fence } from "./fence.ts";
import type { ReplicaAtRest } from "./life_memory.ts";
import type { Machine } from "./machine.ts";
import type { AgentMetrics } from "./metrics/agent_metrics.ts";
import { openProxy } from "./open_proxy.ts";
import type { Peer, SecondaryAddresses } from "./peer_api.ts";
import { Primary, type ProtectionError } from "./primary.ts";
import { whatQemuHas } from "./qemu_found.ts";
import { QemuWatch } from "./qemu_watch.ts";
import { Secondary } from "./secondary.ts";
import { streamTls } from "./stream_tls.ts";
import type { Tuning } from "./tuning.ts";

const ARBITER_RETRY_MS = 300;
/** Pause between attempts to protect a VM that runs alone while the peer offers a replica. */
const PROTECT_RETRY_MS = 1_000;
const TELL_TIMEOUT_MS = 1_000;
/** Procedures that do not end by themselves once QEMU is gone. */
const PROCEDURES_END_MS = 5_000;
/** By then the network has learnt from the VM's own frames where it is now. */
const RETIRE_MS = 1_000;
const COLLECT_INTERVAL_MS = 10_000;
/** What a QEMU has where the data plane could not be kept as an earlier agent has left it. */
const WITHOUT_DATA_PLANE: Partial<Record<QemuHas, QemuHas>> = { protected: "running", following: "replica" };

export class VmAgent {
  #machine!: Machine;
  #state: State;
  #primary!: Primary;
  #secondary!: Secondary;
  #qemuWatch!: QemuWatch;
  readonly #events: Event[] = [];
  #deciding = false;
  #deadline: Timer | undefined;
  /** The data plane has not answered since the last round. */
  #roundOpen = false;
  /** The last round was complete. */
  #living = false;
  /** What the peer's request is about that the decision under way may carry out. */
  #entry: ProxyEntry | undefined;
  #prepared: Promise<SecondaryAddresses> | undefined;
  #followed: Promise<void> = Promise.resolve();
  #rest: ReplicaAtRest | undefined;
  /** This agent is about to end. */
  #restarting = false;
  /** The replica's output waits for this host to be the VM's. */
  #succeeding = false;
  #lastCollectMs = performance.now();
  #closed = false;
  #qemuGone = false;
  /** Procedures under way, to be waited for before what they use is closed. */
  readonly #procedures = new Set<Promise<unknown>>();
  #retire: { timer: Timer; done: Promise<void> } | undefined;

  private constructor(
    readonly config: VmConfig,
    private readonly agent: Config,
    private readonly arbiter: Arbiter,
    private readonly fence: Fence,
    private readonly onPhase: (vm: VmAgent) => void,
  ) {
    this.#state = initialState(settingsOf(config, agent, arbiter, fence), bootMs());
  }

  /**
   * Adopts the VM. Everything that can be wrong with the configuration is found before the tap's traffic is touched.
   * Throws an Error whose message says what to do.
   */
  static async adopt(
    config: VmConfig,
    agent: Config,
    parts: {
      arbiter: Arbiter;
      fence: Fence;
      peer: Peer;
      metrics: AgentMetrics;
      divergences: DivergenceStore;
      log: Logger;
      objectPath: string;
      tuning: Tuning;
      /** Of a managed VM. */
      marker: ReplicaMarker | undefined;
      /** The replica that this agent's last life has left in good order. */
      rest: ReplicaAtRest | undefined;
      /** The phase has changed. */
      onPhase(vm: VmAgent): void;
    },
  ): Promise<VmAgent> {
    const vm = new VmAgent(config, agent, parts.arbiter, parts.fence, parts.onPhase);
    const log = parts.log.child({ vm: config.name });
    const qmp = await QmpClient.connect(config.qmp, { onClose: (reason) => vm.#qemuClosed(reason.message) });
    let proxy: PacketProxy | undefined;
    try {
      const facts = await inspectQemu(qmp);
      const { rest } = parts;
      const found = await whatQemuHas(qmp, facts, rest !== undefined);
      const keep = found === "protected" ? ROLE.PRIMARY : found === "following" ? ROLE.SECONDARY : undefined;
      log.info("QEMU", { version: facts.version, verdict: facts.verdict.sentence, found });
      proxy = await openProxy(
        config,
        agent,
        { objectPath: parts.objectPath, qmp: () => vm.#machine.qmp, log, keep },
        {
          diverged: (divergence, epoch) => vm.#primary.diverged(divergence, epoch),
          differed: (tap) => vm.#primary.differed(tap),
          broken: (reason) => vm.#tell({ type: "pair_broken", reason }),
          failed: (message) => vm.#proxyFailed(message),
        },
      );
      vm.#machine = {
        config,
        tuning: parts.tuning,
        marker: parts.marker,
        qmp,
        proxy,
        peer: parts.peer,
        replicationAddress: agent.agent.control.host,
        tls: streamTls(agent),
        log,
        metrics: parts.metrics.vm(config.name, () => vm.#reading()),
        divergences: new DivergenceRecorder(parts.divergences, config.name),
      };
      vm.#primary = new Primary(vm.#machine, (reason) => vm.#tell({ type: "pair_broken", reason }));
      vm.#secondary = new Secondary(vm.#machine);
      vm.#qemuWatch = new QemuWatch(qmp, config, (event) => vm.#tell(event));
      if (facts.unsuitable !== undefined)
        log.error("this VM cannot be protected and runs alone", { reason: facts.unsuitable });
      vm.#rest = rest;
      const has = proxy.adoption?.kept ? found : (WITHOUT_DATA_PLANE[found] ?? found);
      const generation = has === "following" ? rest?.generation : undefined;
      vm.#tell({ type: "started", vm: has, generation, unsuitable: facts.unsuitable });
      return vm;
    } catch (error) {
      qmp.close();
      await proxy?.close();
      throw error;
    }
  }

  get phase(): Phase {
    return this.#state.phase;
  }

  /** What the decisions know; for whoever decides what comes after this life. */
  get state(): Readonly<State> {
    return this.#state;
  }

  /** QEMU has closed its socket. */
  get qemuGone(): boolean {
    return this.#qemuGone;
  }

  get qmp(): QmpClient {
    return this.#machine.qmp;
  }

  /** What is to be said of this VM in heartbeats; `generation` names the replica that is to stand by. */
  get heartbeat(): { generation: number | undefined; ready: boolean; uplink: boolean } {
    const { phase, ownUplink, unsuitable } = this.#state;
    return {
      generation: this.#living ? heartbeatGeneration(this.#state) : undefined,
      ready: phase === "waiting" && unsuitable === undefined,
      uplink: ownUplink,
    };
  }

  /**
   * A round of the agent's main loop. It is complete, and renews the lease, only if the data plane has answered since the
   * last one.
   */
  round(): void {
    this.#living = !this.#roundOpen;
    if (!this.#living) return;
    this.#watch();
    this.#tell({ type: "round" });
    this.#roundOpen = true;
    this.#machine.proxy.ping().then(
      () => {
        this.#roundOpen = false;
      },
      () => undefined, // reported by the data plane itself
    );
  }

  peerSeen(path: Path, about: { ready: boolean; uplink: boolean }): void {
    this.#tell({ type: "peer_seen", path, ready: about.ready, uplink: about.uplink });
  }

  /** The peer's heartbeat for this VM; whether it is answered with "yes". */
  heartbeatCame(path: Path, generation: number): boolean {
    let accepted = false;
    this.#decide({ type: "heartbeat", path, generation }, (action) => {
      if (action.type === "answer_heartbeat") accepted = action.accepted;
    });
    return accepted;
  }

  heartbeatAnswered(path: Path, sentMs: number, generation: number, accepted: boolean): void {
    this.#tell({ type: "heartbeat_answered", path, sentMs, generation, accepted });
  }

  controlClosed(): void {
    this.#tell({ type: "control_closed" });
  }

  /** The primary's request: get a replica ready. Throws when this host has none to offer. */
  async prepareReplica(generation: number, proxy: ProxyKind, tls: boolean): Promise<SecondaryAddresses> {
    const { phase } = this.#state;
    if (proxy !== this.config.proxy) {
      throw new Error(
        `VM ${this.config.name} has proxy = "${proxy}" on the host that runs it and "${this.config.proxy}" on this one; write the same on both`,
      );
    }
    if (tls !== (this.agent.tls !== undefined)) {
      const [there, here] = tls ? ["on", "off"] : ["off", "on"];
      throw new Error(
        `TLS is ${there} on the host that runs VM ${this.config.name} and ${here} on this one; write [tls] on both hosts or on neither`,
      );
    }
    this.#tell({ type: "prepare", generation });
    if (this.#prepared === undefined)
      throw new Error(`this host has no replica to offer for VM ${this.config.name}: it is ${phase}`);
    const prepared = this.#prepared;
    this.#prepared = undefined;
    return prepared;
  }

  /** The primary's request: follow it from here. */
  async enterReplica(generation: number, entry: ProxyEntry): Promise<void> {
    this.#entry = entry;
    this.#tell({ type: "entered", generation });
    if (this.#entry === undefined) return this.#followed;
    this.#entry = undefined;
    throw new Error(
      `this host does not expect this primary of VM ${this.config.name}: it is ${this.#state.phase}`,
    );
  }

  tell(event: Extract<Event, { type: "replica_lost" | "abandoned" | "peer_gave_up" }>): void {
    this.#tell(event);
  }

  /** The peer's agent is about to end, and to begin again at once. Resolves when no checkpoint is under way. */
  async peerRestarts(generation: number): Promise<void> {
    const { phase, generation: own } = this.#state;
    if ((phase !== "standby" && phase !== "protected") || generation !== own)
      throw new Error(
        `VM ${this.config.name} is not protected in generation ${generation}: this host is ${phase}`,
      );
    if (this.#restarting) throw new Error("this agent is about to be restarted itself");
    if (phase === "protected") await this.#primary.pauseCheckpoints();
    this.#tell({ type: "peer_restarts", generation });
  }

  /** The secondary's agent has begun again and follows. */
  peerIsBack(generation: number): void {
    if (!isHolder(this.#state) || generation !== this.#state.generation)
      throw new Error(
        `VM ${this.config.name} no longer needs this replica: this host is ${this.#state.phase}`,
      );
    this.#tell({ type: "peer_is_back", generation });
  }

  /** The primary's request: its agent was restarted. Resolves with the epoch that the replica runs in. */
  resumeReplica(generation: number): Promise<number> {
    this.#checkReplica(generation);
    this.#tell({ type: "peer_is_back", generation });
    // What it has sent since is held here, and nowhere else.
    if (this.#succeeding)
      throw new Error(`VM ${this.config.name} is being handed over, and this host has done its part`);
    return this.#secondary.settledEpoch();
  }

  /** The primary's request: hold what the replica sends, it is about to be the VM. */
  succeed(generation: number): void {
    this.#checkReplica(generation);
    this.#succeeding = true;
    this.#machine.proxy.comparison?.succeed();
  }

  #checkReplica(generation: number): void {
    const { phase, generation: own } = this.#state;
    if (phase !== "standby" || generation !== own)
      throw new Error(`this host does not have this replica of VM ${this.config.name}: it is ${phase}`);
  }

  /** The primary's request: has the VM read what was mirrored to it? */
  async drainMirrored(mirroredFrames: readonly number[], timeoutMs: number): Promise<boolean> {
    return this.#machine.proxy.inputBarrier?.drainMirrored(mirroredFrames, timeoutMs) ?? true;
  }

  get primary(): Primary {
    return this.#primary;
  }

  /** Carries out an administrator's command. Throws an Error whose message says why it cannot be. */
  command(command: OperatorCommand, forMs: number | undefined): void {
    const refusal = refusalOf(command, this.#state);
    if (refusal !== undefined) throw new Error(`VM ${this.config.name}: ${refusal}`);
    switch (command) {
      case "failover":
        this.#tell({ type: "fail_over_wanted", reason: "handed over by the administrator" });
        break;
      case "unprotect":
        this.#tell({ type: "unprotect_wanted", untilMs: Number.POSITIVE_INFINITY });
        break;
      case "pause":
        this.#tell({ type: "unprotect_wanted", untilMs: bootMs() + (forMs ?? Number.POSITIVE_INFINITY) });
        break;
      case "protect":
        this.#tell({ type: "protect_wanted" });
        break;
      case "promote":
        this.#tell({ type: "promote_wanted" });
        break;
    }
  }

  status(): VmStatus {
    const reading = this.#reading();
    const state = this.#state;
    return {
      name: this.config.name,
      phase: reading.phase,
      role: PHASES[reading.phase].role,
      protected: reading.phase === "protected",
      reason: state.reason,
      words: describe(state, bootMs()),
      epoch: reading.epoch,
      term: state.record?.term,
      generation: state.generation,
      proxy: this.config.proxy,
      taps: this.config.nic.map(({ tap }) => tap),
      qmp: this.config.qmp,
      off: false,
      heartbeatAgeMs: reading.heartbeatAgeMs,
      resync: reading.resync,
      tuning: this.#machine.tuning.values,
      framesHeld: reading.nics.reduce((sum, { shared }) => sum + shared.stat("held_frames"), 0),
      counters: countersOf(reading.nics),
    };
  }

  /**
   * Ends this life of the VM, which has stopped: waits for what is under way, lets nothing pass any more, and lets go of everything.
   * `endQemu` ends the QEMU, so that nothing waits for its answers.
   */
  async end(endQemu: () => Promise<void>): Promise<void> {
    await this.#retire?.done;
    this.#closed = true;
    this.#machine.proxy.block();
    this.#secondary.stop();
    await endQemu();
    this.#machine.qmp.close();
    const procedures = Promise.allSettled([...this.#procedures, this.#primary.ended]);
    await Promise.race([procedures, Bun.sleep(PROCEDURES_END_MS)]);
    this.#machine.proxy.block();
    await this.close();
  }

  /**
   * This agent is about to end, and another one to begin at once. The peer of a protected VM waits for that, or this throws an Error that
   * says why it does not; a VM without a replica goes on sending meanwhile. Resolves with what the next agent needs to know of a
   * replica here, if there is one.
   */
  async announceRestart(): Promise<ReplicaAtRest | undefined> {
    const { config, peer, proxy, log } = this.#machine;
    const { phase, generation } = this.#state;
    const { restart_ms: restartMs } = this.agent.heartbeat;
    // Nobody may take over what has no replica, so nobody waits for this lease to run out.
    if (phase === "alone") proxy.extendLease(bootMs() + restartMs);
    // QEMU's proxy keeps no state that a new agent could adopt.
    if (proxy.adoption === undefined || PHASES[phase].settled) return undefined;
    if (phase !== "protected" && phase !== "standby")
      throw new Error(`VM ${config.name} is ${phase} on this host: ask for the restart when that is over`);
    this.#restarting = true;
    if (phase === "protected") await this.#primary.pauseCheckpoints();
    try {
      // The primary's agent answers when a checkpoint that is under way is over.
      await peer.ask("restarting", { vm: config.name, generation }, restartMs);
    } catch (error) {
      log.info("the peer does not know of the restart", { error });
      throw new Error(
        `VM ${config.name} would lose its protection, because the peer's agent cannot wait for this one (${(error as Error).message}): ask for the restart when it is protected, or end the agent with SIGTERM`,
        { cause: error },
      );
    }
    if (phase === "protected") return undefined;
    const { phase: now, claim, goal, givenUp } = this.#state;
    const inOrder =
      now === "standby" && claim === undefined && goal === undefined && !givenUp && !this.#succeeding;
    const rest = inOrder ? this.#secondary.atRest : undefined;
    if (rest === undefined)
      throw new Error(
        `the replica of VM ${config.name} is ${now} on this host: ask for the restart when that is over`,
      );
    return rest;
  }

  /** It does not end after all. */
  async cancelRestart(): Promise<void> {
    this.#restarting = false;
    const { config, peer } = this.#machine;
    const { phase, generation, peerBackByMs } = this.#state;
    // While the peer is away for the same reason, its return ends the pause.
    if (phase === "protected" && peerBackByMs < bootMs()) this.#primary.catchUp();
    // If it does not hear of it, it waits in vain, for no longer than it would have.
    if (phase === "standby")
      await peer.ask("back", { vm: config.name, generation }, TELL_TIMEOUT_MS).catch(() => undefined);
  }

  /** Ends the agent's part; filters stay, so that nothing unverified leaves without it. */
  async close(): Promise<void> {
    this.#closed = true;
    clearTimeout(this.#deadline);
    clearTimeout(this.#retire?.timer);
    await this.#machine.proxy.close();
    this.#machine.qmp.close();
  }

  #proxyFailed(message: string): void {
    const machine: Machine | undefined = this.#machine; // it can fail before the VM is adopted
    if (machine === undefined) throw new Error(`the data plane failed: ${message}`);
    machine.log.error("the data plane failed; the VM's output stays held", { message });
    process.exitCode = 1;
    // A new agent adopts the VM; until then the kernel drops and the lease runs out.
    process.exit();
  }

  /** Tells the decisions what has happened; what happens while they are carried out is told next. */
  #tell(event: Event): void {
    this.#events.push(event);
    if (this.#deciding || this.#closed) return;
    this.#deciding = true;
    try {
      for (let next = this.#events.shift(); next !== undefined; next = this.#events.shift()) {
        this.#decide(next, (action) => this.#perform(action));
      }
    } finally {
      this.#deciding = false;
    }
    this.#armDeadline();
  }

  #decide(event: Event, perform: (action: Action) => void): void {
    const before = this.#state;
    const { state, actions } = decide(before, event, bootMs());
    this.#state = state;
    if (state.phase !== before.phase) this.#phaseChanged(before, state, event);
    for (const action of actions) perform(action);
  }

  #phaseChanged(before: State, after: State, event: Event): void {
    const { log, metrics } = this.#machine;
    log.info("phase", { from: before.phase, to: after.phase, on: event.type, reason: after.reason });
    this.onPhase(this);
    if (after.phase !== "alone") return;
    const survivor =
      before.phase === "taking_over" ? "secondary" : before.phase === "going_alone" ? "primary" : undefined;
    if (survivor === undefined) return;
    const tookMs = bootMs() - (before.claim?.sinceMs ?? before.sinceMs);
    metrics.failedOver(survivor, tookMs / 1000);
    log.info("failover", { survivor, tookMs, reason: after.reason });
  }

  #armDeadline(): void {
    clearTimeout(this.#deadline);
    const leftMs = nextDeadlineMs(this.#state) - bootMs();
    if (!Number.isFinite(leftMs)) return;
    this.#deadline = setTimeout(() => this.#tell({ type: "deadline" }), Math.max(1, Math.ceil(leftMs)));
  }

  #perform(action: Action): void {
    const machine = this.#machine;
    const { config, log } = machine;
    switch (action.type) {
      case "read_record":
        this.#askArbiter(action.call, async (arbiter) => ({
          kind: "record",
          record: await arbiter.read(config.name),
        }));
        break;
      case "swap_record":
        this.#askArbiter(action.call, async (arbiter) => {
          const result = await arbiter.compareAndSwap(config.name, action.expectedRevision, action.record);
          return result.swapped
            ? { kind: "swapped", record: result.record }
            : { kind: "conflict", record: result.current };
        });
        break;
      case "extend_lease":
        machine.proxy.extendLease(action.untilMs);
        break;
      case "block":
        machine.proxy.block();
        this.#secondary.end();
        machine.divergences.ended(`not released: ${this.#state.reason}`);
        break;
      case "retire":
        machine.proxy.dropLease();
        machine.divergences.ended("handed over");
        this.#retireLater();
        break;
      case "run_alone":
        this.#run(
          this.#primary.runAlone(),
          () => ({ type: "alone" }),
          () => ({ type: "alone" }),
        );
        break;
      case "probe_qemu":
        this.#run(
          this.#primary.probe(),
          () => ({ type: "qemu_answers" }),
          (reason) => ({ type: "qemu_silent", reason: `QEMU does not answer: ${reason}` }),
        );
        break;
      case "protect":
        this.#protect(action.generation);
        break;
      case "resume":
        this.#run(
          this.#primary.resume(action.generation),
          () => ({ type: "resumed", generation: action.generation }),
          (reason) => ({ type: "pair_broken", reason: `the protection could not continue: ${reason}` }),
        );
        break;
      case "begin_checkpoints":
        this.#primary.beginCheckpoints();
        break;
      case "catch_up":
        this.#primary.catchUp();
        break;
      case "end_protection":
        this.#primary.endProtection(action.reason);
        break;
      case "hand_over":
        this.#run(
          this.#primary.handOver(action.generation),
          () => ({ type: "handed_over" }),
          (reason) => ({ type: "hand_over_failed", reason }),
        );
        break;
      case "prepare_replica":
        this.#quickenAcks();
        this.#prepared = this.#secondary.prepare(action.generation);
        this.#remember(this.#prepared);
        this.#prepared.catch((error: Error) =>
          this.#tell({ type: "prepare_failed", reason: `preparing QEMU failed: ${error.message}` }),
        );
        break;
      case "follow":
        if (this.#entry !== undefined) {
          this.#followed = this.#secondary.follow(this.#entry);
          this.#followed.catch(() => undefined); // enterReplica tells the primary
        }
        this.#entry = undefined;
        break;
      case "follow_again":
        this.#followAgain(action.generation);
        break;
      case "promote":
        log.warn("this host takes over the VM", { reason: action.reason });
        this.#run(
          this.#secondary.promote().then(() => this.#primary.continueFrom(this.#secondary.epoch)),
          () => ({ type: "promoted" }),
          (reason) => ({ type: "promotion_failed", reason }),
        );
        break;
      case "tell_peer": {
        const { what, generation, reason } = action;
        machine.peer
          .ask(what, { vm: config.name, generation, reason }, TELL_TIMEOUT_MS)
          .catch((error) => log.warn("could not notify the peer", { what, error }));
        break;
      }
      case "fence":
        this.#fence(action.term);
        break;
      case "answer_heartbeat":
        break; // the heartbeat's own way: heartbeatCame()
    }
  }

  #retireLater(): void {
    const { promise: done, resolve } = Promise.withResolvers<void>();
    const timer = setTimeout(() => {
      if (this.#state.phase === "stopped" && !this.#closed) this.#machine.proxy.block();
      resolve();
    }, RETIRE_MS);
    this.#retire = { timer, done };
  }

  /** Turns the peer off. */
  #fence(term: number): void {
    const { agent } = this.agent;
    const facts = {
      agent: agent.name,
      peer: this.agent.peer.name,
      vm: this.config.name,
      term,
    };
    void this.fence.run(facts).then(({ ok, output, reason }) => {
      this.#machine.log.warn("fence command", { ok, reason, output });
      this.#tell({ type: "fenced", ok, output: reason ?? output });
    });
  }

  /** A procedure whose end is an event. */
  #run(procedure: Promise<unknown>, done: () => Event, failed: (reason: string) => Event): void {
    this.#remember(procedure);
    procedure.then(
      () => this.#tell(done()),
      (error: Error) => {
        this.#machine.log.warn("a procedure failed", { error });
        this.#tell(failed(error.message));
      },
    );
  }

  #remember(procedure: Promise<unknown>): void {
    this.#procedures.add(procedure);
    const forget = () => this.#procedures.delete(procedure);
    procedure.then(forget, forget);
  }

  /** A link that was down for a moment has lost its routes, while the agents' own connection has outlived that. */
  #quickenAcks(): void {
    disableDelayedAck(this.agent.peer.control.host).catch((error) =>
      this.#machine.log.warn("the route to the peer keeps delayed ACKs: checkpoints take 30 ms longer", {
        error,
      }),
    );
  }

  #followAgain(generation: number): void {
    const following = this.#secondary.followAgain(generation, this.#rest!);
    this.#remember(following);
    following.catch((error: Error) =>
      this.#tell({
        type: "follow_failed",
        reason: `the replica could not be followed again: ${error.message}`,
      }),
    );
  }

  #protect(generation: number): void {
    this.#quickenAcks();
    const protection = this.#primary.protect(generation);
    this.#remember(protection);
    protection.then(
      () => this.#tell({ type: "primed", generation }),
      (error: ProtectionError) => {
        this.#machine.log.warn("could not protect the VM", { reason: error.message });
        this.#primary.endProtection(error.message);
        const { entered, message } = error;
        this.#tell({ type: "protection_failed", generation, entered, reason: message });
      },
    );
  }

  #askArbiter(call: number, ask: (arbiter: Arbiter) => Promise<ArbiterResult>): void {
    ask(this.arbiter).then(
      (result) => this.#tell({ type: "arbiter", call, result }),
      (error: Error) => {
        this.#machine.log.warn("the arbiter does not answer; the agent tries again", { error });
        this.#tell({ type: "arbiter", call, result: { kind: "unreachable", reason: error.message } });
      },
    );
  }

  /** What has to be looked at, since nobody tells. */
  #watch(): void {
    const { phase, leaseFrom, ownUplink } = this.#state;
    this.#primary.watchLosses();
    if (phase === "standby") {
      this.#secondary.watchLosses();
      const reason = this.#secondary.watchOverlays();
      if (reason !== undefined) this.#tell({ type: "overlays_full", reason });
    }
    this.#qemuWatch.look(leaseFrom === "peer" ? "primary" : phase === "standby" ? "secondary" : undefined);
    const { uplink } = this.config;
    if (uplink !== undefined) {
      const up = isRunning(uplink);
      if (up !== ownUplink) this.#tell({ type: "uplink", up });
    }
    this.#collectConnections();
  }

  /** Forgets connections that have ended. */
  #collectConnections(): void {
    const now = performance.now();
    if (now - this.#lastCollectMs < COLLECT_INTERVAL_MS) return;
    this.#lastCollectMs = now;
    this.#machine.proxy.comparison?.collectConnections();
  }

  #qemuClosed(reason: string): void {
    this.#qemuGone = true;
    if (this.#machine === undefined || this.#closed) return;
    this.#machine.log.error("QEMU is gone", { reason });
    this.#tell({ type: "qemu_gone", reason });
  }

  #reading() {
    const { phase, leaseFrom, lastAnswerMs } = this.#state;
    const beats = leaseFrom === "peer" || phase === "standby";
    return {
      phase,
      epoch: isHolder(this.#state) ? this.#primary.epoch : this.#secondary.epoch,
      heartbeatAgeMs: beats ? bootMs() - lastAnswerMs : undefined,
      resync: this.#primary.resync,
      overlayBytes: this.#secondary.overlayBytes,
      nics: this.#machine.proxy.comparison?.readings() ?? [],
    };
  }
}

function settingsOf(config: VmConfig, agent: Config, arbiter: Arbiter, fence: Fence): Settings {
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
    fence: fence.policy,
  };
}

function refusalOf(command: OperatorCommand, state: State): string | undefined {
  const { phase, settings } = state;
  switch (command) {
    case "failover":
      if (phase === "protected" && settings.arbiter) return undefined;
      return settings.arbiter
        ? `only a protected VM can be handed over, and this host says "${phase}"; ask the agent of the host that runs it`
        : "a hand-over needs an arbiter; configure one";
    case "protect":
      if (isHolder(state) && state.unsuitable !== undefined) return state.unsuitable;
      break;
    case "promote":
      if (settings.arbiter) return "the arbiter decides who takes over; promote is for a pair without one";
      return phase === "standby" ? undefined : `there is no complete replica here, this host says "${phase}"`;
  }
  return isHolder(state)
    ? undefined
    : `this host does not run it ("${phase}"); ask the agent of ${settings.peer}`;
}
