/**
 * Keeps a VM running on this host, from one QEMU to the next: one {@link VmInstance} is one QEMU. What comes
 * after an instance is decided by next_instance.ts, what happens in it by src/failover.
 *
 * A managed QEMU is started, found again, ended and replaced here. One that somebody else starts is waited
 * for.
 */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { type CommandNumbers, isOperatorCommand, type VmStatus } from "../api/status.ts";
import type { Config, VmConfig } from "../config/config.ts";
import { isHolder, PHASES, type State } from "../failover/state.ts";
import { checkTap } from "../host/links.ts";
import { commitOverlays, removeOverlays } from "../qemu/images.ts";
import { endQemu, findQemu, startQemu } from "../qemu/instance.ts";
import type { QemuSettings } from "../qemu/settings.ts";
import { QmpConnectError } from "../qmp/errors.ts";
import { blockNodes } from "../qmp/vm.ts";
import { overlayPaths, secondaryNodes } from "../storage/disk_graph.ts";
import { ReplicaMarker } from "../storage/replica_marker.ts";
import { adopt, type HostParts } from "./adopt.ts";
import type { VmInstance } from "./instance.ts";
import { InstanceMemory } from "./instance_memory.ts";
import { type InstanceFacts, type NextInstance, nextInstance } from "./next_instance.ts";
import { powerDown } from "./power_down.ts";
import { type Between, statusBetween } from "./status_between.ts";
import { Tuning } from "./tuning.ts";
import { Waiter } from "./waiter.ts";

/** A QEMU that ends sooner than that makes the next one wait. */
const SHORT_INSTANCE_MS = 5_000;
const FIRST_PAUSE_MS = 1_000;
const PAUSE_MS_MAX = 30_000;
/** Between two looks at an instance, and at an arbiter or a socket that is waited for. */
const LOOK_MS = 500;
/** Default of the time that a guest gets to shut itself down. */
const POWERDOWN_MS = 60_000;

/** What the keeper does to this host, apart from its own files. */
interface KeeperTools {
  adopt: typeof adopt;
  findQemu: typeof findQemu;
  startQemu: typeof startQemu;
  endQemu: typeof endQemu;
  commitOverlays: typeof commitOverlays;
  checkTap(tap: string): Promise<unknown>;
}

const TOOLS: KeeperTools = { adopt, findQemu, startQemu, endQemu, commitOverlays, checkTap };

export class VmKeeper {
  #instance: VmInstance | undefined;
  #between: Between = { phase: "starting", reason: "the agent begins" };
  readonly #memory: InstanceMemory;
  readonly #tuning: Tuning;
  readonly #marker: ReplicaMarker | undefined;
  readonly #waiter = new Waiter();
  /** The administrator's `start` has not led to an instance yet. */
  #started = false;
  #stopping = false;
  /** A QEMU that was to be ended may still be there. */
  #unended = false;

  private constructor(
    readonly config: VmConfig,
    private readonly agent: Config,
    private readonly parts: HostParts,
    private readonly tools: KeeperTools,
  ) {
    const directory = join(agent.agent.state_directory, "vm");
    this.#memory = new InstanceMemory(join(directory, `${config.name}.json`), config.nic.length);
    this.#tuning = new Tuning(config);
    // Of a QEMU that somebody else starts, images may be written by anybody.
    this.#marker = config.managed === undefined ? undefined : new ReplicaMarker(directory, config.name);
  }

  /** A keeper that does nothing yet. Throws an Error whose message says what to do. */
  static create(config: VmConfig, agent: Config, parts: HostParts, tools = TOOLS): VmKeeper {
    return new VmKeeper(config, agent, parts, tools);
  }

  /**
   * Begins. A QEMU that another program started is adopted before this returns, so that what is wrong with
   * it is reported at once; everything else happens later. Throws an Error whose message says what to do.
   */
  async begin(): Promise<void> {
    const { config } = this;
    for (const { tap } of config.nic) await this.tools.checkTap(tap);
    let first: VmInstance | undefined;
    if (config.managed === undefined && existsSync(config.qmp)) {
      try {
        first = await this.#adopt();
      } catch (error) {
        if (!(error instanceof QmpConnectError)) throw error; // nobody listens there yet
      }
    }
    void this.#run(first);
  }

  /** The VM's QEMU on this host; undefined while there is none. */
  get instance(): VmInstance | undefined {
    return this.#instance;
  }

  /** The same. Throws an Error that says why there is none. */
  get presentInstance(): VmInstance {
    if (this.#instance === undefined)
      throw new Error(`VM ${this.config.name} has no QEMU on this host: ${this.#between.reason}`);
    return this.#instance;
  }

  // --- the administrator ---

  /** Carries out a command. Throws an Error whose message says why it cannot be. */
  command(command: string, { for_ms: forMs, period_ms, resync_bytes_per_second }: CommandNumbers): void {
    if (command === "start") this.#start();
    else if (command === "stop") this.#stop(forMs ?? POWERDOWN_MS);
    else if (command === "tune")
      this.#tuning.change({
        ...(period_ms === undefined ? {} : { periodMs: period_ms }),
        ...(resync_bytes_per_second === undefined ? {} : { resyncBytesPerSecond: resync_bytes_per_second }),
      });
    else if (isOperatorCommand(command)) this.presentInstance.command(command, forMs);
    else throw new Error(`there is no command ${command}`);
  }

  #start(): void {
    const { name, managed } = this.config;
    const state = this.#instance?.state;
    if (managed === undefined) {
      throw new Error(`VM ${name}: another program starts its QEMU (no [vm.qemu] in the configuration)`);
    }
    if (state === undefined || (state.phase === "stopped" && state.needsAdministrator)) {
      this.#memory.keep({ off: undefined });
      this.#started = true;
      this.#say("starting", "started by the administrator");
      this.#waiter.wake();
      return;
    }
    this.#instance?.command("boot");
  }

  #stop(limitMs: number): void {
    const instance = this.presentInstance;
    const { phase } = instance.state;
    if (!isHolder(instance.state)) {
      throw new Error(
        `VM ${this.config.name}: this host does not run it ("${phase}"); ask the agent of ` +
          `${this.agent.peer.name}`,
      );
    }
    if (this.#stopping) throw new Error(`VM ${this.config.name} is being shut down already`);
    this.#stopping = true;
    const runs = () => this.#instance === instance && isHolder(instance.state);
    void powerDown(instance.qmp, runs, limitMs, this.parts.log.child({ vm: this.config.name })).finally(
      () => {
        this.#stopping = false;
      },
    );
  }

  status(): VmStatus {
    const { managed } = this.config;
    const qemuPid = managed === undefined ? undefined : this.tools.findQemu(managed)?.pid;
    const between = statusBetween(this.config, this.agent, this.#between, this.#tuning.values);
    const status = { ...between, qemuPid, ...this.#instance?.status() };
    if (this.#stopping) status.words = { ...status.words, now: `${status.words.now}; it is being shut down` };
    return status;
  }

  /**
   * This agent is about to end, and to begin again at once: announces that to the peer, and remembers what
   * that needs. Throws an Error that says why the VM's protection could not outlive it.
   */
  async announceRestart(): Promise<void> {
    this.#memory.keep({ rest: await this.#instance?.announceRestart() });
  }

  /** It does not end after all. */
  cancelRestart(): void {
    this.#memory.keep({ rest: undefined });
    this.#instance?.cancelRestart();
  }

  /** Ends the agent's part. QEMU stays. */
  async close(): Promise<void> {
    this.#waiter.close();
    await this.#instance?.close();
  }

  // --- instances ---

  async #run(first: VmInstance | undefined): Promise<void> {
    let instance = first;
    let pauseMs = 0;
    while (!this.#waiter.closed) {
      let short = true;
      try {
        const { managed } = this.config;
        instance ??= managed === undefined ? await this.#awaitQemu() : await this.#startQemu(managed);
        if (instance === undefined) return; // closed
        const begunMs = performance.now();
        const reason = await this.#follow(instance);
        if (reason === undefined) return;
        short = performance.now() - begunMs < SHORT_INSTANCE_MS;
        this.#say("starting", reason);
      } catch (error) {
        if (this.#waiter.closed) return;
        this.parts.log.error("the VM has no QEMU on this host", { vm: this.config.name, error });
        this.#say("starting", (error as Error).message);
      }
      instance = undefined;
      pauseMs = short ? Math.min(PAUSE_MS_MAX, pauseMs === 0 ? FIRST_PAUSE_MS : 2 * pauseMs) : 0;
      if (pauseMs === 0) continue;
      this.#say("starting", `${this.#between.reason}; the next attempt is in ${pauseMs / 1000} s`);
      await this.#waiter.pause(pauseMs);
    }
  }

  /** For a QEMU that somebody else starts. */
  async #awaitQemu(): Promise<VmInstance | undefined> {
    const { qmp } = this.config;
    while (!this.#waiter.closed) {
      if (existsSync(qmp)) {
        try {
          return await this.#adopt();
        } catch (error) {
          if (!(error instanceof QmpConnectError)) throw error;
        }
      }
      this.#say("starting", `there is no QMP socket at ${qmp}; ${await this.#whatToStart()}`);
      await this.#waiter.pause(LOOK_MS);
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
  async #startQemu(managed: QemuSettings): Promise<VmInstance | undefined> {
    const { config, parts, tools } = this;
    while (!this.#waiter.closed) {
      if (this.#unended) await this.#endQemu();
      if (tools.findQemu(managed) !== undefined) {
        this.#started = false;
        return this.#adopt();
      }
      const next = await this.#next();
      if (next.type === "off" || next.type === "ask_again") {
        if (next.type === "off") this.#say("stopped", next.reason);
        await this.#waiter.pause(next.type === "off" ? undefined : LOOK_MS);
        continue;
      }
      const role = next.type === "boot" ? "primary" : "secondary";
      this.#say("starting", role === "primary" ? "QEMU boots the VM" : "QEMU starts with -incoming");
      if (role === "primary") {
        this.#marker?.remove(); // from here on the VM itself writes the images
        const committed = await tools.commitOverlays(managed);
        if (committed.length > 0) {
          parts.log.info("the overlays of the last instance were committed to the disks", {
            vm: config.name,
            disks: committed.map(({ name }) => name),
          });
        }
      }
      const { pid } = await tools.startQemu(managed, role);
      parts.log.info("QEMU started", { vm: config.name, role, pid });
      try {
        const instance = await this.#adopt();
        this.#started = false;
        return instance;
      } catch (error) {
        await this.#endQemu();
        throw error;
      }
    }
    return undefined;
  }

  /**
   * Ends a managed QEMU. Throws an Error if it does not end in time; then it is tried again before the next
   * one is started.
   */
  async #endQemu(): Promise<void> {
    const { managed } = this.config;
    if (managed === undefined) return;
    this.#unended = true;
    await this.tools.endQemu(managed);
    this.#unended = false;
  }

  async #next(): Promise<NextInstance> {
    const { arbiter } = this.parts;
    const { recordSeen, lastRun, off } = this.#memory.kept;
    let record: InstanceFacts["record"];
    if (arbiter.configured) {
      try {
        record = await arbiter.read(this.config.name);
      } catch (error) {
        record = "unknown";
        this.#say("starting", `the arbiter does not answer: ${(error as Error).message}`);
      }
      if (record !== undefined && record !== "unknown") this.#memory.keep({ recordSeen: true });
    }
    return nextInstance({
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

  async #adopt(): Promise<VmInstance> {
    const { rest } = this.#memory.kept;
    // No later instance may rely on it, even if this one fails.
    this.#memory.keep({ rest: undefined });
    const instance = await this.tools.adopt(this.config, this.agent, this.parts, {
      rest,
      tuning: this.#tuning,
      marker: this.#marker,
      phaseChanged: (state) => this.#phaseChanged(state),
    });
    this.#instance = instance;
    if (this.#waiter.closed) await instance.close();
    return instance;
  }

  #phaseChanged(state: Readonly<State>): void {
    const { lastRun } = PHASES[state.phase];
    this.#memory.keep({
      ...(state.record === undefined ? {} : { recordSeen: true }),
      ...(lastRun === undefined ? {} : { lastRun }),
    });
    if (state.phase === "stopped") this.#waiter.wake();
  }

  /** Waits until an instance has ended and closes it. Returns why it ended; undefined if the agent ends. */
  async #follow(instance: VmInstance): Promise<string | undefined> {
    const { managed, name } = this.config;
    while (!this.#hasEnded(instance)) {
      await this.#waiter.pause(LOOK_MS);
      if (this.#waiter.closed) return undefined;
      if (managed === undefined) continue;
      try {
        await this.#removeCommittedOverlays(instance, managed);
      } catch (error) {
        this.parts.log.debug("cannot read the state of the VM's instance", { vm: name, error });
      }
    }
    if (this.#waiter.closed) return undefined;
    const { reason = "its QEMU has ended", shutdown, record, bootsNext } = instance.state;
    const mine = record === undefined || record.holder === this.agent.agent.name;
    if (managed !== undefined && shutdown !== undefined && reason === shutdown && mine) {
      this.#memory.keep({ off: `${reason}; colo-agent start ${name}` });
    }
    if (bootsNext) this.#started = true;
    this.#say("starting", reason);
    this.#instance = undefined;
    this.parts.metrics.forget(name);
    this.parts.log.info("an instance of the VM has ended on this host", { vm: name, reason });
    await instance.end(() => this.#endQemu());
    // A VM that is off has all of its disks in their images.
    if (managed !== undefined && this.#memory.kept.off !== undefined)
      await this.tools.commitOverlays(managed);
    return reason;
  }

  #hasEnded(instance: VmInstance): boolean {
    const { phase, goal, needsAdministrator } = instance.state;
    // A goal is still to be written into the record: that nobody takes a VM over that was shut down.
    if (phase !== "stopped" || goal !== undefined) return false;
    if (needsAdministrator && !this.#started) return false;
    return this.config.managed !== undefined || instance.qemuGone;
  }

  /** QEMU writes the overlays of a VM that took over back into its disks; from then on they are old. */
  async #removeCommittedOverlays(instance: VmInstance, managed: QemuSettings): Promise<void> {
    if (!isHolder(instance.state)) return;
    const disks = managed.disks.filter((disk) =>
      existsSync(overlayPaths(managed.overlayDirectory, disk).active),
    );
    if (disks.length === 0) return;
    const nodes = new Set((await blockNodes(instance.qmp)).map((node) => node["node-name"]));
    removeOverlays(
      managed,
      disks.filter((disk) => !nodes.has(secondaryNodes(disk).active)),
    );
  }

  #say(phase: Between["phase"], reason: string): void {
    this.#between = { phase, reason };
  }
}
