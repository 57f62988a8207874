/** Listens for the peer's agent and answers its requests. */

import { createServer, type Server, type Socket } from "node:net";
import { Problem } from "../errors/problem.ts";
import type { Endpoint } from "../host/endpoint.ts";
import type { Logger } from "../host/log.ts";
import { LineSplitter } from "../qmp/lines.ts";
import {
  checkProtocol,
  HELLO,
  helloBody,
  LINE_BYTES_MAX,
  OWN,
  PeerRefusedError,
  type Purpose,
  parseLine,
  type RequestHandler,
  requestLine,
} from "./control_channel.ts";

/**
 * Connections from any address but the peer's are closed. When the peer's agent says hello, its other ones
 * are closed too: a request of an earlier process that is still on its way must not be carried out any more.
 */
export class PeerServer {
  readonly #server: Server;
  /** undefined: the connection has not said hello yet. */
  readonly #sockets = new Map<Socket, Purpose | undefined>();

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
          new Problem(
            `cannot listen for the peer agent on ${this.local.host}:${this.local.port}: ${error.message}`,
            "give agent.control an address of this host and a free port",
            { cause: error },
          ),
        ),
      );
      this.#server.listen(this.local.port, this.local.host, () => resolve());
    });
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets.keys()) socket.destroy();
  }

  #accept(socket: Socket): void {
    if (socket.remoteAddress !== this.peerHost) {
      this.log.warn("refused a control connection that is not the peer's", { from: socket.remoteAddress });
      socket.destroy();
      return;
    }
    this.#sockets.set(socket, undefined);
    socket.setNoDelay(true);
    const lines = new LineSplitter(LINE_BYTES_MAX);
    socket.on("data", (chunk) => {
      try {
        for (const line of lines.push(chunk as Buffer)) this.#receive(socket, line);
      } catch (error) {
        this.log.warn("closed a control connection of the peer's", { error });
        socket.destroy();
      }
    });
    socket.on("error", (error) => this.log.debug("control channel", { error }));
    socket.on("close", () => this.#sockets.delete(socket));
  }

  #receive(socket: Socket, line: string): void {
    const { id, type, body } = parseLine(requestLine, line);
    if (this.#sockets.get(socket) === "agent" && type !== HELLO) {
      void this.#serve(socket, id, type, body);
      return;
    }
    try {
      answer(socket, id, { ok: true, body: this.#greeted(socket, type, body) });
    } catch (error) {
      this.log.warn("refused a control connection of the peer's", { error });
      answer(socket, id, { ok: false, error: (error as Error).message });
      socket.end();
    }
  }

  async #serve(socket: Socket, id: number, type: string, body: unknown): Promise<void> {
    try {
      answer(socket, id, { ok: true, body: await this.handler(type, body) });
    } catch (error) {
      answer(socket, id, { ok: false, error: (error as Error).message });
    }
  }

  /** Takes the hello, the only request that a visitor may make. Throws {@link PeerRefusedError}. */
  #greeted(socket: Socket, type: string, body: unknown): object {
    if (this.#sockets.get(socket) !== undefined)
      throw new PeerRefusedError(`"${type}": this connection has said hello, and accepts no other request`);
    const hello = helloBody.safeParse(body);
    if (type !== HELLO || !hello.success)
      throw new PeerRefusedError(
        `the first request is "${type}" and not a hello that names version and protocol; colo-agent ` +
          `${OWN.version} with protocol ${OWN.protocol} listens here: install the same version on both hosts`,
      );
    checkProtocol(hello.data, { own: this.local.host, peer: this.peerHost });
    this.#sockets.set(socket, hello.data.purpose);
    if (hello.data.purpose === "agent") {
      for (const [other, purpose] of this.#sockets)
        if (other !== socket && purpose !== "visitor") other.destroy();
    }
    return OWN;
  }
}

function answer(
  socket: Socket,
  id: number,
  result: { ok: true; body: unknown } | { ok: false; error: string },
): void {
  socket.write(`${JSON.stringify({ id, ...result })}\n`);
}
