/** Processes that are ended by their identity. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { endProcess, isAlive, ProcessEndError, startDetached } from "../../src/qemu/process.ts";
import { until } from "../until.ts";

const directory = mkdtempSync(join(tmpdir(), "colo-test-process-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

test("a process that ends is waited for; one that is gone is no error", async () => {
  const process = startDetached(["sleep", "600"], join(directory, "log"));
  await endProcess(process);
  expect(isAlive(process)).toBe(false);
  await endProcess(process);
});

test("a process that does not end is given up after the limit, and said to be there", async () => {
  // SIGKILL cannot be ignored; SIGTERM can, also by the program that is started after that.
  const log = join(directory, "stubborn");
  const stubborn = startDetached(["sh", "-c", 'trap "" TERM; echo ready; exec sleep 600'], log);
  try {
    await until("it ignores SIGTERM", () => readFileSync(log, "utf8").includes("ready"));
    const ended = await endProcess(stubborn, "SIGTERM", 100).catch((error: Error) => error);
    expect(ended).toBeInstanceOf(ProcessEndError);
    expect((ended as Error).message).toContain(`process ${stubborn.pid} has not ended`);
    expect(isAlive(stubborn)).toBe(true);
  } finally {
    await endProcess(stubborn);
  }
});
