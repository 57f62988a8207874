/** Two paths between the hosts, and the way to the arbiter. */
import type { Agent } from "./agent.ts";
import type { Host } from "./host.ts";
import type { World } from "./world.ts";

export type LinkPath = "control" | "client";

export class Network {
  /** Cut directions: "control:a" is what host a sends on the control link. */
  readonly #cut = new Set<string>();
  readonly connections = new Set<Connection>();

  constructor(readonly world: World) {}

  linkUp(from: Host, to: Host, path: LinkPath): boolean {
    if (path === "control" && (from.cutOff || to.cutOff)) return false;
    // A machine that was replaced stands elsewhere in the network.
    if (path === "client" && (from.replaced || to.replaced))
      return (from.reachable || !from.replaced) && (to.reachable || !to.replaced) && from.uplink && to.uplink;
    if (path === "client" && (!from.uplink || !to.uplink)) return false;
    return !this.#cut.has(`${path}:${from.name}`);
  }

  arbiterUp(host: Host): boolean {
    return !this.#cut.has(`arbiter:${host.name}`);
  }

  cut(what: string): void {
    this.#cut.add(what);
  }

  heal(what?: string): void {
    if (what === undefined) this.#cut.clear();
    else this.#cut.delete(what);
    for (const connection of this.connections) connection.flush();
  }

  /** A datagram from an agent to the other host's agent: lost, late, doubled, overtaken. */
  datagram(from: Agent, receive: (to: Agent) => void): void {
    const { world } = this;
    const { random } = world;
    for (const host of world.hosts) {
      // A replaced machine still has the address: some of what is sent reaches it too.
      if (host.name === from.host.name || (host.replaced && random.chance(0.5))) continue;
      if (!this.linkUp(from.host, host, "client") || random.chance(world.lossRate)) continue;
      const copies = random.chance(0.01) ? 2 : 1;
      for (let i = 0; i < copies; i++) {
        const delayMs = random.chance(0.01) ? random.between(5, 1500) : random.skewed(0.1, 5);
        world.after(delayMs, () => {
          if (!host.up || !this.linkUp(from.host, host, "client")) return;
          const { agent } = host;
          agent?.post(() => receive(agent));
        });
      }
    }
  }
}

interface Direction {
  lastMs: number;
  /** What the kernel sends again when the link is back. */
  backlog: (() => void)[];
}

/**
 * A TCP connection that `dialer` opened: in order, nothing lost, and silent when the other host or the link
 * is gone.
 */
export class Connection {
  open = true;
  readonly #there: Direction = { lastMs: 0, backlog: [] };
  readonly #back: Direction = { lastMs: 0, backlog: [] };

  constructor(
    private readonly network: Network,
    readonly dialer: Agent,
    readonly acceptor: Agent,
  ) {
    network.connections.add(this);
  }

  /** `receive` runs in the other process. */
  send(from: Agent, receive: () => void): void {
    if (!this.open) return;
    const direction = from === this.dialer ? this.#there : this.#back;
    const to = from === this.dialer ? this.acceptor : this.dialer;
    direction.backlog.push(() => this.#arrive(from, to, receive));
    if (direction.backlog.length === 1 && this.network.linkUp(from.host, to.host, "control")) {
      this.#forward(direction, from, to);
    }
  }

  /** A link is back. */
  flush(): void {
    if (this.network.linkUp(this.dialer.host, this.acceptor.host, "control"))
      this.#forward(this.#there, this.dialer, this.acceptor);
    if (this.network.linkUp(this.acceptor.host, this.dialer.host, "control"))
      this.#forward(this.#back, this.acceptor, this.dialer);
  }

  #forward(direction: Direction, from: Agent, to: Agent): void {
    const { world } = this.network;
    for (const arrive of direction.backlog.splice(0)) {
      const delayMs = world.random.chance(0.005) ? world.random.between(1, 300) : world.random.skewed(0.1, 4);
      direction.lastMs = Math.max(direction.lastMs, world.nowMs + delayMs);
      world.after(direction.lastMs - world.nowMs, () => {
        if (!this.open) return;
        if (this.network.linkUp(from.host, to.host, "control")) arrive();
        else direction.backlog.push(arrive);
      });
    }
  }

  #arrive(from: Agent, to: Agent, receive: () => void): void {
    if (to.alive) to.post(receive);
    else this.#reset(to, from);
  }

  /** `dead`'s host answers with a reset, if there is a host. */
  #reset(dead: Agent, survivor: Agent): void {
    const { world } = this.network;
    world.after(world.random.skewed(0.1, 5), () => {
      if (!dead.host.up || !this.network.linkUp(dead.host, survivor.host, "control")) return;
      this.close(survivor);
    });
  }

  /** `dead` has ended. Its kernel closes the connection, if there is a kernel. */
  died(dead: Agent): void {
    const survivor = dead === this.dialer ? this.acceptor : this.dialer;
    this.#reset(dead, survivor);
  }

  /** The end at `survivor` is told that the connection is over. */
  close(survivor: Agent): void {
    if (!this.open) return;
    this.open = false;
    this.network.connections.delete(this);
    survivor.post(() => survivor.connectionClosed(this));
  }
}
