/**
 * Keeps a VM going on this host, over the lives of its QEMUs: one {@link VmAgent} is one life. What comes after a life is decided by
 * next_life.ts, what happens in it by src/failover/decide.ts.
 *
 * A managed QEMU is started, found again, ended and replaced here. One that somebody else starts is waited for.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type CommandNumbers, isOperatorCommand, type VmStatus } from "../api/status.ts";
import type { Config, VmConfig } from "../config/config.ts";
import { isHolder, type Path, PHASES, type Phase } from "../failover/state.ts";
import { bootMs } from "../host/clock.ts";
import { checkTap } from "../host/links.ts";
import { commitOverlays, removeOverlays } from "../qemu/images.ts";
import { endQemu, findQemu, startQemu } from "../qemu/instance.ts";
import { QmpConnectError } from "../qmp/errors.ts";
import { blockNodes } from "../qmp/vm.ts";
import { overlayPaths, secondaryNodes } from "../storage/disk_graph.ts";
import { ReplicaMarker } from "../storage/replica_marker.ts";
import { LifeMemory } from "./life_memory.ts";
import { nextLife } from "./next_life.ts";
import { Tuning } from "./tuning.ts";
import { VmAgent } from "./vm.ts";

/** A QEMU that ends sooner than that makes the next one wait. */
const SHORT_LIFE_MS = 5_000;
const FIRST_PAUSE_MS = 1_000;
const PAUSE_MS_MAX = 30_000;
/** Between two looks at a life, and at an arbiter or a socket that is waited for. */
const LOOK_MS = 500;
/** A guest gets so long to shut itself down. */
const POWERDOWN_MS = 60_000;
const SHUTDOWN_STEP_MS = 100;
const QUIT_TIMEOUT_MS = 10_000;
/** A peer that is to take the VM over has done so by then, or needs somebody's help. */
const TAKEOVER_PATIENCE_MS = 10_000;

type LifeParts = Omit<Parameters<typeof VmAgent.adopt>[2], "onPhase" | "tuning" | "marker" | "rest">;

/** What is said while there is no life. */
interface Between {
  phase: Extract<Phase, "starting" | "stopped">;
  reason: string;
  sinceMs: number;
}

export class VmKeeper {
  #life: VmAgent | undefined;
  #between: Between = { phase: "starting", reason: "the agent begins", sinceMs: bootMs() };
  readonly #memory: LifeMemory;
  readonly #tuning: Tuning;
  readonly #marker: ReplicaMarker | undefined;
  /** The administrator's `start` has not led to a life yet. */
  #started = false;
  #stopping = false;
  #closed = false;
  #wake: (() => void) | undefined;
  #woken = false;

  private constructor(
    readonly config: VmConfig,
    private readonly agent: Config,
    private readonly parts: LifeParts,
  ) {
    const directory = join(agent.agent.state_directory, "vm");
    this.#memory = new LifeMemory(join(directory, `${config.name}.json`), config.nic.length);
    this.#tuning = new Tuning(config);
    // Of a QEMU that somebody else starts, images may be written by anybody.
    this.#marker = config.managed === undefined ? undefined : new ReplicaMarker(directory, config.name);
  }

  /**
   * Begins. A QEMU that somebody else has started is adopted before this returns, so that what is wrong with it is told at once;
   * everything else happens later. Throws an Error whose message says what to do.
   */
  static async start(config: VmConfig, agent: Config, parts: LifeParts): Promise<VmKeeper> {
    for (const { tap } of config.nic) await checkTap(tap);
    const keeper = new VmKeeper(config, agent, { ...parts, log: parts.log });
    let first: VmAgent | undefined;
    if (config.managed === undefined && existsSync(config.qmp)) {
      try {
        first = await keeper.#adopt();
      } catch (error) {
        if (!(error instanceof QmpConnectError)) throw error; // nobody listens there yet
      }
    }
    void keeper.#run(first);
    return keeper;
  }

  /** The life under way. Throws an Error that says why there is none. */
  get life(): VmAgent {
    if (this.#life === undefined)
      throw new Error(`VM ${this.config.name} has no QEMU on this host: ${this.#between.reason}`);
    return this.#life;
  }

  // --- what the agent's main loop and the peer's agent tell ---------------------------------------------------------------

  get heartbeat(): VmAgent["heartbeat"] {
    return this.#life?.heartbeat ?? { generation: undefined, ready: false, uplink: true };
  }

  round(): void {
    this.#life?.round();
  }

  peerSeen(path: Path, about: { ready: boolean; uplink: boolean }): void {
    this.#life?.peerSeen(path, about);
  }

  heartbeatCame(path: Path, generation: number): boolean {
    return this.#life?.heartbeatCame(path, generation) ?? false;
  }

  heartbeatAnswered(path: Path, sentMs: number, generation: number, accepted: boolean): void {
    this.#life?.heartbeatAnswered(path, sentMs, generation, accepted);
  }

  controlClosed(): void {
    this.#life?.controlClosed();
  }

  tell(event: Parameters<VmAgent["tell"]>[0]): void {
    this.#life?.tell(event);
  }

  // --- the administrator --------------------------------------------------------------------------------------------------

  /** Carries out a command. Throws an Error whose message says why it cannot be. */
  command(command: string, { for_ms: forMs, period_ms, resync_bytes_per_second }: CommandNumbers): void {
    if (command === "start") this.#start();
    else if (command === "stop") this.#stop(forMs ?? POWERDOWN_MS);
    else if (command === "tune")
      this.#tuning.change({
        ...(period_ms === undefined ? {} : { periodMs: period_ms }),
        ...(resync_bytes_per_second === undefined ? {} : { resyncBytesPerSecond: resync_bytes_per_second }),
      });
    else if (isOperatorCommand(command)) this.life.command(command, forMs);
    else throw new Error(`there is no command ${command}`);
  }

  #start(): void {
    const { name, managed } = this.config;
    const state = this.#life?.state;
    if (managed === undefined) {
      throw new Error(`VM ${name}: another program starts its QEMU (no [vm.qemu] in the configuration)`);
    }
    if (state === undefined || (state.phase === "stopped" && state.needsAdministrator)) {
      this.#memory.keep({ off: undefined });
      this.#started = true;
      this.#say("starting", "started by the administrator");
      this.#wakeUp();
      return;
    }
    if (!this.#waitsForTakeover() || bootMs() - state.sinceMs < TAKEOVER_PATIENCE_MS) {
      throw new Error(`VM ${name}: this host says "${state.phase}"; there is nothing to start`);
    }
    void this.#bootInsteadOfTakeover();
  }

  /** The peer does not take its replica over, so the administrator wants the VM from this host's disks; the record decides. */
  async #bootInsteadOfTakeover(): Promise<void> {
    const { arbiter, log } = this.parts;
    try {
      const record = await arbiter.read(this.config.name);
      if (record?.holder !== this.agent.agent.name) return;
      const { term, generation, holder, revision } = record;
      await arbiter.compareAndSwap(this.config.name, revision, {
        term,
        generation,
        holder,
        replicaValid: false,
      });
      this.#started = true;
      this.#wakeUp();
    } catch (error) {
      log.warn("the VM could not be started", { vm: this.config.name, error });
    }
  }

  #stop(limitMs: number): void {
    const { life } = this;
    if (!isHolder(life.state)) {
      throw new Error(
        `VM ${this.config.name}: this host does not run it ("${life.phase}"); ask the agent of ${this.agent.peer.name}`,
      );
    }
    if (this.#stopping) throw new Error(`VM ${this.config.name} is being shut down already`);
    this.#stopping = true;
    void this.#shutDown(life, limitMs).finally(() => {
      this.#stopping = false;
    });
  }

  /** The guest shuts itself down, or is ended; its QEMU's SHUTDOWN event does the rest. */
  async #shutDown(life: VmAgent, limitMs: number): Promise<void> {
    const { log } = this.parts;
    const running = () => this.#life === life && isHolder(life.state);
    try {
      await life.qmp.execute("system_powerdown");
      const deadline = performance.now() + limitMs;
      while (running() && performance.now() < deadline) await Bun.sleep(SHUTDOWN_STEP_MS);
      if (!running()) return;
      log.warn("the guest did not shut down in time; its QEMU is ended", {
        vm: this.config.name,
        limitMs,
      });
      await life.qmp.execute("quit", undefined, { timeoutMs: QUIT_TIMEOUT_MS });
    } catch (error) {
      if (running()) log.warn("the VM could not be shut down", { vm: this.config.name, error });
    }
  }

  status(): VmStatus {
    const { config } = this;
    const qemuPid = config.managed === undefined ? undefined : findQemu(config.managed)?.pid;
    if (this.#life !== undefined) {
      const status = this.#life.status();
      if (this.#stopping) status.words.now += "; it is being shut down";
      return { ...status, qemuPid };
    }
    const { phase, reason } = this.#between;
    const what = phase === "stopped" ? "keeps the VM off" : "has no QEMU for the VM yet";
    return {
      name: config.name,
      phase,
      role: PHASES[phase].role,
      protected: false,
      reason,
      words: {
        now: `${this.agent.agent.name} ${what} (${reason})`,
        ifThisHostDies: "nothing would change",
        ifPeerDies: "the VM would be lost, if it runs there",
      },
      epoch: 0,
      term: undefined,
      generation: 0,
      proxy: config.proxy,
      taps: config.nic.map(({ tap }) => tap),
      qmp: config.qmp,
      off: phase === "stopped" || config.managed === undefined,
      qemuPid,
      heartbeatAgeMs: undefined,
      resync: undefined,
      tuning: this.#tuning.values,
      framesHeld: 0,
      counters: {},
    };
  }

  /**
   * This agent is about to end, and to begin again at once: tells the peer, and remembers what that needs. Throws an Error that says why
   * the VM's protection could not go on.
   */
  async announceRestart(): Promise<void> {
    this.#memory.keep({ rest: await this.#life?.announceRestart() });
  }

  /** It does not end after all. */
  async cancelRestart(): Promise<void> {
    this.#memory.keep({ rest: undefined });
    await this.#life?.cancelRestart();
  }

  /** Ends the agent's part. QEMU goes on. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#wakeUp();
    await this.#life?.close();
  }

  // --- lives --------------------------------------------------------------------------------------------------------------

  async #run(first: VmAgent | undefined): Promise<void> {
    let life = first;
    let pauseMs = 0;
    while (!this.#closed) {
      let short = true;
      try {
        life ??= this.config.managed === undefined ? await this.#awaitQemu() : await this.#startQemu();
        if (life === undefined) return; // closed
        const begunMs = performance.now();
        const reason = await this.#follow(life);
        if (reason === undefined) return;
        short = performance.now() - begunMs < SHORT_LIFE_MS;
        this.#say("starting", reason);
      } catch (error) {
        if (this.#closed) return;
        this.parts.log.error("the VM has no QEMU on this host", { vm: this.config.name, error });
        this.#say("starting", (error as Error).message);
      }
      life = undefined;
      pauseMs = short ? Math.min(PAUSE_MS_MAX, pauseMs === 0 ? FIRST_PAUSE_MS : 2 * pauseMs) : 0;
      if (pauseMs === 0) continue;
      this.#say("starting", `${this.#between.reason}; the next attempt is in ${pauseMs / 1000} s`);
      await this.#pause(pauseMs);
    }
  }

  /** For a QEMU that somebody else starts. */
  async #awaitQemu(): Promise<VmAgent | undefined> {
    const { qmp } = this.config;
    while (!this.#closed) {
      if (existsSync(qmp)) {
        try {
          return await this.#adopt();
        } catch (error) {
          if (!(error instanceof QmpConnectError)) throw error;
        }
      }
      this.#say("starting", `there is no QMP socket at ${qmp}; ${await this.#whatToStart()}`);
      await this.#pause(LOOK_MS);
    }
    return undefined;
  }

  async #whatToStart(): Promise<string> {
    const socket = `-qmp unix:${this.config.qmp},server=on,wait=off`;
    const next = await this.#next();
    const how = next.type === "incoming" ? `with -incoming defer and ${socket}` : `with ${socket}`;
    return `start the VM's QEMU ${how}`;
  }

  /** Finds the VM's QEMU or starts it; undefined if the agent ends meanwhile. */
  async #startQemu(): Promise<VmAgent | undefined> {
    const { config, parts } = this;
    const managed = config.managed!;
    while (!this.#closed) {
      if (findQemu(managed) !== undefined) {
        this.#started = false;
        return this.#adopt();
      }
      const next = await this.#next();
      if (next.type === "off" || next.type === "ask_again") {
        if (next.type === "off") this.#say("stopped", next.reason);
        await this.#pause(next.type === "off" ? undefined : LOOK_MS);
        continue;
      }
      const role = next.type === "boot" ? "primary" : "secondary";
      this.#say("starting", role === "primary" ? "QEMU boots the VM" : "QEMU starts with -incoming");
      if (role === "primary") {
        this.#marker?.remove(); // from here on the VM itself writes the images
        const committed = await commitOverlays(managed);
        if (committed.length > 0) {
          parts.log.info("the overlays of the last instance were committed to the disks", {
            vm: config.name,
            disks: committed.map(({ name }) => name),
          });
        }
      }
      const { pid } = await startQemu(managed, role);
      parts.log.info("QEMU started", { vm: config.name, role, pid });
      try {
        const life = await this.#adopt();
        this.#started = false;
        return life;
      } catch (error) {
        await endQemu(managed);
        throw error;
      }
    }
    return undefined;
  }

  async #next() {
    const { arbiter } = this.parts;
    const { recordSeen, lastRun, off } = this.#memory.kept;
    let record: Parameters<typeof nextLife>[0]["record"];
    try {
      record = await arbiter.read(this.config.name);
    } catch (error) {
      record = "unknown";
      this.#say("starting", `the arbiter does not answer: ${(error as Error).message}`);
    }
    if (record !== undefined && record !== "unknown") this.#memory.keep({ recordSeen: true });
    return nextLife({
      self: this.agent.agent.name,
      peer: this.agent.peer.name,
      configuredRole: this.config.initial_role,
      arbiter: arbiter.configured,
      restart: this.config.managed?.restart ?? true,
      record,
      recordSeen,
      lastRun,
      off,
      started: this.#started,
    });
  }

  async #adopt(): Promise<VmAgent> {
    const { rest } = this.#memory.kept;
    // Whatever becomes of it now, no later life may rely on it.
    this.#memory.keep({ rest: undefined });
    const life = await VmAgent.adopt(this.config, this.agent, {
      ...this.parts,
      rest,
      tuning: this.#tuning,
      marker: this.#marker,
      onPhase: (vm) => this.#phaseChanged(vm),
    });
    this.#life = life;
    if (this.#closed) await life.close();
    return life;
  }

  #phaseChanged({ state }: VmAgent): void {
    const lastRun = PHASES[state.phase].lastRun;
    this.#memory.keep({
      ...(state.record === undefined ? {} : { recordSeen: true }),
      ...(lastRun === undefined ? {} : { lastRun }),
    });
    if (state.phase === "stopped") this.#wakeUp();
  }

  /** Waits until a life has ended and closes it. Returns why it ended; undefined if the agent ends. */
  async #follow(life: VmAgent): Promise<string | undefined> {
    const { managed, name } = this.config;
    while (!this.#hasEnded(life)) {
      await this.#pause(LOOK_MS);
      if (this.#closed) return undefined;
      if (managed === undefined) continue;
      try {
        await this.#removeCommittedOverlays(life);
        if (this.#waitsForTakeover() && (await this.#isToBoot())) break;
      } catch (error) {
        this.parts.log.debug("cannot read the state of the VM's instance", { vm: name, error });
      }
    }
    if (this.#closed) return undefined;
    const { reason = "its QEMU has ended", shutdown, record } = life.state;
    const mine = record === undefined || record.holder === this.agent.agent.name;
    if (managed !== undefined && shutdown !== undefined && reason === shutdown && mine) {
      this.#memory.keep({ off: `${reason}; colo-agent start ${name}` });
    }
    this.#say("starting", reason);
    this.#life = undefined;
    this.parts.metrics.forget(name);
    this.parts.log.info("an instance of the VM has ended on this host", { vm: name, reason });
    await life.end(async () => {
      if (managed !== undefined) await endQemu(managed);
    });
    // A VM that is off has all of its disks in their images.
    if (managed !== undefined && this.#memory.kept.off !== undefined) await commitOverlays(managed);
    return reason;
  }

  #hasEnded(life: VmAgent): boolean {
    const { phase, goal, needsAdministrator } = life.state;
    // A goal is still to be written into the record: that nobody takes a VM over that was shut down.
    if (phase !== "stopped" || goal !== undefined) return false;
    if (needsAdministrator && !this.#started) return false;
    return this.config.managed !== undefined || life.qemuGone;
  }

  /** The record calls this host the holder, whose VM is gone, and the peer's replica the last copy of it. */
  #waitsForTakeover(): boolean {
    const state = this.#life?.state;
    return state?.phase === "waiting" && state.record?.holder === this.agent.agent.name;
  }

  /** The replica that was waited for is gone too. */
  async #isToBoot(): Promise<boolean> {
    const record = await this.parts.arbiter.read(this.config.name);
    return record !== undefined && record.holder === this.agent.agent.name && !record.replicaValid;
  }

  /** QEMU writes the overlays of a VM that took over back into its disks; from then on they are old. */
  async #removeCommittedOverlays(life: VmAgent): Promise<void> {
    const managed = this.config.managed!;
    if (!isHolder(life.state)) return;
    const disks = managed.disks.filter((disk) =>
      existsSync(overlayPaths(managed.overlayDirectory, disk).active),
    );
    if (disks.length === 0) return;
    const nodes = new Set((await blockNodes(life.qmp)).map((node) => node["node-name"]));
    removeOverlays(
      managed,
      disks.filter((disk) => !nodes.has(secondaryNodes(disk).active)),
    );
  }

  #say(phase: Between["phase"], reason: string): void {
    if (this.#between.phase === phase && this.#between.reason === reason) return;
    this.#between = { phase, reason, sinceMs: bootMs() };
  }

  /** Waits, or until something has happened. */
  async #pause(ms: number | undefined): Promise<void> {
    if (!this.#woken && !this.#closed) {
      const { promise, resolve } = Promise.withResolvers<void>();
      this.#wake = resolve;
      const timer = ms === undefined ? undefined : setTimeout(resolve, ms);
      await promise;
      clearTimeout(timer);
      this.#wake = undefined;
    }
    this.#woken = false;
  }

  #wakeUp(): void {
    this.#woken = true;
    this.#wake?.();
  }
}
