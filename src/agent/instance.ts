/**
 * One QEMU of a VM on this host, from its adoption to its end: tells src/failover what happens, and has its
 * actions carried out. What comes after it is decided by next_instance.ts.
 */
import type { OperatorCommand, VmStatus } from "../api/status.ts";
import type { VmConfig } from "../config/config.ts";
import { heartbeatGeneration } from "../failover/decide.ts";
import { describe } from "../failover/describe.ts";
import { type Answered, Driver } from "../failover/driver.ts";
import type { Event, Request } from "../failover/events.ts";
import { isHolder, type Path, PHASES, type Settings, type State } from "../failover/state.ts";
import { isRunning } from "../ffi/interface_flags.ts";
import { bootMs } from "../host/clock.ts";
import { countersOf, type PacketProxy } from "../proxy/proxy.ts";
import type { QmpClient } from "../qmp/client.ts";
import { accepted } from "./accepted.ts";
import { type ActionParts, Actions } from "./actions.ts";
import { quickenAcks } from "./delayed_ack.ts";
import type { HeartbeatVm } from "./heartbeats.ts";
import type { ReplicaAtRest } from "./instance_memory.ts";
import type { Machine } from "./machine.ts";
import type { SecondaryAddresses } from "./peer_api.ts";
import type { Primary } from "./primary.ts";
import type { QemuWatch } from "./qemu_watch.ts";
import type { Secondary } from "./secondary.ts";

/** Procedures that do not end by themselves when QEMU is gone. */
const PROCEDURES_END_MS = 5_000;
const COLLECT_INTERVAL_MS = 10_000;

/** All that an instance consists of, complete; adopt.ts builds it. */
interface InstanceParts extends Omit<ActionParts, "tell"> {
  settings: Settings;
  qemuWatch: QemuWatch;
  /** Called before the actions of the decision. */
  phaseChanged(state: Readonly<State>): void;
}

export class VmInstance implements HeartbeatVm {
  readonly config: VmConfig;
  readonly primary: Primary;
  readonly secondary: Secondary;
  readonly #parts: InstanceParts;
  readonly #machine: Machine;
  readonly #driver: Driver;
  readonly #actions: Actions;
  /** The data plane has not answered since the last round. */
  #roundOpen = false;
  /** The last round was complete. */
  #living = false;
  #lastCollectMs = performance.now();
  #closed = false;
  #qemuGone = false;

  constructor(parts: InstanceParts) {
    this.#parts = parts;
    this.#machine = parts.machine;
    this.config = parts.machine.config;
    this.primary = parts.primary;
    this.secondary = parts.secondary;
    this.#actions = new Actions({ ...parts, tell: (event) => this.tell(event) });
    this.#driver = new Driver(parts.settings, {
      now: bootMs,
      setTimer: (ms, run) => {
        const timer = setTimeout(run, ms);
        return () => clearTimeout(timer);
      },
      perform: (action) => this.#actions.perform(action),
      phaseChanged: (before, after, event) => this.#phaseChanged(before, after, event),
      mayContinue: () => !this.#closed,
    });
  }

  /** What the decisions know. */
  get state(): Readonly<State> {
    return this.#driver.state;
  }

  /** QEMU has closed its socket. */
  get qemuGone(): boolean {
    return this.#qemuGone;
  }

  get qmp(): QmpClient {
    return this.#machine.qmp;
  }

  get proxy(): PacketProxy {
    return this.#machine.proxy;
  }

  /** QEMU's streams to and from the peer are encrypted. */
  get usesTls(): boolean {
    return this.#machine.tls !== undefined;
  }

  /** Tells the decisions what has happened. */
  tell(event: Event): void {
    if (!this.#closed) this.#driver.tell(event);
  }

  /** Asks the decisions for something; see {@link Driver.ask}. */
  ask(request: Request, answered: Answered): void {
    if (this.#closed) answered("this host's agent is ending");
    else this.#driver.ask(request, answered);
  }

  qemuClosed(reason: string): void {
    this.#qemuGone = true;
    if (this.#closed) return;
    this.#machine.log.error("QEMU is gone", { reason });
    this.tell({ type: "qemu_gone", reason });
  }

  // --- heartbeats ---

  get heartbeat(): HeartbeatVm["heartbeat"] {
    const { state } = this;
    return {
      generation: this.#living ? heartbeatGeneration(state) : undefined,
      ready: state.phase === "waiting" && state.unsuitable === undefined,
      uplink: state.ownUplink,
    };
  }

  peerSeen(path: Path, { ready, uplink }: { ready: boolean; uplink: boolean }): void {
    this.tell({ type: "peer_seen", path, ready, uplink });
  }

  heartbeatCame(path: Path, generation: number, answer: (accepted: boolean) => void): void {
    this.ask({ type: "heartbeat", path, generation }, (refusal) => answer(refusal === undefined));
  }

  heartbeatAnswered(path: Path, sentMs: number, generation: number, accepted: boolean): void {
    this.tell({ type: "heartbeat_answered", path, sentMs, generation, accepted });
  }

  // --- the main loop ---

  /**
   * A round of the agent's main loop. It is complete, and renews the lease, only if the data plane has
   * answered since the last one.
   */
  round(): void {
    this.#living = !this.#roundOpen;
    if (!this.#living) return;
    this.#look();
    this.tell({ type: "round" });
    this.#roundOpen = true;
    this.proxy.ping().then(
      () => {
        this.#roundOpen = false;
      },
      () => undefined, // reported by the data plane itself
    );
  }

  /** Looks at what reports nothing by itself. */
  #look(): void {
    const { phase, leaseFrom, ownUplink } = this.state;
    this.primary.watchLosses();
    if (phase === "standby") {
      this.secondary.watchLosses();
      const reason = this.secondary.watchOverlays();
      if (reason !== undefined) this.tell({ type: "overlays_full", reason });
    }
    this.#parts.qemuWatch.look(
      leaseFrom === "peer" ? "primary" : phase === "standby" ? "secondary" : undefined,
    );
    const { uplink } = this.config;
    if (uplink !== undefined) {
      const up = isRunning(uplink);
      if (up !== ownUplink) this.tell({ type: "uplink", up });
    }
    this.#collectConnections();
  }

  /** Forgets connections that have ended. */
  #collectConnections(): void {
    const now = performance.now();
    if (now - this.#lastCollectMs < COLLECT_INTERVAL_MS) return;
    this.#lastCollectMs = now;
    this.proxy.comparison?.collectConnections();
  }

  #phaseChanged(before: State, after: State, event: Event): void {
    const { log, metrics } = this.#machine;
    log.info("phase", { from: before.phase, to: after.phase, on: event.type, reason: after.reason });
    this.#parts.phaseChanged(after);
    if (after.phase !== "alone") return;
    const survivor =
      before.phase === "taking_over" ? "secondary" : before.phase === "going_alone" ? "primary" : undefined;
    if (survivor === undefined) return;
    const tookMs = bootMs() - (before.claim?.sinceMs ?? before.sinceMs);
    metrics.failedOver(survivor, tookMs / 1000);
    log.info("failover", { survivor, tookMs, reason: after.reason });
  }

  // --- the peer and the administrator ---

  /** Gets QEMU ready to become a replica; the decisions have accepted that. */
  prepareReplica(generation: number): Promise<SecondaryAddresses> {
    quickenAcks(this.#parts.peerHost, this.#machine.log);
    const prepared = this.#actions.remember(this.secondary.prepare(generation));
    prepared.catch((error: Error) =>
      this.tell({ type: "prepare_failed", reason: `preparing QEMU failed: ${error.message}` }),
    );
    return prepared;
  }

  /** Carries out an administrator's command. Throws an Error whose message says why it cannot be. */
  command(command: OperatorCommand | "boot", forMs?: number): void {
    let refusal: string | undefined;
    this.ask(requestOf(command, forMs), (answer) => {
      refusal = answer;
    });
    if (refusal !== undefined) throw new Error(`VM ${this.config.name}: ${refusal}`);
  }

  /**
   * This agent is about to end, and another one to begin at once. The peer of a protected VM waits for that,
   * or this throws an Error that says why it does not; a VM without a replica keeps sending meanwhile.
   * Resolves with what the next agent needs to know of a replica here, if there is one.
   */
  announceRestart(): Promise<ReplicaAtRest | undefined> {
    return accepted(this, { type: "restart_wanted" }, () =>
      this.state.phase === "standby" && this.state.settings.adoptable ? this.secondary.atRest : undefined,
    );
  }

  /** It does not end after all. */
  cancelRestart(): void {
    this.tell({ type: "restart_cancelled" });
  }

  // --- status ---

  reading() {
    const { state } = this;
    const beats = state.leaseFrom === "peer" || state.phase === "standby";
    return {
      phase: state.phase,
      epoch: isHolder(state) ? this.primary.epoch : this.secondary.epoch,
      heartbeatAgeMs: beats ? bootMs() - state.lastAnswerMs : undefined,
      resync: this.primary.resync,
      overlayBytes: this.secondary.overlayBytes,
      nics: this.proxy.comparison?.readings() ?? [],
    };
  }

  /** What of the status only a QEMU makes true. */
  status(): Partial<VmStatus> {
    const { phase, epoch, heartbeatAgeMs, resync, nics } = this.reading();
    const { state } = this;
    return {
      phase,
      role: PHASES[phase].role,
      protected: phase === "protected",
      reason: state.reason,
      words: describe(state, bootMs()),
      epoch,
      term: state.record?.term,
      generation: state.generation,
      off: false,
      heartbeatAgeMs,
      resync,
      framesHeld: nics.reduce((sum, { shared }) => sum + shared.stat("held_frames"), 0),
      counters: countersOf(nics),
    };
  }

  // --- the end ---

  /**
   * Ends the instance, which has stopped: waits for what is under way, lets nothing pass any more, and
   * releases everything. `endQemu` ends the QEMU, so that nothing waits for its answers. Throws what
   * `endQemu` throws, when all the rest is done.
   */
  async end(endQemu: () => Promise<void>): Promise<void> {
    this.#closed = true;
    this.proxy.block();
    this.secondary.stop();
    try {
      await endQemu();
    } finally {
      this.qmp.close();
      await Promise.race([this.#actions.ended(), Bun.sleep(PROCEDURES_END_MS)]);
      this.proxy.block();
      await this.close();
    }
  }

  /** Ends the agent's part; filters stay, so that nothing unverified leaves without it. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#driver.close("this host's agent is ending");
    await this.proxy.close();
    this.qmp.close();
  }
}

function requestOf(command: OperatorCommand | "boot", forMs = Number.POSITIVE_INFINITY): Request {
  switch (command) {
    case "failover":
      return { type: "fail_over_wanted", reason: "handed over by the administrator" };
    case "unprotect":
      return { type: "unprotect_wanted", untilMs: Number.POSITIVE_INFINITY };
    case "pause":
      return { type: "unprotect_wanted", untilMs: bootMs() + forMs };
    case "protect":
      return { type: "protect_wanted" };
    case "promote":
      return { type: "promote_wanted" };
    case "boot":
      return { type: "boot_wanted" };
  }
}
