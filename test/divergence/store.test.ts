/** The store on a real file: limits, repeats, reopening, damage, and somebody who reads while it writes. */
import { Database } from "bun:sqlite";
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { DivergenceReader } from "../../src/divergence/reader.ts";
import { DivergenceStore, type DivergenceStoreOptions } from "../../src/divergence/store.ts";
import { until } from "../until.ts";
import { divergence, noise, parseFlow, TIME_MS } from "./records.ts";

let directory: string;
let path: string;
let logged: { level: string; message: string; fields: Record<string, unknown> | undefined }[];
const opened: DivergenceStore[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-divergence-"));
  path = join(directory, "state", "divergences.db");
  logged = [];
});

afterEach(() => {
  for (const store of opened.splice(0)) store.close();
  rmSync(directory, { recursive: true, force: true });
});

function open(options: Partial<DivergenceStoreOptions> = {}): DivergenceStore {
  const store = new DivergenceStore({
    path,
    perSecondMax: 1_000_000,
    log: {
      warn: (message, fields) => logged.push({ level: "warn", message, fields }),
      error: (message, fields) => logged.push({ level: "error", message, fields }),
    },
    ...options,
  });
  opened.push(store);
  return store;
}

const flow = (port: number) => parseFlow(`tcp 198.18.0.2:80 > 198.18.0.9:${port}`);

/** Adds `count` divergences of different flows. */
function fill(store: DivergenceStore, count: number, options: Parameters<typeof divergence>[0] = {}): void {
  for (let i = 0; i < count; i++) store.add(divergence({ flow: flow(20_000 + i), ...options }));
}

describe("what is added", () => {
  test("comes back whole, from this store and from the next one on the file", () => {
    const given = divergence({
      streamOffset: 4_294_967_295,
      difference: { primaryFrameOffset: 66, secondaryFrameOffset: 70 },
      primaryFrame: noise(1514, 1),
      secondaryFrame: noise(60, 2),
    });
    const store = open();
    const id = store.add(given);
    const want = { ...given, id, repeats: 0, crowdedOut: 0 };
    expect(store.get(id)).toEqual(want);
    expect(store.list()).toEqual([want]);
    store.close();
    expect(open().get(id)).toEqual(want);
    expect(logged).toEqual([]);
  });

  test("without optional parts comes back without them", () => {
    const given = divergence({ flow: parseFlow("all flows"), class: "overflow" });
    const store = open();
    const id = store.add(given);
    expect(store.get(id)).toStrictEqual({ ...given, id, repeats: 0, crowdedOut: 0 });
  });

  test("is completed before and after it was written", () => {
    const store = open();
    const checkpoint = { epoch: 18, pauseMs: 16.25, totalMs: 24.5 };
    const early = store.add(divergence());
    store.complete(early, { action: "checkpoint 18", checkpoint });
    const late = store.add(divergence({ class: "flags" }));
    store.flush();
    store.complete(late, { checkpoint });
    expect(store.get(early)).toMatchObject({ action: "checkpoint 18", checkpoint });
    expect(store.get(late)).toMatchObject({ action: "a checkpoint was requested", checkpoint });
    store.complete(late, { action: "checkpoint 18" });
    store.complete(0, { action: "nothing" });
    store.complete(999, { action: "nothing" });
    store.close();
    const again = open();
    expect(again.get(late)).toMatchObject({ action: "checkpoint 18", checkpoint });
    expect(again.list()).toHaveLength(2);
  });

  test("is listed newest first, by VM, by time and no more than asked for", () => {
    const store = open();
    for (let i = 0; i < 5; i++) {
      store.add(
        divergence({ vm: i % 2 === 0 ? "db1" : "web1", timeMs: TIME_MS + i * 1000, flow: flow(i + 1) }),
      );
    }
    const ids = (options: Parameters<DivergenceStore["list"]>[0]) => store.list(options).map(({ id }) => id);
    expect(ids({})).toEqual([5, 4, 3, 2, 1]);
    expect(ids({ vm: "web1" })).toEqual([4, 2]);
    expect(ids({ since: TIME_MS + 2000 })).toEqual([5, 4, 3]);
    expect(ids({ vm: "db1", since: TIME_MS + 1, limit: 1 })).toEqual([5]);
    expect(store.get(77)).toBeUndefined();
  });

  test("writes itself to the file without being asked to", async () => {
    const store = open();
    const id = store.add(divergence());
    const reader = DivergenceReader.open(path);
    expect(reader.get(id)).toBeUndefined();
    await until("the divergence is in the file", () => reader.get(id));
    expect(reader.get(id)?.flow.text).toBe(divergence().flow.text);
    reader.close();
  });

  test("is for the owner's eyes only, its log too", () => {
    const store = open();
    store.add(divergence());
    store.flush();
    const names = readdirSync(join(directory, "state"));
    expect(names).toContain("divergences.db-wal");
    for (const name of names) {
      expect(statSync(join(directory, "state", name)).mode & 0o077).toBe(0);
    }
    expect(statSync(join(directory, "state")).mode & 0o077).toBe(0);
  });

  test("when it does not fit the table, it is lost alone", () => {
    const store = open();
    store.add(divergence({ epoch: 1.5 }));
    const id = store.add(divergence({ class: "flags" }));
    expect(store.list().map((record) => record.id)).toEqual([id]);
    expect(logged).toHaveLength(1);
    expect(logged[0]?.message).toContain("is lost");
    expect(existsSync(`${path}.damaged`)).toBe(false);
  });
});

describe("large frames", () => {
  test("are kept with the difference and what is around it", () => {
    const frame = noise(65_000, 3);
    const store = open();
    const id = store.add(
      divergence({
        primaryFrame: frame,
        secondaryFrame: noise(3000, 4),
        difference: { primaryFrameOffset: 40_000, secondaryFrameOffset: 100 },
      }),
    );
    const { primaryFrame, primaryCut, secondaryFrame, secondaryCut } = store.get(id)!;
    expect(primaryFrame).toHaveLength(2048);
    expect(primaryCut).toEqual({ frameBytes: 65_000, gapOffset: 1983, gapBytes: 40_000 - 32 - 1983 });
    expect(primaryFrame?.slice(0, 1983)).toEqual(frame.slice(0, 1983));
    expect(primaryFrame?.slice(1983)).toEqual(frame.slice(40_000 - 32, 40_000 + 33));
    expect(secondaryFrame).toEqual(noise(3000, 4).slice(0, 2048));
    expect(secondaryCut).toEqual({ frameBytes: 3000, gapOffset: 2048, gapBytes: 952 });
  });
});

describe("limits", () => {
  test("the oldest records go when there are more than countMax, and numbers go on growing", () => {
    const store = open({ countMax: 50 });
    fill(store, 180);
    const ids = store.list({ limit: 1000 }).map(({ id }) => id);
    expect(ids).toEqual(Array.from({ length: 50 }, (_, i) => 180 - i));
    store.close();
    const again = open({ countMax: 50 });
    expect(again.add(divergence({ class: "flags" }))).toBe(181);
    expect(again.list({ limit: 1000 })).toHaveLength(50);
    expect(again.get(131)).toBeUndefined();
  });

  test("the oldest records go when they have more than bytesMax, and the file stays bounded", () => {
    const bytesMax = 256 * 1024;
    const store = open({ bytesMax });
    let peakBytes = 0;
    for (let i = 0; i < 2000; i++) {
      const frames = { primaryFrame: noise(1500, i), secondaryFrame: noise(1500, i + 1) };
      store.add(divergence({ flow: flow(i + 1), ...frames }));
      if (i % 100 === 0) {
        store.flush();
        peakBytes = Math.max(peakBytes, statSync(path).size);
      }
    }
    const kept = store.list({ limit: 10_000 });
    const frameBytes = kept.reduce((sum, r) => sum + r.primaryFrame!.length + r.secondaryFrame!.length, 0);
    expect(frameBytes).toBeLessThanOrEqual(bytesMax);
    expect(kept.length).toBeGreaterThan(bytesMax / 4096 / 2);
    expect(kept[0]?.id).toBe(2000);
    expect(new Set(kept.map(({ id }) => 2000 - id))).toEqual(new Set(kept.keys()));
    store.close();
    peakBytes = Math.max(peakBytes, statSync(path).size);
    // A row takes whole pages of 4 KiB, and a batch of up to 64 rows comes before the oldest go.
    expect(peakBytes).toBeLessThan(2 * bytesMax + 64 * 8192);
    const total = new Database(path).query("select sum(bytes) as n from divergences").get() as { n: number };
    expect(total.n).toBeLessThanOrEqual(bytesMax);
  });

  test("smaller limits hold for what an earlier run has left", () => {
    const store = open();
    fill(store, 300);
    store.close();
    const again = open({ countMax: 10 });
    again.add(divergence({ class: "flags" }));
    expect(again.list({ limit: 1000 }).map(({ id }) => id)).toEqual(
      Array.from({ length: 10 }, (_, i) => 301 - i),
    );
  });

  test("a record larger than all that may be kept stays alone", () => {
    const store = open({ bytesMax: 1000 });
    store.add(divergence({ primaryFrame: noise(1500, 1) }));
    const id = store.add(divergence({ class: "flags", primaryFrame: noise(1500, 1) }));
    expect(store.list().map((record) => record.id)).toEqual([id]);
  });

  test("no more than perSecondMax new ones are stored in a second; the others are counted", () => {
    const store = open({ perSecondMax: 10 });
    const ids = Array.from({ length: 25 }, (_, i) =>
      store.add(divergence({ flow: flow(i + 1), timeMs: TIME_MS + i })),
    );
    expect(ids.slice(0, 10)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(ids.slice(10)).toEqual(new Array(15).fill(0));
    expect(store.add(divergence({ flow: flow(99), timeMs: TIME_MS + 1000 }))).toBe(11);
    expect(store.list().map(({ crowdedOut }) => crowdedOut)).toEqual([0, 15, ...new Array(9).fill(0)]);
  });
});

describe("repeats", () => {
  test("of a class in a flow within a second are counted, not stored", () => {
    const store = open();
    const id = store.add(divergence());
    expect(store.add(divergence({ timeMs: TIME_MS + 500 }))).toBe(id);
    store.flush();
    expect(store.add(divergence({ timeMs: TIME_MS + 999, detail: "another" }))).toBe(id);
    expect(store.list()).toHaveLength(1);
    expect(store.get(id)).toMatchObject({ repeats: 2, detail: divergence().detail });
  });

  test("another class, flow or VM, or a second later, is another divergence", () => {
    const store = open();
    store.add(divergence());
    store.add(divergence({ class: "flags" }));
    store.add(divergence({ flow: flow(1) }));
    store.add(divergence({ vm: "web1" }));
    store.add(divergence({ timeMs: TIME_MS + 1000 }));
    // The wall clock was put back.
    store.add(divergence({ timeMs: TIME_MS - 5000 }));
    expect(store.list().map(({ repeats }) => repeats)).toEqual([0, 0, 0, 0, 0, 0]);
  });
});

describe("a ranking", () => {
  test("counts repeats, and a checkpoint once however many divergences it answers", () => {
    const store = open();
    const dns = parseFlow("udp 198.18.0.2:40000 > 198.18.0.9:53");
    const cost = (epoch: number, pauseMs: number) => ({
      checkpoint: { epoch, pauseMs, totalMs: 2 * pauseMs },
    });
    for (const port of [1001, 1002, 1003])
      store.complete(store.add(divergence({ flow: flow(port) })), cost(18, 16));
    store.complete(store.add(divergence({ flow: flow(1001), class: "flags" })), cost(19, 10));
    for (let i = 0; i < 7; i++) store.add(divergence({ flow: dns, timeMs: TIME_MS + i }));
    store.add(divergence({ flow: parseFlow("icmp type 0 code 0 id 7 198.18.0.2 > 198.18.0.9"), vm: "web1" }));
    expect(store.top({ by: "port" })).toEqual([
      { key: "udp 53", divergences: 7, checkpoints: 0, pauseMs: 0, lastTimeMs: TIME_MS },
      { key: "tcp 80", divergences: 4, checkpoints: 2, pauseMs: 26, lastTimeMs: TIME_MS },
      { key: "icmp", divergences: 1, checkpoints: 0, pauseMs: 0, lastTimeMs: TIME_MS },
    ]);
    expect(store.top({ by: "protocol" }).map(({ key }) => key)).toEqual(["udp", "tcp", "icmp"]);
    expect(store.top({ by: "flow", limit: 2 }).map(({ key, divergences }) => [key, divergences])).toEqual([
      [dns.text, 7],
      [flow(1001).text, 2],
    ]);
    expect(store.top({ by: "protocol", vm: "web1" }).map(({ key }) => key)).toEqual(["icmp"]);
  });
});

describe("a file that cannot be used", () => {
  const damages: [string, () => void][] = [
    [
      "is no database",
      () => writeFileSync(path, "this is no database, though it is long enough".repeat(300)),
    ],
    ["was cut off", () => truncateSync(path, 6000)],
    [
      "has bytes overwritten",
      () => {
        const fd = openSync(path, "r+");
        for (let at = 4096; at < statSync(path).size; at += 4096) writeSync(fd, noise(512, at), 0, 512, at);
        closeSync(fd);
      },
    ],
    [
      "is a database of something else",
      () => {
        rmSync(path);
        const other = new Database(path, { create: true });
        other.run("create table divergences (id integer primary key)");
        other.close();
      },
    ],
    [
      "has our version and another table",
      () => {
        rmSync(path);
        const other = new Database(path, { create: true });
        other.run("create table divergences (id integer primary key)");
        other.run("pragma user_version = 1");
        other.close();
      },
    ],
    [
      "was written by a later version",
      () => {
        const later = new Database(path);
        later.run("pragma user_version = 2");
        later.close();
      },
    ],
  ];

  test.each(damages)("%s: it is moved aside, said so, and a new one is begun", (_name, damage) => {
    const before = open();
    fill(before, 100, { primaryFrame: noise(1500, 1) });
    before.close();
    damage();
    const damaged = readFileSync(path);

    const store = open();
    expect(logged).toHaveLength(1);
    expect(logged[0]).toMatchObject({ level: "warn", fields: { path, movedTo: `${path}.damaged` } });
    expect(logged[0]?.message).toBe(
      "the database of divergences cannot be used and was renamed; a new one is begun",
    );
    expect(readFileSync(`${path}.damaged`).equals(damaged)).toBe(true);
    const id = store.add(divergence());
    expect(store.list().map((record) => record.id)).toEqual([id]);
    store.close();
    expect(open().get(id)?.detail).toBe(divergence().detail);
    expect(logged).toHaveLength(1);
  });

  test("is damaged while it is open: what is found then is kept in a new one", () => {
    const store = open({ countMax: 100_000 });
    fill(store, 2000, { primaryFrame: noise(1500, 1) });
    store.flush();
    // Out of the log into the file, and out of the page cache of the store's own connection.
    new Database(path).run("pragma wal_checkpoint(truncate)");
    const fd = openSync(path, "r+");
    for (let at = 0; at < statSync(path).size; at += 4096) writeSync(fd, noise(4096, at), 0, 4096, at);
    closeSync(fd);
    let rounds = 0;
    while (logged.length === 0 && rounds++ < 100) {
      fill(store, 50, { timeMs: TIME_MS + rounds * 1000 });
      store.list({ limit: 10_000 });
    }
    expect(logged[0]?.message).toContain("was renamed");
    expect(existsSync(`${path}.damaged`)).toBe(true);
    const id = store.add(divergence({ class: "flags" }));
    expect(id).toBeGreaterThan(2000);
    expect(store.get(id)?.class).toBe("flags");
  });

  test("cannot be made: records are kept in memory, said so", () => {
    mkdirSync(path, { recursive: true });
    const store = open();
    const id = store.add(divergence());
    expect(store.get(id)?.flow.text).toBe(divergence().flow.text);
    expect(logged).toHaveLength(1);
    expect(logged[0]).toMatchObject({ level: "error", fields: { path } });
  });

  test("is locked by another process: the agent goes on, and writes again afterwards", () => {
    const store = open();
    const other = new Database(path);
    other.run("begin exclusive");
    store.add(divergence());
    store.flush();
    expect(logged.map(({ message }) => message)).toEqual(["divergences could not be written and are lost"]);
    other.run("commit");
    other.close();
    const id = store.add(divergence({ class: "flags" }));
    expect(store.get(id)?.class).toBe("flags");
  });
});

test("another process reads consistent records while the store writes and prunes", async () => {
  const store = open({ countMax: 200 });
  const reading = Bun.spawn([process.execPath, join(import.meta.dir, "reading_process.ts"), path], {
    stdout: "pipe",
    stderr: "inherit",
  });
  let added = 0;
  while (reading.exitCode === null) {
    fill(store, 100, { timeMs: TIME_MS + added * 1000, primaryFrame: noise(1500, 5) });
    added += 100;
    store.flush();
    await Bun.sleep(1);
  }
  const { reads, distinct, wrong } = JSON.parse(await reading.stdout.text());
  expect(wrong).toEqual([]);
  expect(reads).toBe(200);
  expect(distinct).toBeGreaterThan(1);
  expect(logged).toEqual([]);
  expect(store.list({ limit: 1000 })).toHaveLength(200);
});

test("a file that no agent has open can be read where nothing can be written", () => {
  const store = open();
  const id = store.add(divergence());
  store.close();
  const reading = Bun.spawnSync([process.execPath, "-e", unprivilegedReader(path)], { stderr: "inherit" });
  expect(reading.stdout.toString()).toBe(`${id}\n`);
  expect(reading.exitCode).toBe(0);
});

/** Gives up root, for which no directory is read-only. */
function unprivilegedReader(file: string): string {
  const reader = join(import.meta.dir, "../../src/divergence/reader.ts");
  return `
    import { chmodSync } from "node:fs";
    import { dirname } from "node:path";
    import { DivergenceReader } from ${JSON.stringify(reader)};
    const path = ${JSON.stringify(file)};
    chmodSync(path, 0o444);
    chmodSync(dirname(path), 0o555);
    chmodSync(dirname(dirname(path)), 0o755);
    if (process.getuid() === 0) process.setuid(65534);
    const reader = DivergenceReader.open(path);
    console.log(reader.list().map((record) => record.id).join());
    reader.close();
  `;
}

describe("opening for reading", () => {
  test("says that there is no file, or that it is none", () => {
    expect(() => DivergenceReader.open(path)).toThrow(`there is no database of divergences at ${path}`);
    mkdirSync(join(directory, "state"));
    writeFileSync(path, "not a database".repeat(100));
    expect(() => DivergenceReader.open(path)).toThrow(
      `${path} cannot be read as a database of divergences: file is not a database`,
    );
    expect(readFileSync(path, "utf8")).toBe("not a database".repeat(100));
    writeFileSync(path, "");
    expect(() => DivergenceReader.open(path)).toThrow("it is empty");
  });
});
