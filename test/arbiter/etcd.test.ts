/** etcd beyond what every arbiter does: a cluster that loses members, users, keys of others. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { ArbiterRefusedError, ArbiterUnreachableError, type SwapResult } from "../../src/arbiter/arbiter.ts";
import { EtcdArbiter, type EtcdOptions } from "../../src/arbiter/etcd.ts";
import type { VmRecordUpdate } from "../../src/failover/vm_record.ts";
import { until } from "../until.ts";
import { eventually } from "./eventually.ts";
import { type EtcdMember, etcd, etcdMember, type ServerProcess, Workplace } from "./servers.ts";

/** Members that were killed may have to elect a leader first. */
const WRITE_LIMIT_MS = 60_000;

const record = (generation: number): VmRecordUpdate => ({
  term: 1,
  generation,
  holder: "host-a",
  replicaValid: true,
});

let workplace: Workplace;
beforeEach(() => {
  workplace = new Workplace();
});
afterEach(async () => await workplace[Symbol.asyncDispose]());

const urlOf = (member: EtcdMember) => `http://127.0.0.1:${member.clientPort}`;

function client(members: readonly EtcdMember[], options: Partial<EtcdOptions> = {}): EtcdArbiter {
  return new EtcdArbiter({
    endpoints: members.map(urlOf),
    prefix: "/colo-agent/vm/",
    agents: ["host-a", "host-b"],
    tls: undefined,
    credentials: undefined,
    timeoutMs: 3_000,
    ...options,
  });
}

async function call(
  member: EtcdMember,
  path: string,
  body: object,
  token?: string,
): Promise<Record<string, unknown>> {
  const response = await fetch(`${urlOf(member)}${path}`, {
    method: "POST",
    body: JSON.stringify(body),
    ...(token === undefined ? {} : { headers: { authorization: token } }),
  });
  if (!response.ok) throw new Error(`${path}: ${await response.text()}`);
  return (await response.json()) as Record<string, unknown>;
}

/** Writes `generation`, whatever it takes: as an agent does, it reads again when it does not know. */
function write(arbiter: EtcdArbiter, generation: number): Promise<number> {
  const written = async (): Promise<number | undefined> => {
    const current = await eventually(() => arbiter.read("vm1"));
    if (current?.generation === generation) return current.revision;
    let result: SwapResult;
    try {
      result = await arbiter.compareAndSwap("vm1", current?.revision ?? 0, record(generation));
    } catch (error) {
      if (!(error instanceof ArbiterUnreachableError)) throw error;
      return undefined;
    }
    return result.swapped ? result.record.revision : undefined;
  };
  return until(`generation ${generation} is written`, written, { limitMs: WRITE_LIMIT_MS });
}

describe("a cluster of three", () => {
  let members: EtcdMember[];
  let servers: ServerProcess[];
  beforeEach(async () => {
    members = [await etcdMember("m0"), await etcdMember("m1"), await etcdMember("m2")];
    servers = members.map((member) => etcd(workplace, member, members));
    await Promise.all(servers.map((server) => server.start()));
  });

  async function leader(): Promise<number> {
    const statuses = await Promise.all(
      members.map((member) =>
        call(member, "/v3/maintenance/status", {}).catch((): Record<string, unknown> => ({})),
      ),
    );
    return statuses.findIndex((status) => {
      const { member_id } = (status.header ?? {}) as { member_id?: string };
      return member_id !== undefined && member_id === status.leader;
    });
  }

  test("goes on without its leader; what was answered stays, also on the one that comes back", async () => {
    const arbiter = client(members);
    let revision = await write(arbiter, 1);
    for (let round = 0; round < 2; round++) {
      const lost = await leader();
      expect(lost).toBeGreaterThanOrEqual(0);
      await servers[lost]!.kill();
      const before = await eventually(() => arbiter.read("vm1"));
      expect(before).toEqual({ ...record(1 + round), revision });
      const next = await write(arbiter, 2 + round);
      expect(next).toBeGreaterThan(revision);
      revision = next;
      await servers[lost]!.start();
      const alone = client([members[lost]!]);
      expect(await eventually(() => alone.read("vm1"))).toEqual({ ...record(2 + round), revision });
    }
  });

  test("a member without a majority answers nothing, and nothing old", async () => {
    const arbiter = client(members);
    const revision = await write(arbiter, 1);
    await Promise.all([servers[0]!.kill(), servers[1]!.kill()]);
    const minority = client([members[2]!], { timeoutMs: 1_000 });
    await expect(minority.read("vm1")).rejects.toBeInstanceOf(ArbiterUnreachableError);
    await expect(minority.compareAndSwap("vm1", revision, record(2))).rejects.toBeInstanceOf(
      ArbiterUnreachableError,
    );
    await Promise.all([servers[0]!.start(), servers[1]!.start()]);
    expect([1, 2]).toContain((await eventually(() => arbiter.read("vm1")))!.generation);
    await write(arbiter, 3);
  });

  test("an endpoint that hangs or is not there costs its share of the time, not the answer", async () => {
    await write(client(members), 1);
    using hanging = Bun.listen({ hostname: "127.0.0.1", port: 0, socket: { data: () => undefined } });
    const nobody = await etcdMember("nobody");
    const endpoints = [`http://127.0.0.1:${hanging.port}`, urlOf(nobody), urlOf(members[0]!)];
    const arbiter = client(members, { endpoints, timeoutMs: 3_000 });
    const current = (await eventually(() => arbiter.read("vm1")))!;
    expect(current.generation).toBe(1);
    const result = await arbiter.compareAndSwap("vm1", current.revision, record(2));
    expect(result.swapped).toBe(true);
  });
});

describe("one member", () => {
  let member: EtcdMember;
  beforeEach(async () => {
    member = await etcdMember("one");
    await etcd(workplace, member, [member]).start();
    await eventually(() => client([member]).read("vm1"));
  });

  test("a wrong password and a lacking right are refused for good, a lost token is renewed", async () => {
    const encode = (text: string) => Buffer.from(text).toString("base64");
    await call(member, "/v3/auth/user/add", { name: "root", password: "top" });
    await call(member, "/v3/auth/user/grant", { user: "root", role: "root" });
    await call(member, "/v3/auth/user/add", { name: "colo", password: "secret" });
    await call(member, "/v3/auth/role/add", { name: "agents" });
    const perm = {
      permType: "READWRITE",
      key: encode("/colo-agent/vm/"),
      range_end: encode("/colo-agent/vm0"),
    };
    await call(member, "/v3/auth/role/grant", { name: "agents", perm });
    await call(member, "/v3/auth/user/grant", { user: "colo", role: "agents" });
    await call(member, "/v3/auth/enable", {});

    const as = (user: string, password: string, options: Partial<EtcdOptions> = {}) =>
      client([member], { credentials: { user, password }, ...options });
    const good = as("colo", "secret");
    const result = await good.compareAndSwap("vm1", 0, record(1));
    expect(result.swapped).toBe(true);
    await expect(as("colo", "wrong").read("vm1")).rejects.toBeInstanceOf(ArbiterRefusedError);
    await expect(client([member]).read("vm1")).rejects.toBeInstanceOf(ArbiterRefusedError);
    const elsewhere = as("colo", "secret", { prefix: "/other/" });
    await expect(elsewhere.compareAndSwap("vm1", 0, record(1))).rejects.toThrow(/permission denied/);
    // Every change of rights makes the tokens that are out old.
    const { token } = await call(member, "/v3/auth/authenticate", { name: "root", password: "top" });
    await call(member, "/v3/auth/role/add", { name: "another" }, token as string);
    expect((await good.read("vm1"))?.generation).toBe(1);
    await call(
      member,
      "/v3/auth/role/add",
      { name: "third" },
      (await call(member, "/v3/auth/authenticate", { name: "root", password: "top" })).token as string,
    );
    const again = await good.compareAndSwap("vm1", (await good.read("vm1"))!.revision, record(2));
    expect(again.swapped).toBe(true);
  });

  test("a key that somebody else has written is told and left alone", async () => {
    const encode = (text: string) => Buffer.from(text).toString("base64");
    await call(member, "/v3/kv/put", { key: encode("/colo-agent/vm/vm1"), value: encode("mine") });
    const arbiter = client([member]);
    await expect(arbiter.read("vm1")).rejects.toThrow(
      /holds a value that this colo-agent did not write \(mine\)/,
    );
    await expect(arbiter.compareAndSwap("vm1", 0, record(1))).rejects.toBeInstanceOf(ArbiterRefusedError);
  });

  test("a deleted key is no record, and its old revision writes nothing", async () => {
    const arbiter = client([member]);
    const first = await arbiter.compareAndSwap("vm1", 0, record(1));
    if (!first.swapped) throw new Error("refused");
    const key = Buffer.from("/colo-agent/vm/vm1").toString("base64");
    await call(member, "/v3/kv/deleterange", { key });
    expect(await arbiter.read("vm1")).toBeUndefined();
    expect(await arbiter.compareAndSwap("vm1", first.record.revision, record(2))).toEqual({
      swapped: false,
      current: undefined,
    });
  });

  test("what is no etcd is told", async () => {
    using other = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: () => new Response("hello", { status: 200 }),
    });
    using old = Bun.serve({
      port: 0,
      hostname: "127.0.0.1",
      fetch: () => new Response("no", { status: 404 }),
    });
    const at = (port: number | undefined) => client([], { endpoints: [`http://127.0.0.1:${port}`] });
    await expect(at(other.port).read("vm1")).rejects.toThrow(/not JSON/);
    await expect(at(old.port).read("vm1")).rejects.toThrow(/3\.4 or later/);
  });
});
