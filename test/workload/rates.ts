/**
 * How fast the Debian guest's servers answer with and without protection, and what the checkpoints are for.
 * Not a test.
 *
 *   bun test/workload/rates.ts [SECONDS of each measurement, default 8] [LINES for the agents' [[vm]] table]
 *   bun test/workload/rates.ts 8 'checkpoint = { max_wait_ms = 50 }'
 *
 * Each client alone and as fast as it gets answers, on one VM without agents and on a protected one, in labs
 * named "rates". The ratio is what to look at: the figures themselves are those of emulated machines that
 * share this one.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { debianGuestOptions } from "../../src/lab/debian_guest.ts";
import { Lab } from "../../src/lab/lab.ts";
import { CounterWorkload, causes, DatabaseWorkload, HttpWorkload, PipeWorkload, sql } from "./clients.ts";

const NAME = "test-rates";
const seconds = Number(process.argv[2] ?? "8");
const vmConfig = process.argv[3] ?? "";
const FINISH_TIMEOUT_MS = 60_000;

type Measurement = (namespace: string, logs: string) => Promise<number>;

/** Answers a second. */
const measurements: Record<string, Measurement> = {
  "nginx, wrk, 4 connections, 3 pages of 1 KiB and 1 of 64 KiB": async (namespace) => {
    const http = new HttpWorkload(namespace, 4, 0);
    await Bun.sleep(seconds * 1000);
    const { right, wrong, us } = await http.finish(FINISH_TIMEOUT_MS);
    if (wrong > 0) throw new Error(`${wrong} wrong pages`);
    return right / (us / 1e6);
  },
  "Redis, INCR one by one": async (namespace) => {
    const counter = new CounterWorkload(namespace, "counter", 0);
    const start = performance.now();
    await Bun.sleep(seconds * 1000);
    const { values } = await counter.finish(FINISH_TIMEOUT_MS);
    return values.length / ((performance.now() - start) / 1000);
  },
  "Redis, 1000 SETs a second by redis-cli --pipe": async (namespace) => {
    const pipe = new PipeWorkload(namespace, "number:", 1);
    const start = performance.now();
    await Bun.sleep(seconds * 1000);
    const { replies, errors } = await pipe.finish(FINISH_TIMEOUT_MS);
    if (errors > 0) throw new Error(`${errors} errors`);
    return replies / ((performance.now() - start) / 1000);
  },
  "PostgreSQL, pgbench, 1 client": (namespace, logs) => transactions(namespace, logs, 1),
  "PostgreSQL, pgbench, 4 clients": (namespace, logs) => transactions(namespace, logs, 4),
};

async function transactions(namespace: string, logs: string, clients: number): Promise<number> {
  await sql(namespace, "TRUNCATE acknowledged");
  const database = new DatabaseWorkload(namespace, clients, 0, logs);
  const start = performance.now();
  await Bun.sleep(seconds * 1000);
  const acknowledged = await database.finish(FINISH_TIMEOUT_MS);
  return acknowledged.reduce((sum, count) => sum + count, 0) / ((performance.now() - start) / 1000);
}

const alone = new Map<string, number>();
for (const proxy of ["none", "agent"] as const) {
  const logs = mkdtempSync(join(tmpdir(), "colo-test-rates-"));
  await Lab.down(NAME);
  try {
    const lab = await Lab.up({ name: NAME, proxy, vmConfig, ...debianGuestOptions() });
    for (const [name, measure] of Object.entries(measurements)) {
      const before = proxy === "agent" ? await causes(lab, "a") : {};
      const rate = await measure(lab.namespaces.client, logs);
      if (proxy === "none") {
        alone.set(name, rate);
        continue;
      }
      const seen: Record<string, number> = {};
      for (const [cause, count] of Object.entries(await causes(lab, "a"))) {
        const more = count - (before[cause] ?? 0);
        if (more > 0) seen[cause] = more;
      }
      const unprotected = alone.get(name)!;
      console.info(
        `${name}: ${unprotected.toFixed(0)}/s alone, ${rate.toFixed(0)}/s protected, ratio ` +
          `${(rate / unprotected).toFixed(2)}`,
        JSON.stringify(seen),
      );
    }
  } finally {
    await Lab.down(NAME);
    rmSync(logs, { recursive: true, force: true });
  }
}
