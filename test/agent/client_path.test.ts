/** Heartbeats over the clients' network: who is heard, and datagrams that are no heartbeat. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { createHmac } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { ClientPath } from "../../src/agent/client_path.ts";
import { PROTOCOL } from "../../src/agent/control_channel.ts";
import type { HeartbeatRequest } from "../../src/agent/peer_api.ts";
import { createLogger } from "../../src/host/log.ts";

const HERE = { host: "127.0.0.1", port: 0 };
const THERE = { host: "127.0.0.2", port: 0 };
const KEY = Buffer.alloc(32, 7);
const SESSION = "5e4f2f3a-1f0c-4b7e-9d51-3a1c6f0b8e11";
const ASK: HeartbeatRequest = { vms: { vm1: { ready: true, uplink: true, generation: 3 } } };
const ANSWER = { vms: { vm1: { ready: false, uplink: true, accepted: true } } };

let directory: string;
let path: ClientPath;
let peer: Socket;
let asked: HeartbeatRequest[];
let answered: [number, HeartbeatRequest, unknown][];
let wake: () => void;

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-client-path-"));
  const keyFile = join(directory, "key");
  writeFileSync(keyFile, KEY, { mode: 0o600 });
  asked = [];
  answered = [];
  wake = () => undefined;
  peer = createSocket("udp4");
  await new Promise<void>((resolve) => peer.bind(0, THERE.host, resolve));
  HERE.port = THERE.port = peer.address().port;
  path = await ClientPath.open(
    { local: HERE, peer: THERE, key_file: keyFile },
    {
      asked: (request, answer) => {
        asked.push(request);
        answer(ANSWER);
      },
      answered: (sentMs, about, answer) => {
        answered.push([sentMs, about, answer]);
        wake();
      },
    },
    createLogger("error"),
  );
});
afterEach(() => {
  path.close();
  peer.close();
  rmSync(directory, { recursive: true });
});

function signed(content: unknown, key = KEY): Buffer {
  const text = Buffer.from(typeof content === "string" ? content : JSON.stringify(content));
  return Buffer.concat([createHmac("sha256", key).update(text).digest(), text]);
}
const send = (datagram: Buffer) => peer.send(datagram, HERE.port, HERE.host);
const next = () =>
  new Promise<{ session: string; sentMs: number } & Record<string, unknown>>((resolve) =>
    peer.once("message", (datagram) => resolve(JSON.parse(datagram.subarray(32).toString()))),
  );
const question = (sentMs: number) => ({ protocol: PROTOCOL, session: SESSION, sentMs, ask: ASK });

/** A good question's answer: everything sent before it has been looked at. */
async function answerTo(sentMs: number) {
  const answer = next();
  send(signed(question(sentMs)));
  return answer;
}

test("a question of the peer's is answered, with what it asked", async () => {
  expect(await answerTo(100)).toEqual({
    protocol: PROTOCOL,
    session: SESSION,
    sentMs: 100,
    answer: ANSWER,
    asked: ASK,
  });
  expect(asked).toEqual([ASK]);
});

test("an answer of the peer's is told with the time of its question", async () => {
  const asking = next();
  path.ask(ASK, 1234.5);
  const { session } = await asking;
  const told = new Promise<void>((resolve) => {
    wake = resolve;
  });
  send(signed({ protocol: PROTOCOL, session, sentMs: 1234.5, answer: ANSWER, asked: ASK }));
  await told;
  expect(answered).toEqual([[1234.5, ASK, ANSWER]]);
});

describe("not heard", () => {
  const bad: [string, Buffer][] = [
    ["an empty datagram", Buffer.alloc(0)],
    ["a signature alone", signed("")],
    ["another key's", signed(question(50), Buffer.alloc(32, 8))],
    ["no JSON", signed("{")],
    ["null", signed("null")],
    ["another protocol's", signed({ ...question(50), protocol: PROTOCOL + 1 })],
    ["one without a protocol", signed({ session: SESSION, sentMs: 50, ask: ASK })],
    ["a session that is none", signed({ ...question(50), session: 5 })],
    ["a time that is text", signed({ ...question(50), sentMs: "50" })],
    ["a question about nothing", signed({ ...question(50), ask: {} })],
    ["a question about half a VM", signed({ ...question(50), ask: { vms: { vm1: { ready: true } } } })],
    [
      "an answer without its question",
      signed({ protocol: PROTOCOL, session: SESSION, sentMs: 5, answer: ANSWER }),
    ],
    ["a question that is older than the last one", signed(question(1))],
    ["the last question once more", signed(question(10))],
  ];
  test.each(bad)("%s; the next good one is", async (_, datagram) => {
    await answerTo(10);
    send(datagram);
    expect(await answerTo(100)).toMatchObject({ sentMs: 100 });
    expect(asked).toEqual([ASK, ASK]);
    expect(answered).toEqual([]);
  });
});
