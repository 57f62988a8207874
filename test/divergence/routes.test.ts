/** The HTTP interface: what is answered, and what is refused with which sentence. */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { recordFromJson } from "../../src/divergence/json.ts";
import { writePcapng } from "../../src/divergence/pcapng.ts";
import { redact } from "../../src/divergence/redact.ts";
import { divergenceRoutes } from "../../src/divergence/routes.ts";
import { DivergenceStore } from "../../src/divergence/store.ts";
import { divergence, dnsQuery, largeSegment, TIME_MS, tlsHandshake } from "./records.ts";

let directory: string;
let store: DivergenceStore;
let route: (url: URL) => Response | undefined;

beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-routes-"));
  store = new DivergenceStore({ path: join(directory, "divergences.db") });
  for (const [i, example] of [tlsHandshake(), dnsQuery(), largeSegment()].entries()) {
    const { id: _id, repeats: _repeats, crowdedOut: _crowdedOut, redacted: _redacted, ...rest } = example;
    store.add({ ...rest, timeMs: TIME_MS + i * 1000 });
  }
  store.add(divergence({ vm: "web1", timeMs: TIME_MS + 3000, class: "overflow" }));
  route = divergenceRoutes(store);
});
afterAll(() => {
  store.close();
  rmSync(directory, { recursive: true, force: true });
});

const get = (path: string) => route(new URL(path, "http://127.0.0.1:7401"));
async function json(path: string): Promise<Record<string, unknown>> {
  const response = get(path);
  expect(response?.status).toBe(200);
  return (await response!.json()) as Record<string, unknown>;
}
const ids = async (path: string) => ((await json(path)).divergences as { id: number }[]).map(({ id }) => id);

test("other paths are left to others", () => {
  for (const path of [
    "/",
    "/metrics",
    "/v1/status",
    "/v1/divergencesx",
    "/v1/divergences.pcap",
    "/v2/divergences",
  ]) {
    expect(get(path)).toBeUndefined();
  }
});

test("one record comes with its frames, and is the same when read back", async () => {
  for (const id of [1, 2, 3, 4]) {
    expect(recordFromJson(await json(`/v1/divergences/${id}`))).toStrictEqual(store.get(id)!);
    expect(recordFromJson(await json(`/v1/divergences/${id}?redact=1`))).toStrictEqual(
      redact(store.get(id)!),
    );
  }
});

test("lists are newest first, with the frames only if asked for", async () => {
  expect(await ids("/v1/divergences")).toEqual([4, 3, 2, 1]);
  expect(await ids("/v1/divergences?vm=db1&limit=2")).toEqual([3, 2]);
  expect(await ids(`/v1/divergences?since=${TIME_MS + 2000}`)).toEqual([4, 3]);
  const [, plain] = (await json("/v1/divergences")).divergences as Record<string, unknown>[];
  expect(plain).toMatchObject({ id: 3, difference: store.get(3)!.difference });
  expect(plain).not.toHaveProperty("primaryFrame");
  expect(plain).not.toHaveProperty("primaryCut");
  const [, whole] = (await json("/v1/divergences?frames=1")).divergences as unknown[];
  expect(recordFromJson(whole)).toStrictEqual(store.get(3)!);
});

test("the ranking is the store's", async () => {
  expect(await json("/v1/divergences/top")).toEqual({ top: store.top({ by: "port" }) });
  expect(await json("/v1/divergences/top?by=flow&vm=db1&limit=1")).toEqual({
    top: store.top({ by: "flow", vm: "db1", limit: 1 }),
  });
});

test("capture files are those of the records, oldest first", async () => {
  const one = get("/v1/divergences/2.pcapng")!;
  expect(one.headers.get("content-type")).toBe("application/x-pcapng");
  expect(one.headers.get("content-disposition")).toBe('attachment; filename="divergence-2.pcapng"');
  expect(await one.bytes()).toEqual(writePcapng([store.get(2)!]));
  const hidden = get("/v1/divergences/2.pcapng?redact=1")!;
  expect(await hidden.bytes()).toEqual(writePcapng([redact(store.get(2)!)]));
  const all = get("/v1/divergences.pcapng?vm=db1")!;
  expect(await all.bytes()).toEqual(writePcapng([1, 2, 3].map((id) => store.get(id)!)));
});

describe("refused", () => {
  test.each([
    ["/v1/divergences/77", 404, "divergence 77 is not stored: it never was, or newer ones have replaced it"],
    ["/v1/divergences/77.pcapng", 404, "divergence 77 is not stored"],
    ["/v1/divergences/0", 404, "divergence 0 is not stored"],
    ["/v1/divergences/", 404, "there is no /v1/divergences/"],
    ["/v1/divergences/1/2", 404, "there is no /v1/divergences/1/2"],
    ["/v1/divergences/-1", 404, "there is no"],
    ["/v1/divergences/1e3", 404, "there is no"],
    ["/v1/divergences/9999999999999999999", 404, "there is no"],
    ["/v1/divergences?limit=0", 400, "limit must be a whole number from 1 to 10000"],
    ["/v1/divergences?limit=ten", 400, "limit must be"],
    ["/v1/divergences?limit=", 400, "limit must be"],
    ["/v1/divergences?since=-1", 400, "since must be"],
    ["/v1/divergences?redact=yes", 400, "redact must be 0 or 1"],
    ["/v1/divergences?frames=2", 400, "frames must be 0 or 1"],
    ["/v1/divergences/top?by=colour", 400, "by must be one of port, protocol, flow"],
  ])("%s: %d, %s", async (path, status, sentence) => {
    const response = get(path)!;
    expect(response.status).toBe(status);
    const { error } = (await response.json()) as { error: string };
    expect(error).toStartWith(sentence);
  });
});
