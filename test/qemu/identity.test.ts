/** Which process a VM's QEMU is, from a file that may not be what an agent wrote. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { findQemu } from "../../src/qemu/instance.ts";
import { identify } from "../../src/qemu/process.ts";
import { qemuPaths } from "../../src/qemu/settings.ts";

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-identity-"));
});
afterEach(() => rmSync(directory, { recursive: true }));

const found = (content: string) => {
  writeFileSync(qemuPaths(directory).identity, content);
  return findQemu({ directory });
};

test("the process that the file names", () => {
  const own = identify(process.pid);
  expect(found(JSON.stringify(own))).toEqual(own);
});

const { startTicks } = identify(process.pid);
test.each([
  ["an empty file", ""],
  ["half a file", '{"pid":'],
  ["a list", "[]"],
  ["null", "null"],
  ["no start", JSON.stringify({ pid: process.pid })],
  ["a process of text", JSON.stringify({ pid: String(process.pid), startTicks })],
  ["process 0, which kill(2) takes for the caller's group", JSON.stringify({ pid: 0, startTicks: 0 })],
  ["process -1, which kill(2) takes for every process", JSON.stringify({ pid: -1, startTicks: 0 })],
  ["a fraction", JSON.stringify({ pid: process.pid + 0.5, startTicks })],
  ["another start", JSON.stringify({ pid: process.pid, startTicks: startTicks + 1 })],
])("%s names none", (_, content) => {
  expect(found(content)).toBeUndefined();
});
