/**
 * `colo-agent divergences` and `colo-agent explain` as processes, against a server with the agent's routes.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { serveApi } from "../../src/api/serve.ts";
import { explain, explanationOf } from "../../src/divergence/explain.ts";
import { recordFromJson } from "../../src/divergence/json.ts";
import { writePcapng } from "../../src/divergence/pcapng.ts";
import { redact } from "../../src/divergence/redact.ts";
import { divergenceRoutes } from "../../src/divergence/routes.ts";
import { DivergenceStore } from "../../src/divergence/store.ts";
import { divergence, dnsQuery, TIME_MS, tlsHandshake } from "./records.ts";

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");

let directory: string;
let store: DivergenceStore;
let servers: ReturnType<typeof serveApi>[];
let api: string;
let socket: string;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-cli-"));
  store = new DivergenceStore({ path: join(directory, "divergences.db") });
  for (const example of [tlsHandshake(), dnsQuery()]) {
    const { id: _id, repeats: _repeats, crowdedOut: _crowdedOut, redacted: _redacted, ...rest } = example;
    store.add(rest);
  }
  store.add(divergence({ vm: "web1", timeMs: TIME_MS + 1000, class: "flags" }));
  store.flush();
  const sources = {
    metrics: async () => "",
    status: () => ({}),
    divergences: divergenceRoutes(store),
  };
  socket = join(directory, "agent.sock");
  servers = [serveApi({ host: "127.0.0.1", port: 0 }, sources), serveApi({ socket }, sources)];
  api = `http://127.0.0.1:${servers[0]!.port}`;
});
afterAll(async () => {
  for (const server of servers) await server.stop(true);
  store.close();
  rmSync(directory, { recursive: true, force: true });
});

interface Result {
  status: number;
  out: string;
  errors: string;
}

async function run(...words: string[]): Promise<Result> {
  const child = Bun.spawn([process.execPath, MAIN, ...words], { stdout: "pipe", stderr: "pipe" });
  const [out, errors, status] = await Promise.all([child.stdout.text(), child.stderr.text(), child.exited]);
  return { status, out, errors };
}

const good = (out: string): Result => ({ status: 0, out, errors: "" });

describe("divergences", () => {
  test("lists what is kept, the same from the agent, its socket and its file", async () => {
    const listed = await run("divergences", "--api", api);
    expect(listed).toMatchObject({ status: 0, errors: "" });
    const rows = listed.out.split("\n").filter((line) => /^│ \d/.test(line));
    expect(rows.map((row) => row.split("│").map((cell) => cell.trim()))).toEqual([
      [
        "",
        "3",
        "2026-01-02 03:04:06.678",
        "web1",
        "flags",
        tlsHandshake().flow.text,
        "1",
        "12.3 ms",
        "",
        "a checkpoint was requested",
        "",
      ],
      [
        "",
        "2",
        "2026-01-02 03:04:05.678",
        "db1",
        "payload",
        dnsQuery().flow.text,
        "1",
        "12.3 ms",
        "",
        "a checkpoint was requested",
        "",
      ],
      [
        "",
        "1",
        "2026-01-02 03:04:05.678",
        "db1",
        "payload",
        tlsHandshake().flow.text,
        "1",
        "12.3 ms",
        "16.2 ms",
        "checkpoint 18",
        "",
      ],
    ]);
    expect(await run("divergences", "--api", `unix:${socket}`)).toEqual(listed);
    expect(await run("divergences", "--database", store.path)).toEqual(listed);
  });

  test("takes VM, limit and JSON", async () => {
    const { out, status } = await run("divergences", "--api", api, "--vm", "db1", "--limit", "1", "--json");
    expect(status).toBe(0);
    const { divergences } = JSON.parse(out);
    expect(divergences).toHaveLength(1);
    expect(divergences[0]).toMatchObject({ id: 2, vm: "db1" });
    expect(await run("divergences", "--api", api, "--vm", "nobody")).toEqual(
      good("no divergence is stored\n"),
    );
  });

  test("ranks", async () => {
    const ranked = await run("divergences", "--api", api, "--top", "port");
    expect(ranked.status).toBe(0);
    expect(ranked.out).toMatch(/│ tcp 443 +│ 2 +│ 1 +│ 16.2 ms +│ 2026-01-02 03:04:06.678 │/);
    expect(await run("divergences", "--database", store.path, "--top", "port")).toEqual(ranked);
    const json = await run("divergences", "--api", api, "--top", "protocol", "--json");
    expect(JSON.parse(json.out)).toEqual({ top: store.top({ by: "protocol" }) });
  });

  test("writes a capture file, oldest first, for its owner only", async () => {
    for (const source of [
      ["--api", api],
      ["--database", store.path],
    ]) {
      const file = join(directory, "all.pcapng");
      rmSync(file, { force: true });
      const { status, errors } = await run("divergences", ...source, "--pcapng", file);
      expect({ status, errors }).toEqual({ status: 0, errors: `${file}: 4 frames\n` });
      const records = store.list().toReversed();
      expect(new Uint8Array(readFileSync(file))).toEqual(writePcapng(records));
      expect(statSync(file).mode & 0o077).toBe(0);
    }
  });
});

describe("explain", () => {
  test("says it in words, the same from the agent and from its file", async () => {
    expect(await run("explain", "1", "--api", api)).toEqual(good(explain(store.get(1)!)));
    expect(await run("explain", "2", "--database", store.path)).toEqual(good(explain(store.get(2)!)));
  });

  test("hides payload", async () => {
    const hidden = good(explain(store.get(1)!, { redact: true }));
    expect(hidden.out).not.toContain("3c[5e");
    for (const source of [
      ["--api", api],
      ["--database", store.path],
    ]) {
      expect(await run("explain", "1", ...source, "--redact")).toEqual(hidden);
      const file = join(directory, "hidden.pcapng");
      const { out } = await run("explain", "1", ...source, "--redact", "--json", "--pcapng", file);
      expect(recordFromJson(JSON.parse(out))).toStrictEqual(redact(store.get(1)!));
      expect(new Uint8Array(readFileSync(file))).toEqual(writePcapng([redact(store.get(1)!)]));
    }
  });

  test("gives the record and its explanation as JSON", async () => {
    const { out } = await run("explain", "2", "--api", api, "--json");
    const json = JSON.parse(out);
    expect(recordFromJson(json)).toStrictEqual(store.get(2)!);
    expect(json.explanation).toEqual(explanationOf(store.get(2)!));
    expect(json.explanation).toMatchObject({ passthrough: "udp port 53", ignore: ["udp port 53 bytes 0-1"] });
  });
});

describe("what is wrong is said in a sentence, with exit status 1", () => {
  const nowhere = "http://127.0.0.1:9"; // discard: nobody listens there
  const cases: [name: string, words: () => string[], sentence: string | RegExp][] = [
    ["an unknown number", () => ["explain", "77", "--api", api], /^colo-agent: divergence 77 is not stored/],
    [
      "one in the file",
      () => ["explain", "77", "--database", store.path],
      /^colo-agent: divergence 77 is not in .*divergences.db\n$/,
    ],
    ["no number", () => ["explain", "first"], /give a whole number, at least 1/],
    ["number zero", () => ["explain", "0"], /give a whole number, at least 1/],
    ["no agent", () => ["divergences", "--api", nowhere], /^colo-agent: no agent answers at http:\/\/127/],
    [
      "no agent at a socket",
      () => ["explain", "1", "--api", "unix:/nowhere.sock"],
      /no agent answers at unix:/,
    ],
    [
      "no address",
      () => ["divergences", "--api", "localhost"],
      /must be http:\/\/ADDRESS:PORT or unix:\/PATH/,
    ],
    [
      "no file",
      () => ["explain", "1", "--database", "/nowhere.db"],
      /there is no database of divergences at/,
    ],
    [
      "another file",
      () => ["explain", "1", "--database", MAIN],
      /cannot be read as a database of divergences/,
    ],
    [
      "both sources",
      () => ["explain", "1", "--api", api, "--database", "x"],
      /cannot be used with option '--api/,
    ],
    ["a limit that is none", () => ["divergences", "--limit", "0"], /give a whole number from 1 to 10000/],
    [
      "an unknown ranking",
      () => ["divergences", "--top", "size"],
      /Allowed choices are port, protocol, flow/,
    ],
    [
      "a capture that cannot be written",
      () => ["explain", "1", "--api", api, "--pcapng", "/nowhere/x"],
      /^colo-agent: \/nowhere\/x cannot be written/,
    ],
  ];
  test.each(cases)("%s", async (_name, words, sentence) => {
    const { status, out, errors } = await run(...words());
    expect(out).toBe("");
    expect(errors).toMatch(sentence);
    expect(errors).not.toContain("    at "); // no stack
    expect(status).toBe(1);
  });

  test("something else answers there", async () => {
    const other = Bun.serve({ hostname: "127.0.0.1", port: 0, fetch: () => new Response("hello") });
    const { status, errors } = await run("divergences", "--api", `http://127.0.0.1:${other.port}`);
    await other.stop(true);
    expect(status).toBe(1);
    expect(errors).toContain("keeps no divergences (status 200)");
  });

  test("a reading command leaves a file that is no database as it is", async () => {
    const file = join(directory, "other.db");
    writeFileSync(file, "something else");
    await run("divergences", "--database", file);
    expect(readFileSync(file, "utf8")).toBe("something else");
    expect(existsSync(`${file}.damaged`)).toBe(false);
  });
});
