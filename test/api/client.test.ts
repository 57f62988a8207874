/** What an agent answers is checked by whoever asks, and what is asked of an agent by the agent. */
import { afterEach, describe, expect, test } from "bun:test";
import type { Server } from "bun";
import { carryOut, readStatus } from "../../src/api/client.ts";
import { type ApiSources, serveApi } from "../../src/api/serve.ts";
import type { AgentStatus, VmStatus } from "../../src/api/status.ts";
import { AgentUnreachableError } from "../../src/host/agent_http.ts";
import { MalformedError } from "../../src/host/json.ts";

const LIMIT_MS = 30_000;
const VM: VmStatus = {
  name: "vm1",
  phase: "protected",
  role: "primary",
  protected: true,
  reason: undefined,
  words: { now: "a", ifThisHostDies: "b", ifPeerDies: "c" },
  epoch: 42,
  term: 3,
  generation: 2,
  proxy: "ebpf",
  taps: ["tap0"],
  qmp: "/run/vm1.qmp",
  off: false,
  framesHeld: 17,
  tuning: { periodMs: 10_000, resyncBytesPerSecond: 0 },
  counters: { held: 1 },
};
const STATUS: AgentStatus = {
  agent: "host-a",
  version: "1.2.3",
  pid: 4711,
  peer: { name: "host-b", connected: true },
  vms: [VM],
};

const servers: Server<undefined>[] = [];
afterEach(async () => {
  for (const server of servers.splice(0)) await server.stop(true);
});

/** An HTTP server that answers everything with this. */
function answering(body: string, type = "application/json"): string {
  const server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: () => new Response(body, { headers: { "content-type": type } }),
  });
  servers.push(server);
  return `http://127.0.0.1:${server.port}`;
}

describe("status", () => {
  test("an agent's is read whole", async () => {
    const server = serveApi({ host: "127.0.0.1", port: 0 }, { ...SOURCES, status: () => STATUS });
    servers.push(server);
    expect(await readStatus(`http://127.0.0.1:${server.port}`, LIMIT_MS)).toEqual(STATUS);
  });

  const { vms: _, ...withoutVms } = STATUS;
  test.each<[string, unknown]>([
    ["no object", null],
    ["a list", [STATUS]],
    ["no VMs", withoutVms],
    ["a phase that does not exist", { ...STATUS, vms: [{ ...VM, phase: "asleep" }] }],
    ["an epoch of text", { ...STATUS, vms: [{ ...VM, epoch: "42" }] }],
    ["no sentences", { ...STATUS, vms: [{ ...VM, words: undefined }] }],
    ["a counter that is no number", { ...STATUS, vms: [{ ...VM, counters: { held: null } }] }],
  ])("%s is no agent's", async (_, body) => {
    const asked = readStatus(answering(JSON.stringify(body)), LIMIT_MS);
    await expect(asked).rejects.toThrow(MalformedError);
    await expect(asked).rejects.toThrow(/answers as no agent of this version/);
  });

  test("text that is declared as JSON", async () => {
    await expect(readStatus(answering("{"), LIMIT_MS)).rejects.toThrow(/not JSON/);
  });

  test("a page for people", async () => {
    await expect(readStatus(answering("<html>", "text/html"), LIMIT_MS)).rejects.toThrow(/as no agent/);
  });

  test("nobody there, and an address that is none", async () => {
    await expect(readStatus("unix:/nonexistent/socket", LIMIT_MS)).rejects.toThrow(AgentUnreachableError);
    await expect(readStatus("ftp://a", LIMIT_MS)).rejects.toThrow(/must be http:\/\/ADDRESS:PORT or unix:/);
  });
});

const SOURCES: ApiSources = {
  metrics: async () => "",
  status: () => ({}),
  divergences: () => undefined,
};

describe("commands", () => {
  const given: unknown[] = [];
  function commanded(): string {
    given.length = 0;
    const command: ApiSources["command"] = (vm, word, numbers) => {
      given.push([vm, word, numbers]);
      if (word === "failover") throw new Error("nobody is there");
      return "done";
    };
    const server = serveApi({ host: "127.0.0.1", port: 0 }, { ...SOURCES, command });
    servers.push(server);
    return `http://127.0.0.1:${server.port}`;
  }
  const post = async (url: string) => {
    const response = await fetch(url, { method: "POST" });
    return { status: response.status, body: (await response.json()) as unknown };
  };

  test("numbers of the query arrive as numbers", async () => {
    const url = commanded();
    expect(await post(`${url}/v1/vm/vm1/pause?for_ms=1500`)).toEqual({ status: 200, body: { now: "done" } });
    await post(`${url}/v1/vm/vm1/tune?period_ms=100&resync_bytes_per_second=0`);
    expect(given).toEqual([
      ["vm1", "pause", { for_ms: 1500 }],
      ["vm1", "tune", { period_ms: 100, resync_bytes_per_second: 0 }],
    ]);
  });

  test.each([
    "for_ms=soon",
    "for_ms=",
    "for_ms=-1",
    "for_ms=NaN",
    "for_ms=Infinity",
    "for_ms=1e300",
    "until=5",
  ])("?%s is refused before anything is done", async (query) => {
    const { status, body } = await post(`${commanded()}/v1/vm/vm1/pause?${query}`);
    expect(status).toBe(400);
    expect(body).toEqual({ error: expect.stringContaining(query.split("=")[0]!) });
    expect(given).toEqual([]);
  });

  test("a refusal is the error of the command line", async () => {
    const directory = `/tmp/colo-test-api-${process.pid}.sock`;
    const command: ApiSources["command"] = () => {
      throw new Error("nobody is there");
    };
    servers.push(serveApi({ socket: directory }, { ...SOURCES, command }));
    await expect(carryOut(directory, "/v1/vm/vm1/failover", LIMIT_MS)).rejects.toThrow("nobody is there");
  });
});
