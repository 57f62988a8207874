/**
 * Everything of one run, from one seed: the hosts, what connects them, what goes wrong and what must hold.
 */
import { decide } from "../../src/failover/decide.ts";
import { Driver } from "../../src/failover/driver.ts";
import type { Event } from "../../src/failover/events.ts";
import type { Settings, State } from "../../src/failover/state.ts";
import { Random } from "../random.ts";
import { Agent } from "./agent.ts";
import { Arbiter } from "./arbiter.ts";
import type { Coverage } from "./coverage.ts";
import { plan, type Trap } from "./faults.ts";
import { Host, type Name, other } from "./host.ts";
import { Network } from "./network.ts";
import { EventQueue, type Timer } from "./queue.ts";
import { Violation } from "./violation.ts";
import { contains, Engine, Outside, type Qemu, resetIds } from "./vm.ts";

const FAULTS_FROM_MS = 2_000;
const FAULTS_UNTIL_MS = 14_000;
/** All faults are over. */
const HEALED_MS = 18_000;
/** By then the pair must be protected again: the supervisor's pauses, a few attempts. */
const LIMIT_MS = 90_000;

export type Decide = typeof decide;

/** The product's, or one of them with a rule broken. */
export interface Rules {
  decide: Decide;
  driver: typeof Driver;
}

export const REAL: Rules = { decide, driver: Driver };

type Record = NonNullable<State["record"]>;

type Outcome = "protected" | "shut down" | "lost" | "no arbiter";

interface TraceLine {
  atMs: number;
  who: string;
  text: string;
}

export class World {
  readonly queue = new EventQueue();
  readonly random: Random;
  readonly network = new Network(this);
  readonly arbiter = new Arbiter(this);
  readonly outside = new Outside();
  readonly engine = new Engine(this);
  /** Those that count, and replaced ones. */
  readonly hosts: Host[] = [];
  readonly qemus: Qemu[] = [];
  readonly traps: Trap[] = [];
  readonly lines: TraceLine[] = [];
  readonly intervalMs: number;
  readonly lossRate: number;
  /** How long the way to the arbiter takes at most, usually. */
  readonly arbiterMs: number;
  over = false;
  healed = false;
  steps = 0;
  #shutDown = false;
  #fenceWorks = true;
  readonly #settings: Omit<Settings, "self" | "peer" | "configuredRole">;
  readonly #driftPpm: number;
  readonly #worstClocks: boolean;
  #agents = 0;

  constructor(
    readonly seed: number,
    readonly coverage: Coverage,
    readonly rules: Rules = REAL,
    readonly tracing = false,
  ) {
    resetIds();
    const random = new Random(seed);
    this.random = random;
    this.intervalMs = random.between(60, 160);
    this.lossRate = random.pick([0, 0.02, 0.3]);
    this.#worstClocks = random.chance(0.2);
    this.arbiterMs = random.pick([5, 20, 20, 900]);
    this.#driftPpm = this.#worstClocks ? 100_000 : random.pick([0, 200, 500, 20_000]);
    const leaseMs = Math.round(random.between(500, 1_500));
    const drift = this.#driftPpm / 1e6;
    this.#settings = {
      arbiter: !random.chance(0.04),
      timeoutMs: Math.round(random.between(3.2 * this.intervalMs, 2 * leaseMs)),
      leaseMs,
      // As src/config/timing.ts asks for: the lease by the slowest clock against the wait by the fastest.
      marginMs: Math.ceil(leaseMs * ((1 + drift) / (1 - drift) - 1)) + 5,
      arbiterRetryMs: 300,
      protectRetryMs: 1_000,
      restartMs: 3_000,
      takeoverPatienceMs: 1_000,
      adoptable: true,
      fence: random.pick(["none", "none", "none", "none", "try", "required"]),
    };
  }

  get nowMs(): number {
    return this.queue.nowMs;
  }

  after(ms: number, run: () => void): Timer {
    return this.queue.after(ms, run);
  }

  trace(who: string, text: () => string): void {
    if (this.tracing) this.lines.push({ atMs: this.nowMs, who, text: text() });
  }

  settingsOf(host: Host): Settings {
    return {
      ...this.#settings,
      self: host.name,
      peer: other(host.name),
      configuredRole: host.name === "a" ? "primary" : "secondary",
    };
  }

  get hasArbiter(): boolean {
    return this.#settings.arbiter;
  }

  host(name: Name): Host {
    return this.hosts.find((host) => host.name === name && !host.replaced)!;
  }

  peerOf(host: Host): Host {
    return this.host(other(host.name));
  }

  /** Runs until the pair is protected after the last fault. Throws a {@link Violation}. */
  run(): Outcome {
    for (const name of ["a", "b"] as const) {
      const host = this.#newHost(name, name);
      host.startQemu(name === "a" ? this.outside.last : undefined);
      this.startAgent(host);
      this.#supervise(name);
    }
    plan(this, FAULTS_FROM_MS, FAULTS_UNTIL_MS);
    this.after(HEALED_MS, () => this.#heal());
    while (!this.over) {
      if (!this.queue.step()) throw new Error("nothing happens any more");
      this.steps++;
      if (this.nowMs > LIMIT_MS) return this.#atTheEnd();
    }
    return this.#shutDown ? "shut down" : this.#settings.arbiter ? "protected" : "no arbiter";
  }

  #newHost(name: Name, id: string): Host {
    // The primary's clock as slow and the other as fast as is allowed: what the margin is for.
    const worst = 1 + (this.#worstClocks ? this.#driftPpm : 0) / (name === "a" ? -1e6 : 1e6);
    const rate = 1 + (this.random.between(-1, 1) * this.#driftPpm) / 1e6;
    // Clocks at the limits of what is allowed are the interesting ones.
    const extreme = 1 + (this.random.pick([-1, 1]) * this.#driftPpm) / 1e6;
    const drawn = this.random.chance(0.5) ? rate : extreme;
    const host = new Host(this, name, id, this.#worstClocks ? worst : drawn);
    this.hosts.push(host);
    return host;
  }

  startAgent(host: Host): void {
    host.agent = new Agent(host, `${host.id}.${++this.#agents}`);
  }

  // --- what must hold ---

  /** Rule 1. Permission begins only where a kernel is told so; there is no need to look at other moments. */
  checkOnePrimary(): void {
    const permitted = this.hosts.filter((host) => host.permitted);
    if (permitted.length < 2) return;
    const [one, two] = permitted as [Host, Host];
    const left = (host: Host) =>
      `${host.id} for ${(host.kernel.leaseUntilMs - host.clockMs).toFixed(1)} ms more`;
    throw new Violation(1, `the kernels of ${left(one)} and of ${left(two)} let output pass`);
  }

  /** What the record now says decides which copies count. */
  recorded(agent: Agent, ran: boolean, before: Record | undefined, after: Record): void {
    const { host } = agent;
    if (before === undefined || before.holder === after.holder) {
      const { agent: keeper, qemu: replica } = this.peerOf(host);
      const kept = keeper?.state.phase === "standby" && keeper.state.generation === after.generation;
      // A write that arrives when one of the two has given up already promises nothing.
      if (after.replicaValid && kept && agent.alive && agent.holds && replica !== undefined)
        replica.promised = true;
      // The holder goes on alone, with a VM of its own.
      if (before?.replicaValid && !after.replicaValid && host.name === after.holder && ran)
        this.#supersede(host, `given up in revision ${after.revision}`);
      return;
    }
    if (!agent.alive) {
      this.coverage.count("takeovers written by agents that had ended");
      const { agent: next } = host;
      if (next?.started && next.state.phase !== "starting")
        throw new Violation(
          6,
          `${next.id} is ${next.state.phase}, and ${agent.id}, which was before it, takes the VM`,
        );
    }
    this.#supersede(host, `superseded in term ${after.term}`);
  }

  #supersede(host: Host, why: string): void {
    for (const qemu of this.qemus) {
      if (qemu.host !== host) qemu.hurt ??= why;
    }
  }

  performed(agent: Agent, what: string): void {
    this.coverage.count(what);
    this.#spring(what, agent.host);
  }

  #spring(on: string, host: Host): void {
    const i = this.traps.findIndex((trap) => trap.on === on && (trap.when?.(host) ?? true));
    if (i < 0) return;
    const [trap] = this.traps.splice(i, 1);
    trap!.fire(host);
  }

  decided(agent: Agent, before: State, event: Event, after: State): void {
    const { phase } = after;
    if (phase === before.phase) return;
    this.coverage.count(`phase ${phase}`);
    this.coverage.count(`${before.phase} > ${event.type} > ${phase}`);
    this.trace(agent.id, () => `phase ${before.phase} -> ${phase}${after.reason ? `: ${after.reason}` : ""}`);
    this.#spring(`phase ${phase}`, agent.host);
    this.#look();
  }

  /** Ends the run when all is well after the faults. */
  #look(): void {
    if (!this.healed) return;
    if (!this.#settings.arbiter) {
      // Without an arbiter nobody is promoted, so that nothing can be asked of the end but rules 1 to 3.
      this.after(3_000, () => {
        this.over = true;
      });
      return;
    }
    if (this.#shutDown) {
      this.over = true;
      return;
    }
    const primary = this.hosts.find((host) => !host.replaced && host.agent?.state.phase === "protected");
    const { record } = this.arbiter;
    if (primary === undefined || record === undefined) return;
    const { agent: secondary } = this.peerOf(primary);
    this.over =
      record.holder === primary.name &&
      record.replicaValid &&
      secondary?.state.phase === "standby" &&
      secondary.state.generation === primary.agent!.state.generation;
  }

  /** Rule 6, for a run that has not come to its good end. */
  #atTheEnd(): Outcome {
    this.over = true;
    if (!this.#settings.arbiter) return "no arbiter";
    if (this.#shutDown) return "shut down";
    const intact = this.qemus.filter(
      (qemu) =>
        qemu.hurt === undefined &&
        (qemu.mode === "running" || qemu.promised) &&
        qemu.complete &&
        contains(qemu.state!, this.outside.last),
    );
    if (intact.length === 0) return "lost";
    const where = intact.map(
      (qemu) => `${qemu.host.id} (${qemu.alive ? qemu.mode : "ended by the supervisor"})`,
    );
    const phases = this.hosts.map((host) => `${host.id} is ${host.agent?.state.phase ?? "down"}`).join(", ");
    throw new Violation(
      6,
      `${phases}; yet there is, or was, an intact copy of the VM on ${where.join(" and ")}`,
    );
  }

  // --- the world's hand ---

  thaw(agent: Agent): void {
    this.trace(agent.id, () => "runs again");
    agent.thaw();
  }

  powerOff(host: Host, hurt: string): void {
    if (!this.#settings.arbiter && host.agent?.state.phase === "protected" && host.permitted)
      this.#promoteByHand(host);
    host.crash(hurt);
    const { network } = this;
    this.after(this.random.skewed(1_500, 8_000), () => {
      if (host.up || host.replaced) return;
      this.trace(host.id, () => "boots");
      host.boot();
      host.startQemu(undefined);
      this.startAgent(host);
      network.heal("none"); // what was sent meanwhile is answered by a reset
    });
  }

  /** Without an arbiter: the administrator sees to it that the host stays off, then has the replica go on. */
  #promoteByHand(lost: Host): void {
    const { agent } = this.peerOf(lost);
    this.after(this.random.between(500, 1_400), () =>
      agent?.ask({ type: "promote_wanted" }, () => undefined),
    );
  }

  /**
   * The administrator takes a host that hangs for lost and puts a new one in its place; later the old one
   * goes on.
   */
  replace(old: Host): void {
    const { agent } = old;
    if (!old.up || agent === undefined || this.hosts.length > 2) return;
    agent.freeze();
    old.cutOff = true;
    this.after(this.random.between(2_000, 4_000), () => {
      if (!old.up || this.healed || this.hosts.length > 2) {
        old.cutOff = false;
        this.network.heal("none");
        return;
      }
      old.replaced = true;
      old.reachable = this.random.chance(0.5);
      // One that is only starting would renounce its replacement's replica, as nobody could tell it from an
      // earlier agent of that.
      if (old.agent?.state.phase === "starting") old.agent.die("process");
      else old.agent?.freeze();
      if (old.qemu !== undefined) old.qemu.hurt ??= "its host was replaced";
      const host = this.#newHost(old.name, `${old.name}'`);
      this.trace(host.id, () => `stands in for ${old.id}`);
      host.startQemu(undefined);
      this.startAgent(host);
      for (const connection of [...this.network.connections]) {
        // The new host knows nothing of the old one's connections, and says so.
        if (connection.dialer.host === old) connection.close(connection.acceptor);
        if (connection.acceptor.host === old) connection.close(connection.dialer);
      }
    });
    this.after(this.random.between(5_000, 12_000), () => {
      if (old.agent !== undefined) this.thaw(old.agent);
    });
  }

  shutDownVm(host: Host): void {
    const { qemu, agent } = host;
    if (qemu === undefined || !qemu.runs || !host.permitted) return;
    this.#shutDown = true;
    agent?.post(() => agent.tell({ type: "shutdown", reason: "the VM was shut down" }));
    this.after(this.random.skewed(1, 60), () => {
      if (host.qemu === qemu) host.killQemu("shut down");
    });
  }

  /** A fence device switches the other host off, or does not. */
  fence(agent: Agent, done: (ok: boolean, output: string) => void): void {
    const ok = this.#fenceWorks && (this.healed || this.random.chance(0.7));
    this.coverage.count(ok ? "fencing succeeded" : "fencing failed");
    this.after(this.random.skewed(50, 1_500), () => {
      if (ok) {
        for (const host of this.hosts) {
          if (host.name === agent.host.name || !host.up || host.replaced) continue;
          if (this.arbiter.record?.holder === host.name)
            throw new Violation(6, `${agent.id} turns ${host.id} off, which holds the VM`);
          this.powerOff(host, "fenced");
        }
      }
      agent.post(() => done(ok, ok ? "" : "the fence device does not answer"));
    });
  }

  #heal(): void {
    this.trace("world", () => "all faults are over");
    this.healed = true;
    this.traps.length = 0;
    this.network.heal();
    this.arbiter.up = true;
    for (const host of this.hosts) {
      host.reachable = false;
      host.uplink = true;
      if (host.qemu !== undefined) host.qemu.hang = undefined;
      const { agent } = host;
      if (agent === undefined) continue;
      agent.interrupt = undefined;
      if (agent.frozen && !host.replaced) this.thaw(agent);
    }
    for (const host of this.hosts) {
      if (host.agent?.started) host.agent.ask({ type: "protect_wanted" }, () => undefined);
    }
    this.#look();
  }

  /**
   * systemd, and an administrator who comes by now and then: what has ended is started, what has stopped is
   * started afresh.
   */
  #supervise(name: Name): void {
    const again = () => this.after(this.random.between(300, 900), () => this.#supervise(name));
    const host = this.host(name);
    const { agent } = host;
    if (!host.up || this.#shutDown) {
      again();
      return;
    }
    const stopped = agent?.state.phase === "stopped" && host.clockMs - agent.state.sinceMs > 2_000;
    if (agent === undefined || stopped) {
      this.trace(
        "supervisor",
        () => `starts the agent of ${host.id}${stopped ? " afresh, with a new QEMU" : ""}`,
      );
      if (stopped) {
        host.killQemu(undefined);
        agent?.die("process");
      }
      if (host.qemu === undefined) host.startQemu(undefined);
      this.startAgent(host);
    }
    again();
  }
}
