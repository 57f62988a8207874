/**
 * Heartbeats over the network that the VM's clients use, beside those on the replication link: what is heard
 * here while the link is silent tells a cut link from a lost host. UDP datagrams, each signed with a key that
 * both hosts share.
 *
 * Who records a datagram and sends it again gains nothing: an answer prolongs the lease from the time its
 * question was sent, and questions have to be newer than those before.
 */

import { createHmac, randomUUID, timingSafeEqual } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { readFileSync, statSync } from "node:fs";
import { z } from "zod";
import { Problem } from "../errors/problem.ts";
import type { Endpoint } from "../host/endpoint.ts";
import { jsonAs } from "../host/json.ts";
import type { Logger } from "../host/log.ts";
import { PROTOCOL } from "./control_channel.ts";
import {
  type HeartbeatAnswer,
  type HeartbeatRequest,
  heartbeatAnswer,
  heartbeatRequest,
} from "./peer_api.ts";

const SIGNATURE_BYTES = 32;
const KEY_BYTES_MIN = 16;

/** Of one datagram. `sentMs`: CLOCK_BOOTTIME of who asked, in ms. */
const stamp = { protocol: z.literal(PROTOCOL), session: z.uuid(), sentMs: z.number().min(0) };
const message = z.union([
  z.object({ ...stamp, ask: heartbeatRequest }),
  z.object({ ...stamp, answer: heartbeatAnswer, asked: heartbeatRequest }),
]);
type Message = z.output<typeof message>;

interface ClientPathEvents {
  /** The peer asks; `answer` sends what it is told. */
  asked(request: HeartbeatRequest, answer: (answer: HeartbeatAnswer) => void): void;
  /** The peer has answered what was asked at `sentMs` (CLOCK_BOOTTIME of this host). */
  answered(sentMs: number, asked: HeartbeatRequest, answer: HeartbeatAnswer): void;
}

export class ClientPath {
  readonly #session = randomUUID();
  /** The newest question of the peer's present session. */
  #newest: { session: string; sentMs: number } | undefined;

  private constructor(
    private readonly socket: Socket,
    private readonly peer: Endpoint,
    private readonly key: Buffer,
    private readonly events: ClientPathEvents,
    private readonly log: Logger,
  ) {
    socket.on("message", (datagram, from) => {
      if (from.address === peer.host) this.#receive(datagram);
    });
    // ICMP errors of a peer that is not there; silence tells as much.
    socket.on("error", (error) => log.debug("heartbeats on the clients' network", { error }));
  }

  /** Throws an Error that says what to do when the key or the address is of no use. */
  static async open(
    config: { local: Endpoint; peer: Endpoint; key_file: string },
    events: ClientPathEvents,
    log: Logger,
  ): Promise<ClientPath> {
    const key = readKey(config.key_file);
    const socket = createSocket("udp4");
    const { host, port } = config.local;
    await new Promise<void>((resolve, reject) => {
      socket.once("error", (error) =>
        reject(
          new Problem(
            `cannot bind client_path.local ${host}:${port}: ${error.message}`,
            "give it an address of this host on the clients' network",
            { cause: error },
          ),
        ),
      );
      socket.bind(port, host, resolve);
    });
    socket.removeAllListeners("error");
    return new ClientPath(socket, config.peer, key, events, log);
  }

  ask(request: HeartbeatRequest, sentMs: number): void {
    this.#send({ protocol: PROTOCOL, session: this.#session, sentMs, ask: request });
  }

  close(): void {
    this.socket.close();
  }

  #receive(datagram: Buffer): void {
    const received = this.#open(datagram);
    if (received === undefined) return;
    if ("ask" in received) {
      const { session, sentMs, ask } = received;
      if (this.#newest?.session === session && sentMs <= this.#newest.sentMs) return;
      this.#newest = { session, sentMs };
      this.events.asked(ask, (answer) =>
        this.#send({ protocol: PROTOCOL, session, sentMs, answer, asked: ask }),
      );
    } else if (received.session === this.#session) {
      this.events.answered(received.sentMs, received.asked, received.answer);
    }
  }

  /** undefined: the peer has not signed it, or another version of colo-agent has. */
  #open(datagram: Buffer): Message | undefined {
    if (datagram.length <= SIGNATURE_BYTES) return undefined;
    const text = datagram.subarray(SIGNATURE_BYTES);
    if (!timingSafeEqual(this.#sign(text), datagram.subarray(0, SIGNATURE_BYTES))) return undefined;
    try {
      return jsonAs(message, text.toString(), "a datagram");
    } catch (error) {
      this.log.debug("a signed datagram of the peer's that is no heartbeat of this protocol", { error });
      return undefined;
    }
  }

  #send(sent: Message): void {
    const text = Buffer.from(JSON.stringify(sent));
    this.socket.send(Buffer.concat([this.#sign(text), text]), this.peer.port, this.peer.host);
  }

  #sign(text: Buffer): Buffer {
    return createHmac("sha256", this.key).update(text).digest();
  }
}

function readKey(path: string): Buffer {
  let key: Buffer;
  try {
    key = readFileSync(path);
    if ((statSync(path).mode & 0o077) !== 0)
      throw new Problem(`others than the owner can read client_path.key_file ${path}`, `chmod 600 ${path}`);
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(
      `client_path.key_file ${path}: ${(error as Error).message}`,
      `make one for both hosts with head -c 32 /dev/urandom >${path}, mode 600`,
      { cause: error },
    );
  }
  if (key.length < KEY_BYTES_MIN)
    throw new Error(
      `client_path.key_file ${path}: has ${key.length} bytes, it needs ${KEY_BYTES_MIN} or more`,
    );
  return key;
}
