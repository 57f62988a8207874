/** Dials the peer's agent, keeps the connection up, and asks over it. */
import { connect, type Socket } from "node:net";
import type { Endpoint } from "../host/endpoint.ts";
import type { Logger } from "../host/log.ts";
import { LineSplitter } from "../qmp/lines.ts";
import {
  answerLine,
  checkProtocol,
  HELLO,
  helloAnswer,
  LINE_BYTES_MAX,
  OWN,
  PeerMalformedError,
  PeerRefusedError,
  PeerUnreachableError,
  type Purpose,
  parseLine,
  type Spoken,
} from "./control_channel.ts";

const REDIAL_MS = 200;
/** Until the next attempt with a peer that has refused the hello: only a person can change that. */
const REFUSED_REDIAL_MS = 2_000;
/** For the connection, and again for the answer to the hello. */
const DIAL_TIMEOUT_MS = 1_000;

export interface PeerClientEvents {
  /** The peer's agent has answered the hello; requests can be made. */
  up(peer: Spoken): void;
  /** The connection that was up has closed. */
  down(): void;
  /** Something answers that is no agent of this protocol. Told again only when the reason changes. */
  refused?(error: PeerRefusedError | PeerMalformedError): void;
}

interface Pending {
  resolve: (body: unknown) => void;
  reject: (error: Error) => void;
}

export class PeerClient {
  #socket: Socket | undefined;
  #connected = false;
  #nextId = 1;
  #closed = false;
  #refusal: string | undefined;
  readonly #pending = new Map<number, Pending>();

  constructor(
    private readonly peer: Endpoint,
    private readonly localHost: string,
    private readonly log: Logger,
    private readonly events: PeerClientEvents,
    private readonly purpose: Purpose = "agent",
  ) {
    this.#dial();
  }

  /** The hello is done, and requests can be made. */
  get connected(): boolean {
    return this.#connected;
  }

  /**
   * Asks the peer and returns its answer as it came. Throws {@link PeerUnreachableError} or
   * {@link PeerRefusedError}.
   */
  request(type: string, body: unknown, timeoutMs: number): Promise<unknown> {
    if (!this.#connected || this.#socket === undefined) {
      return Promise.reject(new PeerUnreachableError(`no connection to the peer's agent (request ${type})`));
    }
    return this.#send(this.#socket, type, body, timeoutMs);
  }

  close(): void {
    this.#closed = true;
    this.#socket?.destroy();
  }

  #send(socket: Socket, type: string, body: unknown, timeoutMs: number): Promise<unknown> {
    const id = this.#nextId++;
    const { promise, resolve, reject } = Promise.withResolvers<unknown>();
    const timer = setTimeout(() => {
      reject(new PeerUnreachableError(`the peer agent did not answer ${type} within ${timeoutMs} ms`));
    }, timeoutMs);
    this.#pending.set(id, { resolve, reject });
    socket.write(`${JSON.stringify({ id, type, body })}\n`);
    return promise.finally(() => {
      clearTimeout(timer);
      this.#pending.delete(id);
    });
  }

  #dial(): void {
    if (this.#closed) return;
    let refused = false;
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
      this.#hello(socket).catch((error: Error) => {
        if (error instanceof PeerRefusedError || error instanceof PeerMalformedError) {
          refused = true;
          this.#refusedWith(error);
        }
        socket.destroy(error);
      });
    });
    socket.on("data", (chunk) => {
      try {
        for (const line of lines.push(chunk as Buffer)) this.#answer(line);
      } catch (error) {
        if (this.#connected) this.log.warn("closed the connection to the peer agent", { error });
        this.#rejectAll(error as Error); // the hello, if it is under way, fails with this reason
        socket.destroy(error as Error);
      }
    });
    socket.on("error", (error) => this.log.debug("control channel", { error }));
    socket.on("close", () => {
      clearTimeout(dialTimer);
      const was = this.#connected;
      this.#connected = false;
      this.#rejectAll(new PeerUnreachableError("the connection to the peer agent closed"));
      if (was) this.events.down();
      if (!this.#closed) setTimeout(() => this.#dial(), refused ? REFUSED_REDIAL_MS : REDIAL_MS);
    });
  }

  async #hello(socket: Socket): Promise<void> {
    const answer = await this.#send(socket, HELLO, { ...OWN, purpose: this.purpose }, DIAL_TIMEOUT_MS);
    const theirs = helloAnswer.safeParse(answer);
    if (!theirs.success) throw new PeerMalformedError("an answer to the hello that names no version");
    checkProtocol(theirs.data, { own: this.localHost, peer: this.peer.host });
    this.#refusal = undefined;
    this.#connected = true;
    this.log.info("connected to the peer agent", { version: theirs.data.version });
    this.events.up(theirs.data);
  }

  #refusedWith(error: PeerRefusedError | PeerMalformedError): void {
    if (this.#refusal === error.message) return;
    this.#refusal = error.message;
    this.log.warn("the program at the peer's address cannot be used", { error });
    this.events.refused?.(error);
  }

  #rejectAll(error: Error): void {
    for (const pending of this.#pending.values()) pending.reject(error);
    this.#pending.clear();
  }

  #answer(line: string): void {
    const answer = parseLine(answerLine, line);
    const pending = this.#pending.get(answer.id);
    if (pending === undefined) return; // it came too late
    if (answer.ok) pending.resolve(answer.body);
    else pending.reject(new PeerRefusedError(answer.error));
  }
}

/**
 * Says hello to the agent at `peer` as a visitor, and hangs up. Returns what that agent says of itself.
 * Throws {@link PeerUnreachableError}, {@link PeerRefusedError} or {@link PeerMalformedError}.
 */
export async function greet(
  peer: Endpoint,
  localHost: string,
  log: Logger,
  timeoutMs: number,
): Promise<Spoken> {
  const { promise, resolve, reject } = Promise.withResolvers<Spoken>();
  const events = { up: resolve, down: () => undefined, refused: reject };
  const client = new PeerClient(peer, localHost, log, events, "visitor");
  const timer = setTimeout(
    () =>
      reject(
        new PeerUnreachableError(
          `no agent answers at ${peer.host}:${peer.port} within ${timeoutMs / 1000} s`,
        ),
      ),
    timeoutMs,
  );
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    client.close();
  }
}
