/** One host: its clock, its kernel, its QEMU and its agent. */
import type { Agent } from "./agent.ts";
import { Qemu, type VmState } from "./vm.ts";
import type { World } from "./world.ts";

export type Name = "a" | "b";
export function other(name: Name): Name {
  return name === "a" ? "b" : "a";
}

type Role = "blocked" | "primary" | "secondary" | "solo" | "successor";

export class Host {
  up = true;
  agent: Agent | undefined;
  qemu: Qemu | undefined;
  uplink = true;
  /** Held output, in the kernel's ring. */
  held: { state: VmState; verified: boolean }[] = [];
  /** Another machine stands in for this one, under its name; this one hangs, or the world forgot it. */
  replaced = false;
  /** Replaced, but still on the clients' network, with the address that its replacement has too. */
  reachable = false;
  /** Its port on the replication link is dead. */
  cutOff = false;
  readonly kernel: { role: Role; leaseUntilMs: number } = { role: "blocked", leaseUntilMs: 0 };
  /** The replica that its agent has left in good order, on its disk. */
  rest: { generation: number } | undefined;
  #offsetMs = 0;

  constructor(
    readonly world: World,
    readonly name: Name,
    readonly id: string,
    /** How fast its clock runs. */
    readonly rate: number,
  ) {
    this.bootClock();
  }

  bootClock(): void {
    this.#offsetMs = this.world.random.between(0, 1e6);
  }

  /** CLOCK_BOOTTIME of this host. */
  get clockMs(): number {
    return this.#offsetMs + this.world.nowMs * this.rate;
  }

  /** Whether its kernel would let the VM's output out at this moment, by its own clock. */
  get permitted(): boolean {
    const { role, leaseUntilMs } = this.kernel;
    return this.up && role !== "blocked" && role !== "secondary" && this.clockMs < leaseUntilMs;
  }

  setRole(role: Role): void {
    this.kernel.role = role;
    this.world.checkOnePrimary();
  }

  extendLease(untilMs: number): void {
    if (untilMs <= this.kernel.leaseUntilMs) return;
    this.kernel.leaseUntilMs = untilMs;
    this.world.checkOnePrimary();
  }

  block(): void {
    this.kernel.role = "blocked";
    this.kernel.leaseUntilMs = 0;
  }

  startQemu(state: VmState | undefined): Qemu {
    const qemu = new Qemu(this, state);
    this.qemu = qemu;
    this.world.qemus.push(qemu);
    this.world.engine.start(qemu);
    return qemu;
  }

  killQemu(hurt: string | undefined): void {
    const { qemu } = this;
    if (qemu === undefined) return;
    qemu.alive = false;
    qemu.hurt ??= hurt;
    if (qemu.pair !== undefined) qemu.pair.broken = true;
    this.qemu = undefined;
    this.agent?.qemuClosed(qemu);
  }

  /** The comparer has judged one held output. */
  compared(state: VmState, same: boolean): void {
    if (!same) {
      this.agent?.wake?.();
      return;
    }
    const { held } = this;
    const found = held.find((output) => output.state === state);
    if (found !== undefined) found.verified = true;
    while (held[0]?.verified) this.world.engine.emit(this, held.shift()!.state);
  }

  /** Lets out what is held, up to `limit`. */
  release(limit?: VmState): void {
    const { held } = this;
    while (held.length > 0 && (limit === undefined || held[0]!.state.depth <= limit.depth)) {
      this.world.engine.emit(this, held.shift()!.state);
    }
  }

  /** The power fails. */
  crash(hurt: string): void {
    this.up = false;
    this.agent?.die("host");
    this.killQemu(hurt);
    this.held = [];
    this.block();
  }

  boot(): void {
    this.up = true;
    this.bootClock();
    this.block();
  }
}
