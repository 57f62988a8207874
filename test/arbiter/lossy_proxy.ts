/** A TCP proxy on loopback between an agent and its arbiter that loses or keeps back what passes. */
import { connect, createServer, type Server, type Socket } from "node:net";

type Mode =
  | "pass"
  /** Requests go on, answers are lost and the connection breaks. */
  | "lose-answers"
  /** The same for the first answer only. */
  | "lose-one-answer"
  /** Requests go on, answers vanish, the connection stays open. */
  | "swallow-answers"
  /** Requests are kept back until {@link LossyProxy.deliver}. */
  | "keep-requests";

export class LossyProxy implements Disposable {
  mode: Mode = "pass";
  answersLost = 0;
  readonly #kept: (() => void)[] = [];
  readonly #sockets = new Set<Socket>();

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  static async start(targetPort: number): Promise<LossyProxy> {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const proxy = new LossyProxy(server, (server.address() as { port: number }).port);
    server.on("connection", (client) => proxy.#join(client, targetPort));
    return proxy;
  }

  /** Requests kept back. */
  get kept(): number {
    return this.#kept.length;
  }

  /** Sends on what was kept back, also if whoever sent it has given up. */
  deliver(): void {
    for (const send of this.#kept.splice(0)) send();
  }

  [Symbol.dispose](): void {
    this.server.close();
    for (const socket of this.#sockets) socket.destroy();
  }

  #join(client: Socket, targetPort: number): void {
    const target = connect(targetPort, "127.0.0.1");
    for (const socket of [client, target]) {
      this.#sockets.add(socket);
      socket.on("error", () => undefined);
      socket.on("close", () => this.#sockets.delete(socket));
    }
    client.on("data", (bytes) => {
      if (this.mode === "keep-requests") this.#kept.push(() => target.write(bytes));
      else target.write(bytes);
    });
    target.on("data", (bytes) => {
      switch (this.mode) {
        case "lose-one-answer":
        case "lose-answers":
          if (this.mode === "lose-one-answer") this.mode = "pass";
          this.answersLost++;
          client.destroy();
          break;
        case "swallow-answers":
          this.answersLost++;
          break;
        default:
          client.write(bytes);
      }
    });
    target.on("close", () => client.destroy());
    client.on("close", () => {
      if (this.mode !== "keep-requests") target.end();
    });
  }
}
