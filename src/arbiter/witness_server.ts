/**
 * The embedded witness: a compare-and-swap register per VM on a third host (witness_protocol.ts), over mutual
 * TLS.
 *
 * TLS ends in node:tls and its sockets are handed to node:http, because that is the one way in Bun to see the
 * name in a client's certificate.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { createServer as createTlsServer, type TLSSocket } from "node:tls";
import type { TlsFiles } from "../certificates/read.ts";
import type { Logger } from "../host/log.ts";
import { casRequest } from "./witness_protocol.ts";
import { WitnessStore } from "./witness_store.ts";

const VM_PATH = /^\/v1\/vm\/([a-z0-9][a-z0-9-]{0,31})$/;
const BODY_BYTES_MAX = 4096;
const CONNECTIONS_MAX = 1024;
/** Idle connections stay open: an agent that has to decide has one already. */
const IDLE_TIMEOUT_MS = 600_000;
/** For the handshake, and for a request from its head to its end. */
const REQUEST_TIMEOUT_MS = 10_000;

interface WitnessOptions {
  host: string;
  /** 0 takes a free one. */
  port: number;
  directory: string;
  /** undefined: plain HTTP, without knowing who writes. */
  tls: Required<TlsFiles> | undefined;
  log: Logger;
  /** Shorter ones for tests. */
  idleTimeoutMs?: number;
  requestTimeoutMs?: number;
}

export interface Witness {
  host: string;
  port: number;
  close(): Promise<void>;
}

interface Reply {
  status: number;
  body: unknown;
}

/** Starts the witness. Throws an Error when its database cannot be used or the address is taken. */
export async function serveWitness(options: WitnessOptions): Promise<Witness> {
  const { log, tls } = options;
  const store = WitnessStore.open(options.directory);
  const sockets = new Set<Socket>();
  const idleMs = options.idleTimeoutMs ?? IDLE_TIMEOUT_MS;
  const requestMs = options.requestTimeoutMs ?? REQUEST_TIMEOUT_MS;
  const http = createServer({ keepAliveTimeout: idleMs }, (request, response) => {
    const late = setTimeout(() => request.socket.destroy(), requestMs);
    void answer(store, request, tls === undefined ? undefined : writerOf(request), log)
      .catch((error: unknown): Reply => {
        if (!request.destroyed) log.error("a request could not be answered", { error });
        return { status: 500, body: { error: "the witness failed; its log has the reason" } };
      })
      .then((reply) => send(response, reply))
      .finally(() => clearTimeout(late));
  });
  const listener: Server | ReturnType<typeof createTlsServer> =
    tls === undefined
      ? http
      : createTlsServer(
          {
            ...tls,
            requestCert: true,
            rejectUnauthorized: true,
            minVersion: "TLSv1.3",
            handshakeTimeout: requestMs,
          },
          (socket) => {
            http.emit("connection", socket);
          },
        );
  listener.maxConnections = CONNECTIONS_MAX;
  listener.on(tls === undefined ? "connection" : "secureConnection", (socket: Socket) => {
    sockets.add(socket);
    socket.setNoDelay(true);
    socket.on("error", () => undefined); // it closes; the agent asks again
    socket.setTimeout(idleMs, () => socket.destroy());
    socket.once("close", () => sockets.delete(socket));
  });
  listener.on("tlsClientError", (error: Error, socket: Socket) => {
    log.warn("a client was refused", { error });
    socket.destroy(); // Bun's node:tls leaves it open after a handshake that takes too long
  });
  try {
    await new Promise<void>((resolve, reject) => {
      listener.once("error", reject);
      listener.listen(options.port, options.host, () => resolve());
    });
  } catch (error) {
    store.close();
    throw new Error(`cannot listen on ${options.host}:${options.port}: ${(error as Error).message}`, {
      cause: error,
    });
  }
  const { address, port } = listener.address() as AddressInfo;
  return {
    host: address,
    port,
    close: async () => {
      const closed = new Promise<void>((resolve) => listener.close(() => resolve()));
      for (const socket of sockets) socket.destroy();
      await closed;
      store.close();
    },
  };
}

/**
 * The name in the client's certificate, which node:tls has verified. One without a single name is nobody's:
 * "".
 */
function writerOf(request: IncomingMessage): string {
  const name: unknown = (request.socket as TLSSocket).getPeerCertificate().subject?.CN;
  return typeof name === "string" ? name : "";
}

async function answer(
  store: WitnessStore,
  request: IncomingMessage,
  writer: string | undefined,
  log: Logger,
): Promise<Reply> {
  if (request.url === "/v1/health" && request.method === "GET") {
    return { status: 200, body: { records: store.records } };
  }
  const vm = VM_PATH.exec(request.url ?? "")?.[1];
  if (vm === undefined) return { status: 400, body: { error: "no such resource" } };
  if (request.method === "GET") {
    const stored = store.get(vm);
    return stored ? { status: 200, body: stored } : { status: 404, body: { error: "no record of this VM" } };
  }
  if (request.method !== "PUT") return { status: 400, body: { error: "GET or PUT" } };
  const text = await bodyOf(request);
  if (text === undefined) return { status: 400, body: { error: `longer than ${BODY_BYTES_MAX} bytes` } };
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch {
    // The answer says what is wrong.
    return { status: 400, body: { error: "the body is not JSON" } };
  }
  const parsed = casRequest.safeParse(json);
  if (!parsed.success) return { status: 400, body: { error: parsed.error.message } };
  const before = store.get(vm)?.record.holder;
  const result = store.compareAndSwap(vm, parsed.data, writer);
  switch (result.outcome) {
    case "swapped": {
      const { holder, term, generation, replicaValid } = result.stored.record;
      if (holder !== before) log.info("holder", { vm, holder, before, term });
      log.debug("written", { vm, holder, term, generation, replicaValid });
      return { status: 200, body: result.stored };
    }
    case "conflict":
      return { status: 409, body: result.current ?? null };
    case "forbidden":
      log.warn("refused", { vm, reason: result.reason });
      return { status: 403, body: { error: result.reason } };
  }
}

/** The body as text; undefined when it is too long. */
async function bodyOf(request: IncomingMessage): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > BODY_BYTES_MAX) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function send(response: ServerResponse, { status, body }: Reply): void {
  const text = JSON.stringify(body);
  response.writeHead(status, {
    "content-type": "application/json",
    "content-length": Buffer.byteLength(text),
  });
  response.end(text);
}
