/** The client against a real QEMU, and against a server that misbehaves as no QEMU does. */
import { afterAll, afterEach, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { qemuArgv, qemuEnvironment } from "../../src/host/installed.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import {
  QmpAbortedError,
  QmpClosedError,
  QmpCommandError,
  QmpConnectError,
  type QmpError,
  QmpNegotiationError,
  QmpProtocolError,
  QmpTimeoutError,
} from "../../src/qmp/errors.ts";
import { until } from "../until.ts";
import { removeTestDirectory, testDirectory } from "./pair.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

async function failure(promise: Promise<unknown>): Promise<Error> {
  try {
    await promise;
  } catch (error) {
    return error as Error;
  }
  throw new Error("it should have failed");
}

describe("with a real QEMU", () => {
  let directory: string;
  let qemu: Bun.Subprocess;
  let path: string;

  async function start(): Promise<void> {
    directory = join(testDirectory(), "machine-none");
    mkdirSync(directory, { recursive: true });
    path = join(directory, "qmp.sock");
    const arguments_ = [
      "-machine",
      "none",
      "-nodefaults",
      "-display",
      "none",
      "-qmp",
      `unix:${path},server=on,wait=off`,
    ];
    qemu = Bun.spawn([...qemuArgv(), ...arguments_], {
      env: qemuEnvironment(),
      stdio: ["ignore", "ignore", "inherit"],
    });
    const connected = async () => {
      try {
        return await QmpClient.connect(path);
      } catch (error) {
        if (!(error instanceof QmpConnectError) || qemu.exitCode !== null) throw error;
        return undefined;
      }
    };
    (await until("QEMU takes a connection", connected, { pollMs: 20 })).close();
  }

  beforeAll(start, 60_000);
  afterAll(async () => {
    qemu.kill("SIGKILL");
    await qemu.exited;
  });

  test("it greets, negotiates oob and answers", async () => {
    const client = await QmpClient.connect(path);
    expect(client.version.major).toBeGreaterThanOrEqual(11);
    expect(client.oob).toBe(true);
    expect(await client.execute<{ running: boolean }>("query-status")).toMatchObject({ running: true });
    expect(await client.execute<object[]>("query-yank", undefined, { oob: true })).toBeArray();
    client.close();
  });

  test("a large reply arrives whole", async () => {
    const client = await QmpClient.connect(path);
    const schema = await client.execute<{ name: string }[]>("query-qmp-schema");
    expect(schema.some((entry) => entry.name === "x-colo-lost-heartbeat")).toBe(true);
    client.close();
  });

  test("events carry QEMU's wall clock and reach a wait that began before the command", async () => {
    const client = await QmpClient.connect(path);
    const seen: string[] = [];
    const end = client.on("*", (event) => seen.push(event.name));
    const beforeNs = BigInt(Date.now()) * 1_000_000n;
    const stopped = client.waitFor("STOP", () => true, 5_000);
    await client.execute("stop");
    const { timestampNs } = await stopped;
    // Date.now() cuts to milliseconds, so the event is not earlier.
    expect(timestampNs).toBeGreaterThanOrEqual(beforeNs);
    expect(timestampNs).toBeLessThanOrEqual(BigInt(Date.now() + 1) * 1_000_000n);
    await client.execute("cont");
    end();
    await client.execute("stop");
    expect(seen).toEqual(["STOP", "RESUME"]);
    await client.execute("cont");
    client.close();
  });

  test("a refused command says class, description and what was sent", async () => {
    const client = await QmpClient.connect(path);
    const error = (await failure(
      client.execute("blockdev-del", { "node-name": "nothing" }),
    )) as QmpCommandError;
    expect(error).toBeInstanceOf(QmpCommandError);
    expect(error.errorClass).toBe("GenericError");
    expect(error.description).toContain("nothing");
    expect(error.message).toContain('blockdev-del {"node-name":"nothing"}');
    expect(((await failure(client.execute("no-such-command"))) as QmpCommandError).errorClass).toBe(
      "CommandNotFound",
    );
    client.close();
  });

  test("many commands at once are each answered with their own reply", async () => {
    const client = await QmpClient.connect(path);
    const replies = await Promise.all(
      Array.from({ length: 100 }, (_, i) =>
        i % 2 === 0
          ? client.execute("query-name")
          : failure(client.execute("blockdev-del", { "node-name": `node${i}` })),
      ),
    );
    for (const [i, reply] of replies.entries()) {
      if (i % 2 === 0) expect(reply).toEqual({});
      else expect((reply as Error).message).toContain(`node${i}"`);
    }
    client.close();
  });

  test("a second client is told that the socket is taken", async () => {
    const first = await QmpClient.connect(path);
    const error = await failure(QmpClient.connect(path, { connectTimeoutMs: 200 }));
    expect(error).toBeInstanceOf(QmpNegotiationError);
    expect(error.message).toContain("one client per QMP socket");
    // The first one is not disturbed.
    await first.execute("query-status");
    first.close();
  });

  test("a hung QEMU ends commands by their limit, in and out of band, and answers later ones", async () => {
    const client = await QmpClient.connect(path);
    process.kill(qemu.pid, "SIGSTOP");
    try {
      const limited = Array.from({ length: 10 }, () =>
        failure(client.execute("query-status", undefined, { timeoutMs: 100 })),
      );
      const errors = await Promise.all([
        ...limited,
        failure(client.execute("query-yank", undefined, { oob: true, timeoutMs: 100 })),
        failure(client.waitFor("STOP", () => true, 100)),
      ]);
      for (const error of errors) expect(error).toBeInstanceOf(QmpTimeoutError);
      // QEMU must not be given more than it reads ahead; the rest has not left the client.
      expect(errors.filter((error) => error.message.includes("Not sent:"))).toHaveLength(6);
    } finally {
      process.kill(qemu.pid, "SIGCONT");
    }
    expect(await client.execute<{ status: string }>("query-status")).toMatchObject({ status: "running" });
    client.close();
  });

  test("a wait can be given up", async () => {
    const client = await QmpClient.connect(path);
    const abort = new AbortController();
    const wait = client.waitFor(["STOP", "RESUME"], () => true, 60_000, { signal: abort.signal });
    abort.abort();
    expect(await failure(wait)).toBeInstanceOf(QmpAbortedError);
    expect(
      await failure(client.waitFor("STOP", () => true, 60_000, { signal: abort.signal })),
    ).toBeInstanceOf(QmpAbortedError);
    client.close();
  });

  test("after close() everything pending is rejected and nothing more is sent", async () => {
    const reasons: QmpError[] = [];
    const client = await QmpClient.connect(path, { onClose: (reason) => reasons.push(reason) });
    const pending = [
      failure(client.execute("query-status")),
      ...Array.from({ length: 10 }, () => failure(client.execute("query-name"))),
      failure(client.waitFor("STOP", () => true, 60_000)),
    ];
    client.close();
    for (const error of await Promise.all(pending)) expect(error).toBeInstanceOf(QmpClosedError);
    expect(await failure(client.execute("query-status"))).toBeInstanceOf(QmpClosedError);
    client.close();
    expect(reasons).toHaveLength(1);
  });

  test("QEMU's death rejects what is pending and calls onClose once", async () => {
    const reasons: QmpError[] = [];
    const client = await QmpClient.connect(path, { onClose: (reason) => reasons.push(reason) });
    process.kill(qemu.pid, "SIGSTOP"); // so that it cannot answer first
    const pending = [
      failure(client.execute("query-status")),
      failure(client.waitFor("STOP", () => true, 60_000)),
    ];
    process.kill(qemu.pid, "SIGKILL");
    for (const error of await Promise.all(pending)) expect(error).toBeInstanceOf(QmpClosedError);
    expect(reasons).toHaveLength(1);
    expect(client.closedReason).toBe(reasons[0]!);
    await qemu.exited;
    const error = await failure(QmpClient.connect(path));
    expect(error).toBeInstanceOf(QmpConnectError);
    expect(error.message).toContain(path);
    await start();
  });
});

describe("with a server that is no QEMU", () => {
  const GREETING =
    '{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "major": 11}, "package": ""}, "capabilities": ' +
    "[]}}\n";
  let server: Server | undefined;
  let number = 0;

  /** `answer` gets each line that the client sends, and the connection. */
  async function serve(greeting: string, answer: (line: string, socket: Socket) => void): Promise<string> {
    const path = join(testDirectory(), `fake${number++}.sock`);
    server = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.write(greeting);
      socket.on("data", (data) => {
        for (const line of data.toString().split("\n")) if (line !== "") answer(line, socket);
      });
    });
    await new Promise<void>((resolve) => server!.listen(path, resolve));
    return path;
  }

  /** Behaves in the negotiation, then answers every command with `bytes`. */
  function polite(bytes: (id: number, socket: Socket) => void): Promise<string> {
    return serve(GREETING, (line, socket) => {
      const { execute, id } = JSON.parse(line) as { execute: string; id: number };
      if (execute === "qmp_capabilities") socket.write(`{"return": {}, "id": ${id}}\n`);
      else bytes(id, socket);
    });
  }

  afterEach(() => {
    server?.close();
    server = undefined;
  });

  test.each([
    ["text", "(qemu) help\n", "not JSON"],
    ["a JSON array", "[1, 2]\n", "not an object"],
    ["an unknown object", '{"hello": 1}\n', "unknown kind"],
    ["a greeting without a version", '{"QMP": {}}\n', "names no version"],
    ["a reply to nothing", '{"return": {}}\n', "an unknown command"],
  ])("a greeting that is %s is refused", async (_what, greeting, message) => {
    const path = await serve(greeting, () => undefined);
    const error = await failure(QmpClient.connect(path));
    expect(error).toBeInstanceOf(QmpNegotiationError);
    expect(error.message).toContain(message);
  });

  test("a server that closes instead of greeting is refused", async () => {
    const path = await serve("", () => undefined);
    server!.on("connection", (socket) => socket.destroy());
    expect(await failure(QmpClient.connect(path))).toBeInstanceOf(QmpNegotiationError);
  });

  test("a server without oob gets no out-of-band command", async () => {
    const path = await polite((id, socket) => socket.write(`{"return": {}, "id": ${id}}\n`));
    const client = await QmpClient.connect(path);
    expect(client.oob).toBe(false);
    expect(await failure(client.execute("yank", {}, { oob: true }))).toBeInstanceOf(QmpNegotiationError);
    client.close();
  });

  test("replies and events are understood whole, byte by byte and cut in a character", async () => {
    const path = await polite((id, socket) => {
      const timestamp = `{"seconds": 2, "microseconds": 3}`;
      const event = `{"event": "STOP", "data": {"who": "Zoë"}, "timestamp": ${timestamp}}\n`;
      const bytes = Buffer.from(`${event}${event}{"return": {"text": "Zoë €"}, "id": ${id}}\n`);
      if (id % 2 === 0) {
        socket.write(bytes);
        return;
      }
      let at = 0;
      const step = () => {
        if (at >= bytes.length || socket.destroyed) return;
        socket.write(bytes.subarray(at, ++at), step);
      };
      step();
    });
    const client = await QmpClient.connect(path);
    const events: unknown[] = [];
    client.on("STOP", (event) => events.push(event));
    for (let i = 0; i < 4; i++) expect(await client.execute<object>("query")).toEqual({ text: "Zoë €" });
    expect(events).toHaveLength(8);
    expect(events[0]).toEqual({ name: "STOP", data: { who: "Zoë" }, timestampNs: 2_000_003_000n });
    client.close();
  });

  test.each([
    ["garbage", "\u0000\u0001 nonsense\n", "not JSON"],
    ["half an object", '{"return": {}, \n', "not JSON"],
    ["a reply with a foreign id", '{"return": {}, "id": 4711}\n', "an unknown command"],
    [
      "a reply without an id",
      '{"error": {"class": "GenericError", "desc": "Invalid JSON syntax"}}\n',
      "Invalid JSON",
    ],
    ["an endless line", "x".repeat(9 * 1024 * 1024), "a line of more than"],
  ])("%s ends the connection, and nobody waits for ever", async (_what, bytes, message) => {
    const path = await polite((_id, socket) => socket.write(bytes));
    const client = await QmpClient.connect(path);
    const errors = await Promise.all([
      failure(client.execute("query-status", undefined, { timeoutMs: 60_000 })),
      failure(client.waitFor("STOP", () => true, 60_000)),
    ]);
    for (const error of errors) {
      expect(error).toBeInstanceOf(QmpClosedError);
      expect(error.cause).toBeInstanceOf(QmpProtocolError);
      expect(error.message).toContain(message);
    }
  });

  test("a connection closed in the middle of a line rejects what waits", async () => {
    const path = await polite((_id, socket) => socket.end('{"return": {"status": "runn'));
    const client = await QmpClient.connect(path);
    expect(await failure(client.execute("query-status", undefined, { timeoutMs: 60_000 }))).toBeInstanceOf(
      QmpClosedError,
    );
  });

  test("a reply that comes after its time limit is dropped, and the next command gets its own", async () => {
    let sendLate: (() => void) | undefined;
    const path = await polite((id, socket) => {
      const send = () => socket.write(`{"return": {"id": ${id}}, "id": ${id}}\n`);
      if (sendLate === undefined) sendLate = send;
      else send();
    });
    const client = await QmpClient.connect(path);
    expect(await failure(client.execute("slow", undefined, { timeoutMs: 50 }))).toBeInstanceOf(
      QmpTimeoutError,
    );
    sendLate!();
    const reply = await client.execute<{ id: number }>("next");
    expect(reply).toEqual({ id: 3 });
    client.close();
  });
});
