/**
 * Real servers and real clients through two failovers: nginx, Redis and PostgreSQL of a Debian guest
 * (guest/README.md), asked by wrk, redis-cli and pgbench all the time. The primary's host loses its power,
 * the pair is protected again, and then the host that had taken over loses its power too.
 * COLO_WORKLOAD_SECONDS: traffic in each protected phase, default 5.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { copyFileSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { debianGuestOptions } from "../../src/lab/debian_guest.ts";
import { LabFaults, otherHost } from "../../src/lab/faults.ts";
import { Lab } from "../../src/lab/lab.ts";
import type { HostLetter } from "../../src/lab/network.ts";
import { waitForCommit } from "../../src/lab/scenario.ts";
import { until } from "../until.ts";
import { count } from "../variables.ts";
import {
  CounterWorkload,
  causes,
  DatabaseWorkload,
  HttpWorkload,
  PipeWorkload,
  redis,
  sql,
  type Workload,
} from "./clients.ts";

const NAME = "test-workload";
const PHASE_SECONDS = count("COLO_WORKLOAD_SECONDS");
const PROTECT_TIMEOUT_MS = 90_000;
const TAKEOVER_TIMEOUT_MS = 30_000;
const ANSWER_TIMEOUT_MS = 60_000;
const TEST_TIMEOUT_MS = 280_000 + 4_000 * PHASE_SECONDS;

// What two emulated machines on two cores can do with room to spare: it is a test of truth, not of speed.
const HTTP_CONNECTIONS = 2;
const HTTP_PAUSE_MS = 50;
const COUNTER_PAUSE_MS = 30;
const PIPE_PAUSE_MS = 30;
const DATABASE_CLIENTS = 2;
const TRANSACTIONS_PER_SECOND = 6;

async function progress(http: HttpWorkload, all: readonly Workload[]): Promise<number[]> {
  await http.countRequests();
  return all.map((workload) => workload.progress);
}

/** Waits until each client has had answers that it did not have before. */
async function untilAllGoOn(http: HttpWorkload, all: readonly Workload[], answers: number): Promise<void> {
  const before = await progress(http, all);
  let now = before;
  const isMet = async () => {
    for (const workload of all) workload.check();
    now = await progress(http, all);
    return now.every((value, index) => value >= before[index]! + answers);
  };
  await until(`all clients have ${answers} more answers`, isMet, {
    limitMs: ANSWER_TIMEOUT_MS,
    pollMs: 100,
    seen: () => all.map(({ name }, index) => `${name} ${before[index]} -> ${now[index]}`),
  });
}

describe("nginx, Redis and PostgreSQL", () => {
  let lab: Lab;
  const options = debianGuestOptions();
  const clients: Workload[] = [];
  const temporary = mkdtempSync(join(tmpdir(), "colo-test-workload-"));

  beforeAll(async () => {
    await Lab.down(NAME);
    lab = await Lab.up({ name: NAME, proxy: "agent", ...options });
  }, TEST_TIMEOUT_MS);

  afterAll(async () => {
    for (const client of clients) client.kill();
    await Lab.down(NAME);
    rmSync(temporary, { recursive: true, force: true });
  }, TEST_TIMEOUT_MS);

  test(
    "keep their connections and all that they acknowledged through two failovers",
    async () => {
      const namespace = lab.namespaces.client;
      const faults = new LabFaults(lab);
      const http = new HttpWorkload(namespace, HTTP_CONNECTIONS, HTTP_PAUSE_MS);
      const counter = new CounterWorkload(namespace, "counter", COUNTER_PAUSE_MS);
      const pipe = new PipeWorkload(namespace, "number:", PIPE_PAUSE_MS);
      const logs = join(temporary, "pgbench");
      const database = new DatabaseWorkload(namespace, DATABASE_CLIENTS, TRANSACTIONS_PER_SECOND, logs);
      clients.push(http, counter, pipe, database);
      await untilAllGoOn(http, clients, 5);
      const backends = () =>
        sql(namespace, "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgbench' ORDER BY pid");
      const backendsAtFirst = await backends();
      expect(backendsAtFirst.split("\n").length).toBe(DATABASE_CLIENTS);

      let primary: HostLetter = "a";
      for (let round = 0; round < 2; round++) {
        if (round > 0) {
          const lost = otherHost(primary);
          await faults.healLinks();
          await lab.bringBack(lost);
          await lab.waitFor("protected again", (all) => all[primary]?.protected === true, PROTECT_TIMEOUT_MS);
        }
        await Bun.sleep(PHASE_SECONDS * 1000);
        await untilAllGoOn(http, clients, 5);
        console.info(`host ${primary}, protected:`, JSON.stringify(await causes(lab, primary)));
        const survivor = otherHost(primary);
        await faults.powerOff(primary);
        await lab.waitFor("takeover", (all) => all[survivor]?.phase === "alone", TAKEOVER_TIMEOUT_MS);
        await untilAllGoOn(http, clients, 5);
        primary = survivor;
      }

      // No connection was lost, no answer was wrong, nothing that was acknowledged is missing.
      expect(await backends()).toBe(backendsAtFirst);
      const transactions = await database.finish(ANSWER_TIMEOUT_MS);
      const counted = await counter.finish(ANSWER_TIMEOUT_MS);
      const piped = await pipe.finish(ANSWER_TIMEOUT_MS);
      const pages = await http.finish(ANSWER_TIMEOUT_MS);
      clients.length = 0;
      console.info(
        "answers:",
        JSON.stringify({ pages, piped, counted: counted.values.length, transactions }),
      );

      expect(pages).toMatchObject({ wrong: 0, connect: 0, read: 0, write: 0, status: 0, timeout: 0 });
      // What was asked last on each connection may be under way when wrk ends.
      expect(pages.asked - pages.right).toBeLessThanOrEqual(HTTP_CONNECTIONS);
      expect(counted.ids[0]).toMatch(/^\d+$/);
      expect(counted.ids[1]).toBe(counted.ids[0]);
      expect(counted.values).toEqual(counted.values.map((_, index) => index + 1));
      expect(piped).toEqual({ sent: piped.sent, errors: 0, replies: piped.sent });

      const verify = async (where: Lab) => {
        const inside = where.namespaces.client;
        expect(Number(await redis(inside, "GET", counter.key))).toBe(counted.values.length);
        const keys = Array.from({ length: piped.sent }, (_, number) => `${pipe.prefix}${number}`);
        const values = (await redis(inside, "MGET", ...keys)).split("\n");
        expect(values).toEqual(keys.map((_, number) => String(number)));
        const rows = await sql(
          inside,
          "SELECT client, count(*), min(id), max(id) FROM acknowledged GROUP BY client ORDER BY client",
        );
        expect(rows.split("\n")).toEqual(
          transactions.map((count, client) => `${client}|${count}|1|${count}`),
        );
        const sums = await sql(
          inside,
          `SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
             (SELECT sum(bbalance) FROM pgbench_branches), (SELECT sum(delta) FROM pgbench_history),
             (SELECT count(*) FROM pgbench_history), (SELECT sum(sessions_abandoned) FROM pg_stat_database)`,
        );
        const [accounts, tellers, branches, history, count, abandoned] = sums.split("|").map(Number);
        expect([tellers, branches, history]).toEqual([accounts, accounts, accounts]);
        expect(count).toBe(transactions.reduce((sum, value) => sum + value, 0));
        expect(abandoned).toBe(0);
      };
      await verify(lab);

      // The survivor's own power goes too: what was acknowledged is on its disk, and the file system is
      // whole.
      await lab.waitFor("alone", (all) => all[primary]?.phase === "alone", TAKEOVER_TIMEOUT_MS);
      await waitForCommit(lab, primary);
      await faults.powerOff(primary);
      const disk = join(temporary, "disk.raw");
      copyFileSync(lab.host(primary).disk, disk);
      await Lab.down(NAME);
      lab = await Lab.up({ name: NAME, proxy: "none", ...options, diskImage: disk });
      await verify(lab);
      await lab.kill("a", "qemu");
      copyFileSync(lab.host("a").disk, disk);
      // As at a boot: the journal is replayed, files that were open and deleted are released. Anything else
      // stays and fails.
      const replayed = Bun.spawnSync(["e2fsck", "-p", disk]);
      expect(replayed.exitCode, replayed.stdout.toString()).toBeLessThanOrEqual(1);
      const checked = Bun.spawnSync(["e2fsck", "-f", "-n", disk]);
      expect(checked.exitCode, checked.stdout.toString()).toBe(0);
    },
    TEST_TIMEOUT_MS,
  );
});
