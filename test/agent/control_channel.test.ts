/** The channel between two agents: the hello, who may ask, and lines that are no message. */
import { afterEach, describe, expect, test } from "bun:test";
import { connect, createServer, type Socket } from "node:net";
import {
  PeerMalformedError,
  PeerRefusedError,
  PeerUnreachableError,
  PROTOCOL,
} from "../../src/agent/control_channel.ts";
import { greet, PeerClient, type PeerClientEvents } from "../../src/agent/peer_client.ts";
import { PeerServer } from "../../src/agent/peer_server.ts";
import { createLogger, type Logger } from "../../src/host/log.ts";
import { VERSION } from "../../src/host/version.ts";
import { freePort } from "../arbiter/servers.ts";

const HOST = "127.0.0.1";
const ENDPOINT = { host: HOST, port: await freePort() };
const quiet: Logger = {
  ...createLogger("error"),
  warn: () => undefined,
};
const GREET_LIMIT_MS = 30_000;

const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0).reverse()) close();
});

/** A server that answers {} to everything, and the types that it was asked. */
async function listening(): Promise<string[]> {
  const asked: string[] = [];
  const server = new PeerServer(
    ENDPOINT,
    HOST,
    (type) => {
      asked.push(type);
      if (type === "impossible") throw new Error("it is impossible");
      return {};
    },
    quiet,
  );
  closing.push(() => server.close());
  await server.listen();
  return asked;
}

function dial(): Promise<Socket> {
  const { promise, resolve, reject } = Promise.withResolvers<Socket>();
  const socket = connect({ ...ENDPOINT, localAddress: HOST }, () => resolve(socket));
  socket.once("error", reject);
  closing.push(() => socket.destroy());
  return promise;
}

const lineOf = (socket: Socket) =>
  new Promise<unknown>((resolve) => socket.once("data", (data) => resolve(JSON.parse(data.toString()))));
const closedOf = (socket: Socket) => new Promise<void>((resolve) => socket.once("close", () => resolve()));

/** Sends one request and returns the line that answers it. */
function ask(socket: Socket, id: number, type: string, body: unknown): Promise<unknown> {
  const answer = lineOf(socket);
  socket.write(`${JSON.stringify({ id, type, body })}\n`);
  return answer;
}

const hello = (purpose: string, protocol = PROTOCOL) => ({ version: "9.8.7", protocol, purpose });

/** A client of this agent, with promises of what it tells. */
function client() {
  const up = Promise.withResolvers<{ version: string; protocol: number }>();
  const down = Promise.withResolvers<void>();
  const refused = Promise.withResolvers<Error>();
  const events: PeerClientEvents = {
    up: up.resolve,
    down: () => down.resolve(),
    refused: refused.resolve,
  };
  const peer = new PeerClient(ENDPOINT, HOST, quiet, events);
  closing.push(() => peer.close());
  return { peer, up: up.promise, down: down.promise, refused: refused.promise };
}

/** Something at the peer's address that answers each line as `answer` says. */
async function impostor(answer: (line: string, socket: Socket) => void): Promise<void> {
  const server = createServer((socket) => {
    closing.push(() => socket.destroy());
    socket.on("error", () => undefined); // the client hangs up as it likes
    socket.on("data", (data) => {
      for (const line of data.toString().trimEnd().split("\n")) answer(line, socket);
    });
  });
  closing.push(() => server.close());
  await new Promise<void>((resolve) => server.listen(ENDPOINT.port, HOST, resolve));
}

describe("hello", () => {
  test("both sides learn the other's version, and requests follow", async () => {
    const asked = await listening();
    const { peer, up } = client();
    expect(peer.connected).toBe(false);
    expect(await up).toEqual({ version: VERSION, protocol: PROTOCOL });
    expect(peer.connected).toBe(true);
    expect(await peer.request("first", {}, GREET_LIMIT_MS)).toEqual({});
    await expect(peer.request("impossible", {}, GREET_LIMIT_MS)).rejects.toThrow(PeerRefusedError);
    expect(asked).toEqual(["first", "impossible"]);
  });

  test("another protocol is refused with both versions and what to do, by the one that listens", async () => {
    const asked = await listening();
    const socket = await dial();
    const closed = closedOf(socket);
    const answer = (await ask(socket, 7, "hello", hello("agent", 99))) as { error: string };
    expect(answer).toMatchObject({ id: 7, ok: false });
    expect(answer.error).toContain(`colo-agent ${VERSION} on ${HOST} speaks protocol ${PROTOCOL}`);
    expect(answer.error).toContain("colo-agent 9.8.7");
    expect(answer.error).toContain("speaks protocol 99");
    expect(answer.error).toContain("install the same version on both hosts");
    await closed;
    expect(asked).toEqual([]);
  });

  test("another protocol is refused with both versions and what to do, by the one that dials", async () => {
    await impostor((line, socket) => {
      const { id } = JSON.parse(line) as { id: number };
      socket.write(`${JSON.stringify({ id, ok: true, body: { version: "9.8.7", protocol: 99 } })}\n`);
    });
    const { peer, refused } = client();
    const error = await refused;
    expect(error).toBeInstanceOf(PeerRefusedError);
    expect(error.message).toContain(`colo-agent ${VERSION} on ${HOST} speaks protocol ${PROTOCOL}`);
    expect(error.message).toMatch(
      /colo-agent 9\.8\.7 .* speaks protocol 99: install the same version on both/,
    );
    expect(peer.connected).toBe(false);
    await expect(peer.request("first", {}, 10)).rejects.toThrow(PeerUnreachableError);
  });

  test.each<[string, string, unknown]>([
    ["no hello", "heartbeat", { vms: {} }],
    ["a hello without a version", "hello", { protocol: PROTOCOL, purpose: "agent" }],
    ["a hello without a purpose", "hello", { version: "1", protocol: PROTOCOL }],
    ["a hello of text", "hello", "hello"],
    ["a request of the prototype's", "constructor", {}],
  ])("%s first: refused, and closed", async (_, type, body) => {
    const asked = await listening();
    const socket = await dial();
    const closed = closedOf(socket);
    expect(await ask(socket, 1, type, body)).toMatchObject({
      ok: false,
      error: expect.stringContaining("install the same version on both hosts"),
    });
    await closed;
    expect(asked).toEqual([]);
  });
});

describe("who counts", () => {
  test("what an earlier process of the peer asks for is not done once a later one is there", async () => {
    const asked = await listening();
    const earlier = await dial();
    await ask(earlier, 0, "hello", hello("agent"));
    await ask(earlier, 1, "first", {});
    const closed = closedOf(earlier);
    const later = await dial();
    await ask(later, 0, "hello", hello("agent"));
    await ask(later, 1, "second", {});
    earlier.write('{"id":2,"type":"too late","body":{}}\n');
    await closed;
    await ask(later, 2, "third", {});
    expect(asked).toEqual(["first", "second", "third"]);
  });

  test("a visitor ends nothing and can ask for nothing", async () => {
    const asked = await listening();
    const { peer, up } = client();
    await up;
    expect(await greet(ENDPOINT, HOST, quiet, GREET_LIMIT_MS)).toEqual({
      version: VERSION,
      protocol: PROTOCOL,
    });
    const visitor = await dial();
    expect(await ask(visitor, 0, "hello", hello("visitor"))).toMatchObject({ ok: true });
    const closed = closedOf(visitor);
    expect(await ask(visitor, 1, "abandon", {})).toMatchObject({
      ok: false,
      error: expect.stringContaining("accepts no other request"),
    });
    await closed;
    await peer.request("still here", {}, GREET_LIMIT_MS);
    expect(asked).toEqual(["still here"]);
  });

  test("a second hello on one connection is refused", async () => {
    await listening();
    const socket = await dial();
    expect(await ask(socket, 0, "hello", hello("agent"))).toMatchObject({ ok: true });
    expect(await ask(socket, 1, "hello", hello("agent"))).toMatchObject({ ok: false });
  });

  test("nobody there: a greeting ends in time", async () => {
    await expect(greet(ENDPOINT, HOST, quiet, 300)).rejects.toThrow(
      `no agent answers at ${HOST}:${ENDPOINT.port}`,
    );
  });
});

describe("malformed lines", () => {
  const lines = [
    "GET / HTTP/1.1",
    "null",
    "[]",
    "{}",
    '{"id":"1","type":"first","body":{}}',
    '{"id":1.5,"type":"first","body":{}}',
    '{"id":1,"type":7,"body":{}}',
    `{"id":1,"type":"${"x".repeat(65)}","body":{}}`,
  ];
  test.each(lines)("to the one that listens: %s closes the connection, and others go on", async (line) => {
    const asked = await listening();
    const socket = await dial();
    await ask(socket, 0, "hello", hello("agent"));
    const closed = closedOf(socket);
    socket.write(`${line}\n`);
    await closed;
    const next = await dial();
    await ask(next, 0, "hello", hello("agent"));
    expect(await ask(next, 1, "first", {})).toEqual({ id: 1, ok: true, body: {} });
    expect(asked).toEqual(["first"]);
  });

  test.each(["HTTP/1.1 400 Bad Request", "null", '{"id":1}', '{"id":1,"ok":true,"body":{}}'])(
    "to the one that dials: %s is no agent",
    async (line) => {
      await impostor((_, socket) => socket.write(`${line}\n`));
      const { peer, refused } = client();
      expect(await refused).toBeInstanceOf(PeerMalformedError);
      expect(peer.connected).toBe(false);
      await expect(greet(ENDPOINT, HOST, quiet, GREET_LIMIT_MS)).rejects.toThrow(PeerMalformedError);
    },
  );

  test("an answer that is no message ends what was asked and the connection", async () => {
    await impostor((line, socket) => {
      const { id, type, body } = JSON.parse(line) as { id: number; type: string; body: object };
      socket.write(type === "hello" ? `${JSON.stringify({ id, ok: true, body })}\n` : `{"id":${id}}\n`);
    });
    const { peer, up, down } = client();
    await up;
    await expect(peer.request("first", {}, GREET_LIMIT_MS)).rejects.toThrow(/line of the peer's/);
    await down;
  });
});
