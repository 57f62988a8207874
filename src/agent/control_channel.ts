/**
 * The channel between the two agents: requests and answers, one JSON object a line, over TCP on the replication link.
 *
 * Each agent listens for its peer and dials its peer; requests go over the connection one dialled, answers come back
 * on it. A line is {id, type, body} or {id, ok, body | error}.
 */
import { connect, createServer, type Server, type Socket } from "node:net";
import type { Endpoint } from "../host/endpoint.ts";
import type { Logger } from "../host/log.ts";
import { LineSplitter } from "../qmp/lines.ts";

/** The longest is the list of rewritten connections: 65 536 of 72 bytes in base64 are 6.3 MB. */
const LINE_BYTES_MAX = 16 << 20;
const REDIAL_MS = 200;
const DIAL_TIMEOUT_MS = 1_000;
/** The first request of an agent on a connection. */
const BEGIN = "begin";

/** The peer could not be asked, or did not answer in time. */
export class PeerUnreachableError extends Error {
  override name = "PeerUnreachableError";
}

/** The peer answered that it could not do what was asked. */
export class PeerRefusedError extends Error {
  override name = "PeerRefusedError";
}

/** Dials the peer and keeps the connection up. */
export class PeerClient {
  #socket: Socket | undefined;
  #connected = false;
  #nextId = 1;
  #closed = false;
  readonly #pending = new Map<number, { resolve: (body: unknown) => void; reject: (error: Error) => void }>();

  constructor(
    private readonly peer: Endpoint,
    private readonly localHost: string,
    private readonly log: Logger,
    private readonly events: { up(): void; down(): void },
  ) {
    this.#dial();
  }

  get connected(): boolean {
    return this.#connected;
  }

  /** Asks the peer. Throws {@link PeerUnreachableError} or {@link PeerRefusedError}. */
  request<T>(type: string, body: unknown, timeoutMs: number): Promise<T> {
    const socket = this.#socket;
    if (!this.#connected || socket === undefined) {
      return Promise.reject(new PeerUnreachableError(`no connection to the peer agent (asked for ${type})`));
    }
    const id = this.#nextId++;
    return new Promise<T>((resolve, reject) => {
      const timer = setTimeout(() => {
        this.#pending.delete(id);
        reject(new PeerUnreachableError(`the peer agent did not answer ${type} within ${timeoutMs} ms`));
      }, timeoutMs);
      this.#pending.set(id, {
        resolve: (answer) => {
          clearTimeout(timer);
          resolve(answer as T);
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
      socket.write(`${JSON.stringify({ id, type, body })}\n`);
    });
  }

  /** Says that this connection is the agent's, and any other one an earlier life's. To be called when the connection is up. */
  begin(): void {
    this.request(BEGIN, {}, DIAL_TIMEOUT_MS).catch((error) => this.log.debug("control channel", { error }));
  }

  close(): void {
    this.#closed = true;
    this.#socket?.destroy();
  }

  #dial(): void {
    if (this.#closed) return;
    const socket = connect({ host: this.peer.host, port: this.peer.port, localAddress: this.localHost });
    this.#socket = socket;
    const lines = new LineSplitter(LINE_BYTES_MAX);
    const dialTimer = setTimeout(
      () => socket.destroy(new Error("connecting took too long")),
      DIAL_TIMEOUT_MS,
    );
    socket.setNoDelay(true);
    socket.on("connect", () => {
      clearTimeout(dialTimer);
      this.#connected = true;
      this.log.info("connected to the peer agent");
      this.events.up();
    });
    socket.on("data", (chunk) => {
      try {
        for (const line of lines.push(chunk as Buffer)) this.#answer(line);
      } catch (error) {
        socket.destroy(error as Error);
      }
    });
    socket.on("error", (error) => this.log.debug("control channel", { error }));
    socket.on("close", () => {
      clearTimeout(dialTimer);
      const was = this.#connected;
      this.#connected = false;
      for (const pending of this.#pending.values()) {
        pending.reject(new PeerUnreachableError("the connection to the peer agent closed"));
      }
      this.#pending.clear();
      if (was) this.events.down();
      if (!this.#closed) setTimeout(() => this.#dial(), REDIAL_MS);
    });
  }

  #answer(line: string): void {
    const answer = JSON.parse(line) as { id: number; ok: boolean; body?: unknown; error?: string };
    const pending = this.#pending.get(answer.id);
    if (pending === undefined) return;
    this.#pending.delete(answer.id);
    if (answer.ok) pending.resolve(answer.body);
    else pending.reject(new PeerRefusedError(answer.error ?? "the peer agent gave no reason"));
  }
}

export type RequestHandler = (type: string, body: unknown) => Promise<unknown> | unknown;

/**
 * Listens for the peer and answers its requests. Connections from any other address are closed, and so are its other ones when it
 * asks to {@link BEGIN}: what an earlier life of it had asked for and is still on its way must not be done any more.
 */
export class PeerServer {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  constructor(
    private readonly local: Endpoint,
    private readonly peerHost: string,
    private readonly handler: RequestHandler,
    private readonly log: Logger,
  ) {
    this.#server = createServer((socket) => this.#accept(socket));
  }

  /** Resolves when listening. Throws when the address cannot be bound. */
  listen(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#server.once("error", (error) =>
        reject(
          new Error(
            `cannot listen for the peer agent on ${this.local.host}:${this.local.port}: ${error.message}; ` +
              "agent.control must be an address of this host and a free port",
            { cause: error },
          ),
        ),
      );
      this.#server.listen(this.local.port, this.local.host, () => resolve());
    });
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #accept(socket: Socket): void {
    if (socket.remoteAddress !== this.peerHost) {
      this.log.warn("refused a control connection that is not the peer's", { from: socket.remoteAddress });
      socket.destroy();
      return;
    }
    this.#sockets.add(socket);
    socket.setNoDelay(true);
    const lines = new LineSplitter(LINE_BYTES_MAX);
    socket.on("data", (chunk) => {
      try {
        for (const line of lines.push(chunk as Buffer)) void this.#serve(socket, line);
      } catch (error) {
        socket.destroy(error as Error);
      }
    });
    socket.on("error", (error) => this.log.debug("control channel", { error }));
    socket.on("close", () => this.#sockets.delete(socket));
  }

  async #serve(socket: Socket, line: string): Promise<void> {
    let id = 0;
    try {
      const request = JSON.parse(line) as { id: number; type: string; body: unknown };
      id = request.id;
      const { type } = request;
      const body = type === BEGIN ? this.#begin(socket) : await this.handler(type, request.body);
      socket.write(`${JSON.stringify({ id, ok: true, body })}\n`);
    } catch (error) {
      socket.write(`${JSON.stringify({ id, ok: false, error: (error as Error).message })}\n`);
    }
  }

  #begin(socket: Socket): object {
    for (const other of this.#sockets) if (other !== socket) other.destroy();
    return {};
  }
}
