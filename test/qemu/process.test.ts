/** Processes that are ended by their identity. */
import { afterAll, expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { endProcess, isAlive, ProcessEndError, startDetached } from "../../src/qemu/process.ts";

const directory = mkdtempSync(join(tmpdir(), "colo-test-process-"));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

test("a process that ends is waited for; one that is gone is no error", async () => {
  const process = startDetached(["sleep", "600"], join(directory, "log"));
  await endProcess(process);
  expect(isAlive(process)).toBe(false);
  await endProcess(process);
});

test("a process that does not end is given up after the limit, and said to be there", async () => {
  // SIGKILL cannot be ignored; a stopped process leaves SIGTERM pending, as one that waits in the kernel
  // leaves SIGKILL.
  const stopped = startDetached(["sleep", "600"], join(directory, "log"));
  try {
    process.kill(stopped.pid, "SIGSTOP");
    const ended = await endProcess(stopped, "SIGTERM", 100).catch((error: Error) => error);
    expect(ended).toBeInstanceOf(ProcessEndError);
    await expect(endProcess(stopped, "SIGTERM", 100)).rejects.toThrow(`process ${stopped.pid} has not ended`);
    expect(isAlive(stopped)).toBe(true);
  } finally {
    await endProcess(stopped);
  }
});
