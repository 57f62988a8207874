/**
 * The VM as far as the protocol is concerned: a state is the list of all outputs so far, kept as a tree, so
 * that two copies that have diverged are two branches. What the network has seen must lie on one branch.
 */
import type { Host } from "./host.ts";
import { Violation } from "./violation.ts";
import type { World } from "./world.ts";

export interface VmState {
  readonly id: number;
  readonly parent: VmState | undefined;
  readonly depth: number;
}

/** Whether a VM in `state` has made the output `seen`, or is what made it. */
export function contains(state: VmState, seen: VmState): boolean {
  let at: VmState | undefined = state;
  while (at !== undefined && at.depth > seen.depth) at = at.parent;
  return at === seen;
}

/** The clients: what has come out of the VM, in order. */
export class Outside {
  last: VmState = { id: 0, parent: undefined, depth: 0 };
  seen = 0;

  see(world: World, state: VmState, host: Host): void {
    if (!contains(state, this.last)) {
      throw new Violation(
        2,
        `the network sees output ${state.id} (depth ${state.depth}) from host ${host.id}, whose history ` +
          `lacks output ${this.last.id} (depth ${this.last.depth}) that it saw before`,
      );
    }
    this.last = state;
    this.seen++;
    world.coverage.count("outputs seen");
  }
}

let ids = 0;

/** Ids only name states in traces; they start at 1 in each world so that a replay reads the same. */
export function resetIds(): void {
  ids = 0;
}

function successor(parent: VmState): VmState {
  return { id: ++ids, parent, depth: parent.depth + 1 };
}

type Mode = "incoming" | "receiving" | "secondary" | "running";

/** One QEMU process. */
export class Qemu {
  alive = true;
  mode: Mode;
  state: VmState | undefined;
  /** Stopped by QEMU itself, for a checkpoint or the switch-over. */
  paused = false;
  /** Checkpoints loaded; after the second the copy is complete. */
  loads = 0;
  hang: "silent" | "slow" | undefined;
  hangSinceMs = 0;
  hangUntilMs = 0;
  pair: Pair | undefined;
  /** The record has called this replica valid. */
  promised = false;
  /** What has destroyed this copy or put it out of date, if anything has. */
  hurt: string | undefined;

  constructor(
    readonly host: Host,
    state: VmState | undefined,
  ) {
    this.state = state;
    this.mode = state === undefined ? "incoming" : "running";
  }

  /** A copy that could go on as the VM, looked at from outside. */
  get complete(): boolean {
    return this.state !== undefined && (this.mode === "running" || this.loads >= 2);
  }

  answers(nowMs: number, outOfBand = false): boolean {
    if (!this.alive) return false;
    if (this.hang !== undefined && nowMs >= this.hangUntilMs) this.hang = undefined;
    return this.hang === undefined || (this.hang === "slow" && outOfBand);
  }

  get runs(): boolean {
    return this.alive && !this.paused && this.hang === undefined && this.mode === "running";
  }
}

/** COLO between two QEMUs. */
export class Pair {
  broken = false;

  constructor(
    readonly primary: Qemu,
    readonly secondary: Qemu,
  ) {}
}

/** Lets QEMUs run: outputs of the PVM, the SVM's own, comparison, checkpoints' data. */
export class Engine {
  constructor(private readonly world: World) {}

  start(qemu: Qemu): void {
    const ms = qemu.mode === "running" ? this.world.random.skewed(5, 300) : 100;
    this.world.after(ms, () => this.#tick(qemu));
  }

  #tick(qemu: Qemu): void {
    const { world } = this;
    if (!qemu.alive || !qemu.host.up || world.over) return;
    qemu.answers(world.nowMs); // a hang may be over
    if (qemu.runs && qemu.state !== undefined) {
      qemu.state = successor(qemu.state);
      this.#output(qemu.host, qemu, qemu.state);
    }
    this.start(qemu);
  }

  #output(host: Host, qemu: Qemu, state: VmState): void {
    switch (host.kernel.role) {
      case "solo":
        this.emit(host, state);
        break;
      case "primary":
        host.held.push({ state, verified: false });
        this.#toSecondary(qemu, state);
        break;
      case "successor":
        this.#asSuccessor(host, state);
        break;
      default:
        break;
    }
  }

  /**
   * Held without a lease, let through with one (bpf/colo.h). Frames that overtake each other there are in
   * order here.
   */
  #asSuccessor(host: Host, state: VmState): void {
    host.held.push({ state, verified: true });
    if (host.permitted && host.agent !== undefined) host.release();
  }

  emit(host: Host, state: VmState): void {
    if (host.permitted) this.world.outside.see(this.world, state, host);
    else this.world.coverage.count("outputs dropped by the kernel");
  }

  /** The SVM, fed with the same input, gets there too, or somewhere else. */
  #toSecondary(primary: Qemu, state: VmState): void {
    const { world } = this;
    const { pair } = primary;
    if (pair === undefined) return;
    world.after(world.random.skewed(0.2, 20), () => {
      const { secondary } = pair;
      const { host } = secondary;
      if (pair.broken || secondary.mode !== "secondary" || !secondary.answers(world.nowMs)) return;
      if (secondary.paused || secondary.state === undefined || !host.up) return;
      if (!world.network.linkUp(primary.host, host, "control")) return;
      const same = secondary.state === state.parent && !world.random.chance(0.02);
      secondary.state = same ? state : successor(secondary.state);
      if (host.kernel.role === "successor") {
        this.#asSuccessor(host, secondary.state);
        return;
      }
      if (host.kernel.role === "solo") {
        this.emit(host, secondary.state);
        return;
      }
      if (!world.network.linkUp(host, primary.host, "control") || world.random.chance(0.01)) return;
      const agent = primary.host.agent;
      world.after(world.random.skewed(0.2, 20), () =>
        agent?.post(() => {
          if (agent.pair === pair) agent.host.compared(state, same);
        }),
      );
    });
  }

  /**
   * Copies the stopped primary's state; `loaded` when the secondary has it, and the primary resumes by
   * itself.
   */
  transfer(pair: Pair, loaded: () => void): void {
    const { world } = this;
    const { primary, secondary } = pair;
    const state = primary.state;
    const flows = () =>
      !pair.broken &&
      primary.answers(world.nowMs) &&
      secondary.answers(world.nowMs) &&
      secondary.host.up &&
      world.network.linkUp(primary.host, secondary.host, "control") &&
      world.network.linkUp(secondary.host, primary.host, "control");
    const attempt = () => {
      if (pair.broken || !primary.alive || !secondary.alive || world.over) return;
      if (!flows()) {
        world.after(40, attempt);
        return;
      }
      secondary.state = state;
      secondary.loads++;
      world.trace(
        "qemu",
        () => `${secondary.host.id} has loaded checkpoint ${secondary.loads}, state ${state?.id}`,
      );
      loaded();
      world.after(world.random.skewed(0.5, 10), () => {
        if (primary.pair === pair && !pair.broken) primary.paused = false;
      });
    };
    world.after(world.random.skewed(2, 60), attempt);
  }
}
