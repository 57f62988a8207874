/**
 * QEMUs that cannot do COLO: refused by their version, and found out by what they do where the version is not
 * asked.
 */
import { afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { QemuWatch } from "../../src/agent/qemu_watch.ts";
import {
  ColoProcedureError,
  checkQemu,
  endReplica,
  inspectQemu,
  prepareSecondary,
  primaryFailover,
  QemuUnsuitableError,
  startProtection,
  undoProtection,
} from "../../src/colo/index.ts";
import { TinyQemu } from "../../src/doctor/tiny_qemu.ts";
import type { Event } from "../../src/failover/events.ts";
import { WRONG_QEMUS, type WrongQemu, wrongQemu } from "../../src/lab/assets.ts";
import { runStatus, setCapabilities } from "../../src/qmp/vm.ts";
import { quiet } from "../until.ts";

/** By then one of them has hung. */
const CHECKPOINTS_MAX = 20;

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(120_000);

const HOST = "127.66.0.2";
const running: TinyQemu[] = [];
let directory: string | undefined;

afterEach(async () => {
  for (const one of running.splice(0)) await one.kill();
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
  directory = undefined;
});

async function start(name: WrongQemu, role: "primary" | "secondary"): Promise<TinyQemu> {
  directory ??= mkdtempSync(join(tmpdir(), "colo-test-wrong-"));
  const qemu = { ...wrongQemu(name), imgArgv: undefined, description: name };
  const one = await TinyQemu.start(qemu, "tcg", role, join(directory, role));
  running.push(one);
  return one;
}

function freePort(): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer();
    server.listen(0, HOST, () => {
      const { port } = server.address() as { port: number };
      server.close(() => resolve(port));
    });
  });
}

/** What a failed attempt must leave: a VM that runs, and nothing that hinders the next attempt. */
async function expectRunningAlone(primary: TinyQemu): Promise<void> {
  expect((await runStatus(primary.client)).running).toBe(true);
  await primary.goesOn();
  const capabilities = await primary.client.execute<{ capability: string; state: boolean }[]>(
    "query-migrate-capabilities",
  );
  const set = capabilities.filter(({ state }) => state).map(({ capability }) => capability);
  expect(set).not.toContain("x-colo");
  expect(set).not.toContain("return-path");
}

describe.each(WRONG_QEMUS)("QEMU %s", (name) => {
  test("is refused by its version with a sentence, and its VM runs on", async () => {
    const primary = await start(name, "primary");
    const error = await checkQemu(primary.client).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(QemuUnsuitableError);
    expect((error as Error).message).toContain(`QEMU ${name}.`);
    expect((error as Error).message).toContain("Use QEMU 11.1");
    // What lets its VM run alone needs the facts all the same.
    const facts = await inspectQemu(primary.client);
    expect(facts.unsuitable).toBe((error as Error).message);
    expect(facts.runState).toBe("running");
    await primary.goesOn();
  });

  test("is found out by what it does: the VM goes on on the source, the destination is stopped", async () => {
    const primary = await start(name, "primary");
    const secondary = await start(name, "secondary");
    const migratePort = await freePort();
    await prepareSecondary(secondary.client, { migrateHost: HOST, migratePort });
    const error = await startProtection(primary.client, { migrateHost: HOST, migratePort }).catch(
      (reason: unknown) => reason,
    );
    expect(error).toBeInstanceOf(ColoProcedureError);
    expect((error as ColoProcedureError).step).toBe("Entering COLO");
    expect((error as ColoProcedureError).leftovers).toEqual([]);
    await expectRunningAlone(primary);
    // The destination believes that it has a replica to run, and runs it.
    expect(await endReplica(secondary.client)).toBe(true);
    expect((await runStatus(secondary.client)).running).toBe(false);
    expect(await secondary.goesOn().catch((reason: Error) => reason.message)).toBe(
      "the guest does not continue",
    );
    // A VM that runs alone is no replica: it is left alone.
    expect(await endReplica(primary.client)).toBe(false);
    await expectRunningAlone(primary);
  });
});

/** Without return-path and the pause before the switch-over, as QEMU's own description of COLO has it. */
async function migratePlainly(name: WrongQemu): Promise<{ primary: TinyQemu; secondary: TinyQemu }> {
  const primary = await start(name, "primary");
  const secondary = await start(name, "secondary");
  for (const { client } of [primary, secondary]) await setCapabilities(client, ["x-colo", "events"], true);
  const uri = `tcp:${HOST}:${await freePort()}`;
  await secondary.client.execute("migrate-incoming", { uri });
  await primary.client.execute("migrate-set-parameters", { "x-checkpoint-delay": 1_000_000 });
  const ended = primary.client.waitFor(
    "MIGRATION",
    ({ data }) => data.status === "completed" || data.status === "colo",
    30_000,
  );
  const followed = secondary.client.waitFor("RESUME", () => true, 30_000);
  await primary.client.execute("migrate", { uri });
  await Promise.all([ended, followed]);
  return { primary, secondary };
}

test("QEMU 10.0 completes a COLO migration and stops the VM; undoing lets it continue", async () => {
  const { primary, secondary } = await migratePlainly("10.0");
  expect(await runStatus(primary.client)).toMatchObject({ running: false, status: "postmigrate" });
  expect(await undoProtection(primary.client, [])).toEqual([]);
  await expectRunningAlone(primary);
  expect(await endReplica(secondary.client)).toBe(true);
});

test("QEMU 7.2 locks up at a checkpoint under TCG: it is noticed, and cannot be helped", async () => {
  const { primary } = await migratePlainly("7.2");
  const told: Event[] = [];
  const watch = new QemuWatch(primary.client, { qemu_timeout_ms: 500, disk: [] }, (event) =>
    told.push(event),
  );
  let resumes = 0;
  primary.client.on("RESUME", () => resumes++);
  // Its first checkpoints may pass.
  for (let checkpoints = 0; told.length === 0; checkpoints++) {
    expect(checkpoints).toBeLessThan(CHECKPOINTS_MAX);
    const before = resumes;
    await primary.client
      .execute("migrate-set-parameters", { "x-checkpoint-delay": 1_000_000 }, { timeoutMs: 1_000 })
      .catch(() => undefined);
    for (let looks = 0; looks < 60 && told.length === 0 && resumes === before; looks++) {
      watch.look("primary");
      await quiet(50);
    }
  }
  expect(told[0]).toMatchObject({ type: "qemu_slow" });
  // Its main loop waits for itself, so cutting the connection out of band does not free it.
  const failed = primaryFailover(primary.client, { timeoutMs: 1_000 });
  expect(await failed.catch((reason: unknown) => reason)).toBeInstanceOf(ColoProcedureError);
});
