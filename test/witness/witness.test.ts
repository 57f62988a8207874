/** The witness as a real server: compare-and-swap, durability, hostile requests. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { WitnessClient, WitnessUnreachableError } from "../../src/witness/client.ts";
import { serveWitness } from "../../src/witness/server.ts";

let directory: string;
let server: ReturnType<typeof serveWitness>;
let client: WitnessClient;

function start(): void {
  server = serveWitness({ host: "127.0.0.1", port: 0, directory });
  client = new WitnessClient(`http://127.0.0.1:${server.port}`);
}

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-witness-"));
  start();
});

afterEach(async () => {
  await server.stop(true);
  rmSync(directory, { recursive: true, force: true });
});

const record = (holder: string, replicaValid = false) => ({ term: 1, generation: 0, holder, replicaValid });

describe("witness", () => {
  test("a record is made once, and changed only from the revision it has", async () => {
    expect(await client.read("vm1")).toBeUndefined();
    expect(await client.compareAndSwap("vm1", 0, record("a"))).toEqual({
      swapped: true,
      record: { ...record("a"), revision: 1 },
    });
    expect(await client.compareAndSwap("vm1", 0, record("b"))).toEqual({
      swapped: false,
      current: { ...record("a"), revision: 1 },
    });
    expect((await client.compareAndSwap("vm1", 1, record("a", true))).swapped).toBe(true);
    expect(await client.read("vm1")).toEqual({ ...record("a", true), revision: 2 });
    expect(await client.read("vm2")).toBeUndefined();
  });

  test("of many that write at once exactly one wins, every time", async () => {
    for (let revision = 0; revision < 20; revision++) {
      const results = await Promise.all(
        Array.from({ length: 8 }, (_, i) => client.compareAndSwap("vm1", revision, record(`host-${i}`))),
      );
      expect(results.filter((result) => result.swapped)).toHaveLength(1);
    }
  });

  test("what was answered is there after a restart", async () => {
    await client.compareAndSwap("vm1", 0, record("a", true));
    await server.stop(true);
    start();
    expect(await client.read("vm1")).toEqual({ ...record("a", true), revision: 1 });
  });

  test("a witness that is not there is told as such", async () => {
    await server.stop(true);
    await expect(client.read("vm1")).rejects.toBeInstanceOf(WitnessUnreachableError);
    await expect(client.compareAndSwap("vm1", 0, record("a"))).rejects.toBeInstanceOf(
      WitnessUnreachableError,
    );
    start();
  });

  test("hostile requests are refused and change nothing", async () => {
    await client.compareAndSwap("vm1", 0, record("a"));
    const put = (body: string, path = "/v1/vm/vm1") =>
      fetch(`http://127.0.0.1:${server.port}${path}`, { method: "PUT", body });
    expect((await put("{")).status).toBe(400);
    expect((await put('{"expectedRevision": 1}')).status).toBe(400);
    expect(
      (await put(JSON.stringify({ expectedRevision: 1, record: { ...record("b"), extra: 1 } }))).status,
    ).toBe(400);
    expect((await put("x".repeat(5000))).status).toBe(413);
    expect((await put("{}", "/v1/vm/..%2f..%2fetc")).status).toBe(404);
    expect((await put("{}", "/v1/vm/UPPER")).status).toBe(404);
    expect(await client.read("vm1")).toEqual({ ...record("a"), revision: 1 });
  });
});
