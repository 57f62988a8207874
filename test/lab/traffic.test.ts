/**
 * The lab's client against a guest that does something wrong: a wrong byte and a broken connection are
 * noticed, and counted where they are to be. The guest's place is taken by a server on loopback that answers
 * as the guest does but for the one planted fault.
 */
import { afterEach, describe, expect, test } from "bun:test";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { isUnharmed, summary } from "../../src/cli/demo_summary.ts";
import { GUEST_PORTS } from "../../src/lab/guest_ports.ts";
import type { LossResult } from "../../src/lab/scenario.ts";
import type { ClientOptions, ClientReport } from "../../src/lab/traffic/contract.ts";

/** Nobody else listens there. */
const HOST = "127.77.1.1";
const CLIENT = join(import.meta.dir, "../../src/lab/traffic/client.ts");
const RATE = 2_000_000;

type Fault = (connection: number, position: number, chunk: Buffer, socket: Socket) => Buffer | undefined;

let server: Server | undefined;

/** Sends everything back, as `fault` says; undefined for nothing. Positions are those of the connection. */
async function guest(fault: Fault): Promise<void> {
  let connections = 0;
  const listening = createServer((socket) => {
    const connection = ++connections;
    let position = 0;
    socket.on("error", () => undefined);
    socket.on("data", (chunk: Buffer) => {
      const answer = fault(connection, position, chunk, socket);
      position += chunk.length;
      if (answer !== undefined) socket.write(answer);
    });
  });
  server = listening;
  await new Promise<void>((resolve) => listening.listen(GUEST_PORTS.duplex, HOST, resolve));
}

afterEach(async () => {
  const ended = server;
  server = undefined;
  if (ended !== undefined) await new Promise((resolve) => ended.close(resolve));
});

/** Runs the client until `enough`, then lets it end. Returns its reports and its exit status. */
async function client(
  options: Partial<ClientOptions>,
  enough: (report: ClientReport) => boolean,
): Promise<{ last: ClientReport; status: number }> {
  const all = JSON.stringify({ host: HOST, bytesPerSecond: RATE, ...options });
  const child = Bun.spawn([process.execPath, CLIENT, "duplex", all], { stdin: "pipe", stdout: "pipe" });
  let text = "";
  let last: ClientReport | undefined;
  let told = false;
  for await (const chunk of child.stdout) {
    text += Buffer.from(chunk).toString();
    const lines = text.split("\n");
    text = lines.pop() ?? "";
    for (const line of lines) last = JSON.parse(line) as ClientReport;
    if (!told && last !== undefined && enough(last)) {
      told = true;
      void child.stdin.end();
    }
  }
  return { last: last!, status: await child.exited };
}

const echo: Fault = (_, __, chunk) => chunk;
const BYTES = 400_000;
const received = (report: ClientReport) => report.received > BYTES;

/** Flips `count` bytes from place `from` on of the first connection. */
const flipped =
  (from: number, count: number): Fault =>
  (connection, position, chunk) => {
    const answer = Buffer.from(chunk);
    for (let i = 0; i < answer.length; i++) {
      const place = position + i - from;
      if (connection === 1 && place >= 0 && place < count) answer[i] = answer[i]! ^ 0xff;
    }
    return answer;
  };

/** Ends the first connection when it has come to place `at`. */
const broken =
  (at: number): Fault =>
  (connection, position, chunk, socket) => {
    if (connection > 1 || position < at) return chunk;
    socket.destroy();
    return undefined;
  };

describe("the client that counts", () => {
  test("nothing wrong, nothing counted", async () => {
    await guest(echo);
    const { last, status } = await client({ counting: true }, received);
    expect(last).toMatchObject({ type: "end", wrongBytes: 0, reconnects: 0 });
    expect(last.received).toBe(last.sent);
    expect(status).toBe(0);
  });

  test("planted wrong bytes are counted, each", async () => {
    await guest(flipped(100_001, 3));
    const { last, status } = await client({ counting: true }, received);
    expect(last).toMatchObject({ type: "end", wrongBytes: 3, reconnects: 0 });
    expect(status).toBe(0);
  });

  test("a planted break is counted, and the traffic continues on a new connection", async () => {
    await guest(broken(100_000));
    const { last, status } = await client({ counting: true }, received);
    expect(last).toMatchObject({ type: "end", wrongBytes: 0, reconnects: 1 });
    expect(last.received).toBeGreaterThan(BYTES);
    expect(status).toBe(0);
  });
});

describe("the client that does not count ends with an error", () => {
  test("at the first wrong byte", async () => {
    await guest(flipped(100_001, 3));
    const { last, status } = await client({}, () => false);
    expect(last).toMatchObject({ type: "error", message: "wrong byte at position 100001" });
    expect(status).toBe(1);
  });

  test("when its connection ends", async () => {
    await guest(broken(100_000));
    const { last, status } = await client({}, () => false);
    expect(last.type).toBe("error");
    expect(last.message).toMatch(/the guest closed the connection|the connection broke/);
    expect(status).toBe(1);
  });
});

test("the demo's summary shows what the client counted", () => {
  const result = (wrongBytes: number, reconnects: number): LossResult => ({
    loss: "primary-host",
    survivor: "b",
    connection: { bytesSent: 5000, bytesReceived: 5000, wrongBytes, reconnects, longestGapMs: 812.4 },
    disk: { acknowledgedBlocks: 70, verifiedBlocks: 70 },
    randomAnswers: 9,
    checkpoints: { period: 4, output: 2 },
    failoverMs: 700,
  });
  const rowsOf = (results: LossResult[]) =>
    summary(results)
      .split("\n")
      .filter((line) => line.startsWith("│"))
      .map((line) => line.split("│").map((cell) => cell.trim()))
      .map((cells) => cells.slice(1, -1));
  const harmed = [result(0, 0), result(17, 4)];
  expect(rowsOf(harmed)).toEqual([
    ["lost", "survivor", "longest gap", "bytes each way", "wrong bytes", "reconnects"].concat([
      "blocks acked = found",
      "checkpoints",
    ]),
    ["primary-host", "host b", "812 ms", "5000", "0", "0", "70 = 70", "6"],
    ["primary-host", "host b", "812 ms", "5000", "17", "4", "70 = 70", "6"],
  ]);
  expect(harmed.map(isUnharmed)).toEqual([true, false]);
  expect(summary(harmed)).toContain("A client received wrong bytes or lost its connection.");
  expect(summary([result(0, 0)])).toContain("every byte was checked");
});
