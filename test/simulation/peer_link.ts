/**
 * The connection to the peer's agent, as src/agent/control_channel.ts keeps it: dials again, numbers its
 * questions, gives up on them.
 */
import type { Agent } from "./agent.ts";
import { Connection } from "./network.ts";
import { ProcedureError } from "./procedure.ts";
import type { Timer } from "./queue.ts";

const REDIAL_MS = 200;
const DIAL_TIMEOUT_MS = 1_000;

interface Pending {
  ok: (answer: unknown) => void;
  fail: (error: ProcedureError) => void;
  timer: Timer | undefined;
}

export class PeerLink {
  #connection: Connection | undefined;
  /** Connections that the peer has opened. */
  readonly #accepted = new Set<Connection>();
  readonly #pending = new Map<number, Pending>();
  #nextId = 1;

  constructor(
    private readonly agent: Agent,
    private readonly onClose: () => void,
  ) {}

  get connected(): boolean {
    return this.#connection !== undefined;
  }

  dial(): void {
    const { agent } = this;
    const { world, host } = agent;
    const peer = world.peerOf(host);
    const retry = (ms: number) => world.after(ms, () => agent.post(() => this.dial()));
    const there = world.network.linkUp(host, peer, "control") && world.network.linkUp(peer, host, "control");
    if (!there || !peer.up) {
      retry(DIAL_TIMEOUT_MS + REDIAL_MS);
      return;
    }
    const acceptor = peer.agent;
    if (acceptor === undefined || !acceptor.started) {
      retry(REDIAL_MS);
      return;
    }
    const connection = new Connection(world.network, agent, acceptor);
    acceptor.link.#accepted.add(connection);
    world.after(world.random.skewed(0.3, 5), () =>
      agent.post(() => {
        this.#connection = connection;
        if (!connection.open) this.closed(connection);
      }),
    );
  }

  /** The process has ended; its kernel closes its connections. */
  died(): void {
    this.#connection?.died(this.agent);
    for (const connection of this.#accepted) connection.died(this.agent);
  }

  closed(connection: Connection): void {
    const { agent } = this;
    this.#accepted.delete(connection);
    if (connection !== this.#connection) return;
    this.#connection = undefined;
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    for (const { timer, fail } of pending) {
      agent.world.queue.cancel(timer);
      fail(new ProcedureError("the connection to the peer agent closed"));
    }
    this.onClose();
    agent.world.after(REDIAL_MS, () => agent.post(() => this.dial()));
  }

  /** `serve` runs in the peer's process, `ok` or `fail` in this one. */
  request(
    serve: (peer: Agent, answer: (value: unknown) => void) => void,
    ok: (answer: unknown) => void,
    fail: (error: ProcedureError) => void,
    timeoutMs: number | undefined,
  ): void {
    const { agent } = this;
    const { world } = agent;
    const connection = this.#connection;
    if (connection === undefined) {
      agent.post(() => fail(new ProcedureError("no connection to the peer agent")));
      return;
    }
    const id = this.#nextId++;
    const expire = () => {
      if (this.#pending.delete(id)) fail(new ProcedureError("the peer agent did not answer in time"));
    };
    const timer = timeoutMs === undefined ? undefined : world.after(timeoutMs, () => agent.post(expire));
    this.#pending.set(id, { ok, fail, timer });
    const peer = connection.acceptor;
    connection.send(agent, () =>
      serve(peer, (value) =>
        connection.send(peer, () => {
          const pending = this.#pending.get(id);
          if (pending === undefined) return;
          this.#pending.delete(id);
          world.queue.cancel(pending.timer);
          pending.ok(value);
        }),
      ),
    );
  }
}
