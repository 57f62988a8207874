/**
 * The embedded witness beyond what every arbiter does: certificates, hostile requests, its database, its
 * start.
 */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { connect as connectTls } from "node:tls";
import { ArbiterRefusedError, ArbiterUnreachableError } from "../../src/arbiter/arbiter.ts";
import { WitnessClient } from "../../src/arbiter/witness_client.ts";
import { serveWitness, type Witness } from "../../src/arbiter/witness_server.ts";
import { WitnessStore } from "../../src/arbiter/witness_store.ts";
import { makeCertificates } from "../../src/certificates/make.ts";
import { readTls } from "../../src/certificates/read.ts";
import type { VmRecordUpdate } from "../../src/failover/vm_record.ts";
import { createLogger } from "../../src/host/log.ts";
import { freePort, siteCertificates, tlsPaths, Workplace, witness } from "./servers.ts";

const log = createLogger("error");
const record = (holder: string, generation = 1): VmRecordUpdate => ({
  term: 1,
  generation,
  holder,
  replicaValid: true,
});

let workplace: Workplace;
beforeEach(async () => {
  workplace = new Workplace();
  await siteCertificates(workplace, ["host-a", "host-b", "host-c"]);
});
afterEach(async () => await workplace[Symbol.asyncDispose]());

const filesOf = (name: string) => readTls(tlsPaths(workplace, name)).tls;

describe("certificates at the witness", () => {
  let running: Witness;
  beforeEach(async () => {
    const directory = workplace.path("witness");
    running = await serveWitness({ host: "127.0.0.1", port: 0, directory, tls: filesOf("server"), log });
  });
  afterEach(async () => await running.close());

  const client = (
    tls: ReturnType<typeof filesOf> | { ca: string } | undefined,
    agents: [string, string] = ["host-a", "host-b"],
    host = "127.0.0.1",
  ) => new WitnessClient({ url: `https://${host}:${running.port}`, agents, tls, timeoutMs: 5_000 });

  test("both agents of a VM may write, a third agent of the site may not, whatever it claims", async () => {
    const a = client(filesOf("host-a"));
    const b = client(filesOf("host-b"), ["host-b", "host-a"]);
    expect((await a.compareAndSwap("vm1", 0, record("host-a"))).swapped).toBe(true);
    expect((await b.compareAndSwap("vm1", 1, record("host-b"))).swapped).toBe(true);
    const claims: [string, string][] = [
      ["host-a", "host-b"], // somebody else's names
      ["host-c", "host-a"], // itself instead of one of them
    ];
    for (const agents of claims) {
      const c = client(filesOf("host-c"), agents);
      for (const revision of [0, 2]) {
        const write = c.compareAndSwap("vm1", revision, record(agents[0]));
        await expect(write).rejects.toBeInstanceOf(ArbiterRefusedError);
      }
    }
    const c = client(filesOf("host-c"), ["host-a", "host-b"]);
    await expect(c.compareAndSwap("vm2", 0, record("host-a"))).rejects.toThrow(/certificate is of host-c/);
    expect(await a.read("vm2")).toBeUndefined();
    expect(await a.read("vm1")).toEqual({ ...record("host-b"), revision: 2 });
    const odd = a.compareAndSwap("vm1", 2, record("host-c"));
    await expect(odd).rejects.toThrow(/holder host-c is not one of/);
  });

  test("nobody without a certificate of the site gets in", async () => {
    await client(filesOf("host-a")).compareAndSwap("vm1", 0, record("host-a"));
    const other = workplace.path("other");
    await makeCertificates({
      directory: other,
      requests: [{ name: "host-a", addresses: [] }],
      days: 1,
    });
    const cert = readFileSync(`${other}/host-a.pem`, "utf8");
    const key = readFileSync(`${other}/host-a.key`, "utf8");
    const { ca } = filesOf("host-a");
    await expect(client({ ca }).read("vm1")).rejects.toBeInstanceOf(ArbiterUnreachableError);
    await expect(client({ ca, cert, key }).read("vm1")).rejects.toBeInstanceOf(ArbiterUnreachableError);
    const plain = fetch(`http://127.0.0.1:${running.port}/v1/vm/vm1`);
    await expect(plain.then((response) => response.text())).rejects.toThrow();
    expect((await client(filesOf("host-a")).read("vm1"))?.holder).toBe("host-a");
  });

  test("an agent talks to no witness of another CA or name", async () => {
    const other = workplace.path("other");
    await makeCertificates({
      directory: other,
      requests: [{ name: "host-a", addresses: [] }],
      days: 1,
    });
    const ca = readFileSync(`${other}/ca.pem`, "utf8");
    await expect(client({ ...filesOf("host-a"), ca }).read("vm1")).rejects.toThrow(
      /self.signed|issuer|verif/i,
    );
    expect(await client(filesOf("host-a"), undefined, "localhost").read("vm1")).toBeUndefined();
    await running.close();
    // host-c's certificate does not name 127.0.0.1.
    const directory = workplace.path("witness");
    running = await serveWitness({ host: "127.0.0.1", port: 0, directory, tls: filesOf("host-c"), log });
    await expect(client(filesOf("host-a")).read("vm1")).rejects.toThrow(/altname|127\.0\.0\.1|hostname/i);
  });

  test("no proxy of the environment comes between", async () => {
    const { http_proxy, https_proxy } = process.env;
    process.env.http_proxy = process.env.https_proxy = "http://127.0.0.1:1";
    try {
      await expect(fetch("http://192.0.2.1/")).rejects.toThrow(/ECONNREFUSED/);
      expect(await client(filesOf("host-a")).read("vm1")).toBeUndefined();
    } finally {
      for (const [name, value] of Object.entries({ http_proxy, https_proxy })) {
        if (value === undefined) delete process.env[name];
        else process.env[name] = value;
      }
    }
  });

  test("requests use one connection", async () => {
    const a = client(filesOf("host-a"));
    await a.read("vm1");
    const sockets = () => {
      const tcp = readFileSync("/proc/net/tcp", "latin1");
      const port = running.port.toString(16).toUpperCase().padStart(4, "0");
      const ESTABLISHED = "01";
      return tcp.split("\n").filter((line) => {
        const [, local, , state] = line.trim().split(/\s+/);
        return local?.endsWith(`:${port}`) && state === ESTABLISHED;
      });
    };
    const before = sockets();
    expect(before).toHaveLength(1);
    let revision = 0;
    for (let i = 0; i < 50; i++) {
      const result = await a.compareAndSwap("vm1", revision, record("host-a", i));
      if (result.swapped) revision = result.record.revision;
    }
    expect(revision).toBe(50);
    expect(sockets().map((line) => line.trim().split(/\s+/)[2])).toEqual(
      before.map((line) => line.trim().split(/\s+/)[2]),
    );
  });
});

describe("hostile requests", () => {
  test("are refused and change nothing", async () => {
    const directory = workplace.path("witness");
    const running = await serveWitness({ host: "127.0.0.1", port: 0, directory, tls: undefined, log });
    try {
      const url = `http://127.0.0.1:${running.port}`;
      const a = new WitnessClient({ url, agents: ["host-a", "host-b"], tls: undefined, timeoutMs: 5_000 });
      await a.compareAndSwap("vm1", 0, record("host-a"));
      const put = async (body: string, path = "/v1/vm/vm1") =>
        (await fetch(`${url}${path}`, { method: "PUT", body })).status;
      const good = {
        expectedRevision: 1,
        record: record("host-b"),
        agents: ["host-a", "host-b"],
        write: crypto.randomUUID(),
      };
      const changed = (change: object) => JSON.stringify({ ...good, ...change });
      expect(await put("{")).toBe(400);
      expect(await put('{"expectedRevision": 1}')).toBe(400);
      expect(await put(changed({ record: { ...record("host-b"), extra: 1 } }))).toBe(400);
      expect(await put(changed({ record: { ...record("host-b"), term: -1 } }))).toBe(400);
      expect(await put(changed({ record: { ...record("host-b"), generation: 1.5 } }))).toBe(400);
      expect(await put(changed({ record: { ...record("host-b"), generation: 2 ** 60 } }))).toBe(400);
      expect(await put(changed({ record: record("HOST' --") }))).toBe(400);
      expect(await put(changed({ agents: ["host-a", "host-a"] }))).toBe(400);
      expect(await put(changed({ agents: ["host-b"] }))).toBe(400);
      expect(await put(changed({ write: "again" }))).toBe(400);
      expect(await put(changed({ expectedRevision: "1" }))).toBe(400);
      expect(await put("x".repeat(5_000))).toBe(400);
      expect(await put(changed({}), "/v1/vm/..%2f..%2fetc")).toBe(400);
      expect(await put(changed({}), "/v1/vm/UPPER")).toBe(400);
      expect(await put(changed({}), "/")).toBe(400);
      expect((await fetch(`${url}/v1/vm/vm1`, { method: "DELETE" })).status).toBe(400);
      expect(await a.read("vm1")).toEqual({ ...record("host-a"), revision: 1 });
      expect(await put(changed({}))).toBe(200);
    } finally {
      await running.close();
    }
  });
});

describe("slow clients", () => {
  test("are cut off: before the handshake, in a request, and when they have long been idle", async () => {
    const directory = workplace.path("witness");
    const [idleTimeoutMs, requestTimeoutMs] = [600, 200];
    const host = "127.0.0.1";
    const tls = filesOf("server");
    const running = await serveWitness({
      host,
      port: 0,
      directory,
      tls,
      log,
      idleTimeoutMs,
      requestTimeoutMs,
    });
    try {
      const { port } = running;
      const closed = (socket: Socket) =>
        new Promise<string>((resolve) => {
          let seen = "";
          socket.on("data", (bytes) => {
            seen += bytes;
          });
          socket.on("error", () => undefined);
          socket.on("close", () => resolve(seen));
        });
      const put = "PUT /v1/vm/vm1 HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{";
      const said = (text: string) => {
        const socket = connectTls({ host, port, ...filesOf("host-a") }, () => socket.write(text));
        return closed(socket);
      };
      const get = "GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n";
      const all = [closed(connect(port, host)), said(put), said("GET /v1/hea"), said(""), said(get)];
      const seen = await Promise.all(all);
      expect(seen.slice(0, 4)).toEqual(["", "", "", ""]);
      expect(seen[4]).toStartWith("HTTP/1.1 200 OK");
    } finally {
      await running.close();
    }
  });
});

describe("database", () => {
  const open = () => WitnessStore.open(workplace.path("db"));
  const path = () => workplace.path("db/witness.sqlite");
  const request = (expectedRevision: number, write = crypto.randomUUID()) => ({
    expectedRevision,
    record: record("host-a", expectedRevision),
    agents: ["host-a", "host-b"] as [string, string],
    write,
  });
  /** A database with records, closed in an orderly way. */
  function filled(): void {
    const store = open();
    for (let i = 0; i < 200; i++) {
      expect(store.compareAndSwap(`vm${i}`, request(0), undefined).outcome).toBe("swapped");
    }
    store.close();
  }

  test("each write is synced before it is answered", async () => {
    const trace = workplace.path("trace");
    const port = await freePort();
    const traced = witness(workplace, port, { tls: false }, [
      "strace",
      "-D",
      "-f",
      "-y",
      "-e",
      "trace=fsync,fdatasync",
      "-o",
      trace,
    ]);
    await traced.start();
    const url = `http://127.0.0.1:${port}`;
    const a = new WitnessClient({ url, agents: ["host-a", "host-b"], tls: undefined, timeoutMs: 5_000 });
    const synced = () =>
      readFileSync(trace, "latin1").match(/sync\(\d+<[^>]*witness\.sqlite-wal>\) += 0/g)?.length ?? 0;
    for (let revision = 0; revision < 10; revision++) {
      const before = synced();
      expect((await a.compareAndSwap("vm1", revision, record("host-a"))).swapped).toBe(true);
      expect(synced()).toBeGreaterThan(before);
    }
  });

  test("a write that comes twice happens once", () => {
    const store = open();
    const twice = request(0);
    const first = store.compareAndSwap("vm1", twice, undefined);
    expect(store.compareAndSwap("vm1", twice, undefined)).toEqual(first);
    expect(store.compareAndSwap("vm1", request(1), undefined).outcome).toBe("swapped");
    expect(store.compareAndSwap("vm1", twice, undefined).outcome).toBe("conflict");
    expect(store.get("vm1")?.record.revision).toBe(2);
    store.close();
  });

  test("two processes on one file are still one arbiter", () => {
    const [one, two] = [open(), open()];
    for (let revision = 0; revision < 20; revision++) {
      const outcomes = [one, two].map(
        (each) => each.compareAndSwap("vm1", request(revision), undefined).outcome,
      );
      expect(outcomes).toEqual(["swapped", "conflict"]);
    }
    one.close();
    two.close();
  });

  test("a damaged one is refused and left alone", () => {
    filled();
    const whole = readFileSync(path());
    const damages: [string, Buffer][] = [
      ["empty", Buffer.alloc(0)],
      ["cut", whole.subarray(0, whole.length - 4096)],
      ["zeroed page", Buffer.concat([whole.subarray(0, 4096), Buffer.alloc(4096), whole.subarray(8192)])],
      ["no database", Buffer.from("holder = host-a\n".repeat(300))],
    ];
    for (const [what, bytes] of damages) {
      writeFileSync(path(), bytes);
      expect(open, what).toThrow(/witness\.sqlite is damaged .*: stop both agents/);
      expect(readFileSync(path()).equals(bytes), what).toBe(true);
    }
    writeFileSync(path(), whole);
    const store = open();
    expect(store.records).toBe(200);
    store.close();
  });

  test("one of a newer colo-agent, and one of another program, are refused", () => {
    filled();
    const database = new Database(path());
    database.run("PRAGMA user_version = 99");
    database.close();
    expect(open).toThrow(/newer colo-agent \(format 99, this one knows 1\)/);
    const other = new Database(path());
    other.run("PRAGMA application_id = 1");
    other.close();
    expect(open).toThrow(/not a witness's database/);
  });

  test("an unfinished one of a start that was interrupted is made again", () => {
    mkdirSync(workplace.path("db"));
    writeFileSync(workplace.path("db/witness.sqlite.new"), "half");
    const store = open();
    expect(store.records).toBe(0);
    store.close();
    expect(existsSync(workplace.path("db/witness.sqlite.new"))).toBe(false);
  });

  test.each([
    ["a holder that is no name", "holder = '../host-a'"],
    ["a negative term", "term = -1"],
    ["a flag that is neither 0 nor 1", "replica_valid = 2"],
    ["one agent twice", "agent_b = agent_a"],
  ])("a row with %s is damage, and nothing is written over it", (_, change) => {
    filled();
    const database = new Database(path());
    database.run(`UPDATE record SET ${change}`);
    database.close();
    const store = open();
    expect(() => store.get("vm1")).toThrow(/damaged \(the row of VM vm1 is no record\): stop both agents/);
    expect(() => store.compareAndSwap("vm1", request(1), undefined)).toThrow(/damaged/);
    store.close();
  });
});

describe("start", () => {
  const command = async (...words: string[]) => {
    const main = new URL("../../src/cli/main.ts", import.meta.url).pathname;
    const child = Bun.spawn([process.execPath, main, "witness", ...words], {
      stdout: "pipe",
      stderr: "pipe",
    });
    const complaint = await new Response(child.stderr).text();
    return { status: await child.exited, complaint };
  };

  test("without TLS only on loopback, or when told so, and then it warns", async () => {
    const directory = workplace.path("witness");
    expect(await command("--directory", directory)).toMatchObject({
      status: 1,
      complaint: expect.stringMatching(/without TLS.*--insecure/),
    });
    expect(existsSync(directory)).toBe(false);
    const port = await freePort();
    const plain = witness(workplace, port, { tls: false });
    await plain.start();
    expect(plain.log).toContain("NO TLS");
  });

  test("mistakes are sentences", async () => {
    const { ca, certificate, key } = tlsPaths(workplace, "server");
    const files = ["--tls-ca", ca, "--tls-certificate", certificate];
    const told = async (...words: string[]) => {
      const { status, complaint } = await command("--directory", workplace.path("witness"), ...words);
      expect(status).toBe(1);
      return complaint;
    };
    expect(await told(...files)).toMatch(/go together: give all three/);
    expect(await told(...files, "--tls-key", tlsPaths(workplace, "host-a").key)).toMatch(/is not the key of/);
    expect(await told(...files, "--tls-key", workplace.path("none"))).toMatch(/cannot read the key/);
    expect(await told("--listen", "nowhere")).toMatch(/listen: must be ADDRESS:PORT/);
    writeFileSync(workplace.path("w.toml"), 'listen = "127.0.0.1:0"\ncolour = "red"\n');
    expect(await told("--config", workplace.path("w.toml"))).toMatch(/w\.toml: Unrecognized key: "colour"/);
    const taken = await serveWitness({
      host: "127.0.0.1",
      port: 0,
      directory: workplace.path("taken"),
      tls: undefined,
      log,
    });
    expect(await told("--listen", `127.0.0.1:${taken.port}`)).toMatch(/cannot listen on 127\.0\.0\.1/);
    await taken.close();
    expect(key).toBeString();
  });
});
