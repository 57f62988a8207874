/** What every arbiter has to do, asked of each of them as a real server. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import {
  type AgentPair,
  type Arbiter,
  ArbiterUnreachableError,
  type SwapResult,
} from "../../src/arbiter/arbiter.ts";
import { EtcdArbiter } from "../../src/arbiter/etcd.ts";
import { WitnessClient } from "../../src/arbiter/witness_client.ts";
import type { VmRecordUpdate } from "../../src/failover/vm_record.ts";
import { quiet, until } from "../until.ts";
import { eventually } from "./eventually.ts";
import { LossyProxy } from "./lossy_proxy.ts";
import {
  etcd,
  etcdMember,
  freePort,
  type ServerProcess,
  siteCertificates,
  tlsPaths,
  Workplace,
  witness,
} from "./servers.ts";

type AgentName = "host-a" | "host-b";

interface Kind {
  name: string;
  start(workplace: Workplace): Promise<{ server: ServerProcess; port: number }>;
  /** A client as the first of `agents`; `ports`: where it finds the server, directly or through proxies. */
  client(workplace: Workplace, agents: AgentPair, ports: number[], timeoutMs: number): Arbiter;
}

const pairOf = (agent: AgentName): AgentPair => [agent, agent === "host-a" ? "host-b" : "host-a"];

function tlsTexts(workplace: Workplace, agent: string) {
  const { ca, certificate, key } = tlsPaths(workplace, agent);
  return {
    ca: readFileSync(ca, "utf8"),
    cert: readFileSync(certificate, "utf8"),
    key: readFileSync(key, "utf8"),
  };
}

const witnessKind = (tls: boolean): Kind => ({
  name: `witness, ${tls ? "mutual TLS" : "plain"}`,
  async start(workplace) {
    const port = await freePort();
    const server = witness(workplace, port, { tls });
    await server.start();
    return { server, port };
  },
  client: (workplace, agents, ports, timeoutMs) =>
    new WitnessClient({
      url: `${tls ? "https" : "http"}://127.0.0.1:${ports[0]}`,
      agents,
      tls: tls ? tlsTexts(workplace, agents[0]) : undefined,
      timeoutMs,
    }),
});

const etcdKind = (tls: boolean): Kind => ({
  name: `etcd, ${tls ? "mutual TLS" : "plain"}`,
  async start(workplace) {
    const member = await etcdMember("one");
    const server = etcd(workplace, member, [member], { tls });
    await server.start();
    return { server, port: member.clientPort };
  },
  client: (workplace, agents, ports, timeoutMs) =>
    new EtcdArbiter({
      endpoints: ports.map((port) => `${tls ? "https" : "http"}://127.0.0.1:${port}`),
      prefix: "/colo-agent/vm/",
      agents,
      tls: tls ? tlsTexts(workplace, agents[0]) : undefined,
      credentials: undefined,
      timeoutMs,
    }),
});

const TIMEOUT_MS = 5_000;
/** For what is known to get no answer. */
const SHORT_TIMEOUT_MS = 1_000;
const record = (generation: number, holder: AgentName = "host-a"): VmRecordUpdate => ({
  term: 1,
  generation,
  holder,
  replicaValid: generation % 2 === 1,
});

function won(result: SwapResult): { revision: number } {
  if (!result.swapped) throw new Error(`refused; there is ${JSON.stringify(result.current)}`);
  return result.record;
}

describe.each([witnessKind(true), witnessKind(false), etcdKind(true), etcdKind(false)])("$name", (kind) => {
  let workplace: Workplace;
  let server: ServerProcess;
  let port: number;
  let a: Arbiter;
  let b: Arbiter;
  const client = (agent: AgentName, ports = [port], timeoutMs = TIMEOUT_MS) =>
    kind.client(workplace, pairOf(agent), ports, timeoutMs);

  beforeEach(async () => {
    workplace = new Workplace();
    await siteCertificates(workplace, ["host-a", "host-b"]);
    ({ server, port } = await kind.start(workplace));
    a = client("host-a");
    b = client("host-b");
    await eventually(() => a.read("vm1"));
  });

  afterEach(async () => {
    await workplace[Symbol.asyncDispose]();
  });

  test("a record is made once, and changed only from the revision it has", async () => {
    expect(await a.read("vm1")).toBeUndefined();
    const first = won(await a.compareAndSwap("vm1", 0, record(1)));
    expect(first).toEqual({ ...record(1), revision: first.revision });
    expect(first.revision).toBeGreaterThan(0);
    expect(await b.read("vm1")).toEqual({ ...record(1), revision: first.revision });
    const refused = { swapped: false as const, current: { ...record(1), revision: first.revision } };
    expect(await b.compareAndSwap("vm1", 0, record(2, "host-b"))).toEqual(refused);
    expect(await b.compareAndSwap("vm1", first.revision + 1, record(2, "host-b"))).toEqual(refused);
    const second = won(await b.compareAndSwap("vm1", first.revision, record(2, "host-b")));
    expect(second.revision).toBeGreaterThan(first.revision);
    expect(await a.read("vm1")).toEqual({ ...record(2, "host-b"), revision: second.revision });
    // The same record again is a new write: an older one that is still under way must then fail.
    const third = won(await b.compareAndSwap("vm1", second.revision, record(2, "host-b")));
    expect(third.revision).toBeGreaterThan(second.revision);
    expect((await a.compareAndSwap("vm1", second.revision, record(9))).swapped).toBe(false);
    expect(await a.read("vm2")).toBeUndefined();
    expect(await a.compareAndSwap("vm2", 7, record(1))).toEqual({ swapped: false, current: undefined });
    expect(await a.read("vm2")).toBeUndefined();
  });

  test("of many that write at once exactly one wins each revision, and all see its record", async () => {
    const clients = Array.from({ length: 16 }, (_, i) => client(i % 2 === 0 ? "host-a" : "host-b"));
    let revision = 0;
    for (let round = 0; round < 25; round++) {
      const results = await Promise.all(
        clients.map((each, i) => each.compareAndSwap("vm1", revision, record(round * 100 + i))),
      );
      const winners = results.flatMap((result, i) => (result.swapped ? [{ i, record: result.record }] : []));
      expect(winners).toHaveLength(1);
      const [winner] = winners;
      expect(winner!.record.generation).toBe(round * 100 + winner!.i);
      expect(winner!.record.revision).toBeGreaterThan(revision);
      for (const result of results) {
        if (!result.swapped) expect(result.current).toEqual(winner!.record);
      }
      expect(await Promise.all([a.read("vm1"), b.read("vm1")])).toEqual([winner!.record, winner!.record]);
      revision = winner!.record.revision;
    }
  });

  test("an increment by each of many is never lost", async () => {
    won(await a.compareAndSwap("vm1", 0, record(0)));
    const clients = Array.from({ length: 6 }, (_, i) => client(i % 2 === 0 ? "host-a" : "host-b"));
    const increments = 10;
    await Promise.all(
      clients.map(async (each) => {
        for (let done = 0; done < increments; ) {
          const current = (await each.read("vm1"))!;
          const result = await each.compareAndSwap("vm1", current.revision, record(current.generation + 1));
          if (result.swapped) done++;
        }
      }),
    );
    expect((await a.read("vm1"))!.generation).toBe(clients.length * increments);
  });

  test("kill -9 between a write and the next read: what was answered is there", async () => {
    let revision = 0;
    for (let round = 1; round <= 4; round++) {
      ({ revision } = won(await eventually(() => a.compareAndSwap("vm1", revision, record(round)))));
      await server.kill();
      await expect(client("host-a", [port], SHORT_TIMEOUT_MS).read("vm1")).rejects.toBeInstanceOf(
        ArbiterUnreachableError,
      );
      await server.start();
      expect(await eventually(() => b.read("vm1"))).toEqual({ ...record(round), revision });
      expect((await eventually(() => b.compareAndSwap("vm1", revision - 1, record(99)))).swapped).toBe(false);
    }
  });

  test("kill -9 in the middle of writes: no answered write is lost, none happens twice", async () => {
    let stop = false;
    let acknowledged = 0;
    let attempted = 0;
    const writer = (async () => {
      let revision = 0;

      while (!stop) {
        attempted++;
        try {
          ({ revision } = won(await a.compareAndSwap("vm1", revision, record(attempted))));
          acknowledged = attempted;
        } catch (error) {
          if (!(error instanceof ArbiterUnreachableError)) throw error;
          const current = await eventually(() => a.read("vm1"));
          // Either the last write or the one before it; nothing older, nothing else.
          expect([acknowledged, attempted]).toContain(current?.generation ?? 0);
          revision = current?.revision ?? 0;
          acknowledged = current?.generation ?? 0;
        }
      }
    })();
    for (let round = 0; round < 3; round++) {
      const goal = acknowledged + 5;
      await until("five more writes are acknowledged", () => acknowledged >= goal);
      await server.kill();
      await server.start();
    }
    stop = true;
    await writer;
    expect((await eventually(() => b.read("vm1")))!.generation).toBe(acknowledged);
  });

  test("an answer that is lost is told as such, and the write has happened", async () => {
    using proxy = await LossyProxy.start(port);
    const { revision } = won(await a.compareAndSwap("vm1", 0, record(1)));
    for (const mode of ["lose-answers", "swallow-answers"] as const) {
      const behind = client("host-a", [proxy.port], SHORT_TIMEOUT_MS);
      proxy.mode = "pass";
      const before = (await eventually(() => behind.read("vm1")))!;
      const lost = proxy.answersLost;
      proxy.mode = mode;
      await expect(
        behind.compareAndSwap("vm1", before.revision, record(before.generation + 1)),
      ).rejects.toBeInstanceOf(ArbiterUnreachableError);
      expect(proxy.answersLost).toBeGreaterThan(lost);
      const after = (await b.read("vm1"))!;
      expect(after.generation).toBe(before.generation + 1);
      expect(after.revision).toBeGreaterThan(before.revision);
    }
    expect((await b.compareAndSwap("vm1", revision, record(50))).swapped).toBe(false);
  });

  test("a write that is sent again after a lost answer happens once", async () => {
    using proxy = await LossyProxy.start(port);
    using second = await LossyProxy.start(port);
    const behind = client("host-a", [proxy.port, second.port]);
    await behind.read("vm1");
    proxy.mode = "lose-one-answer";
    const first = won(await behind.compareAndSwap("vm1", 0, record(1)));
    expect(proxy.answersLost).toBe(1);
    expect(await b.read("vm1")).toEqual({ ...record(1), revision: first.revision });
    const next = won(await b.compareAndSwap("vm1", first.revision, record(2, "host-b")));
    expect(await a.read("vm1")).toEqual({ ...record(2, "host-b"), revision: next.revision });
  });

  test("a write that arrives late changes nothing", async () => {
    using proxy = await LossyProxy.start(port);
    const behind = client("host-a", [proxy.port], SHORT_TIMEOUT_MS);
    const { revision } = won(await behind.compareAndSwap("vm1", 0, record(1)));
    proxy.mode = "keep-requests";
    await expect(behind.compareAndSwap("vm1", revision, record(2))).rejects.toBeInstanceOf(
      ArbiterUnreachableError,
    );
    expect(proxy.kept).toBeGreaterThan(0);
    const next = won(await b.compareAndSwap("vm1", revision, record(3, "host-b")));
    proxy.deliver();
    await quiet(200);
    expect(await b.read("vm1")).toEqual({ ...record(3, "host-b"), revision: next.revision });

    // The same with nothing in between: it does happen, which is why no answer means "nothing is known".
    proxy.mode = "pass";
    await eventually(() => behind.read("vm1"));
    proxy.mode = "keep-requests";
    await expect(behind.compareAndSwap("vm1", next.revision, record(4))).rejects.toBeInstanceOf(
      ArbiterUnreachableError,
    );
    expect(await b.read("vm1")).toEqual({ ...record(3, "host-b"), revision: next.revision });
    proxy.deliver();
    await until(
      "the late request is carried out",
      async () => (await b.read("vm1"))!.revision !== next.revision,
    );
    expect((await b.read("vm1"))!.generation).toBe(4);
  });

  test("a record of other agents is neither read nor changed", async () => {
    won(await a.compareAndSwap("vm1", 0, record(1)));
    const strangers = kind.client(workplace, ["host-a", "host-z"], [port], TIMEOUT_MS);
    await expect(strangers.read("vm1")).rejects.toThrow(/belongs to the agents host-a and host-b/);
    await expect(strangers.compareAndSwap("vm1", 0, record(2))).rejects.toThrow(/belongs to the agents/);
    expect((await b.read("vm1"))!.generation).toBe(1);
  });
});
