/** What an agent remembers of a VM on disk, and a file that is not what an agent wrote. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { InstanceMemory } from "../../src/agent/instance_memory.ts";

let directory: string;
let path: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-life-"));
  path = join(directory, "vm", "db1.json");
});
afterEach(() => rmSync(directory, { recursive: true }));

const REST = { generation: 3, epoch: 17, mirrorBases: [5, -2] };

test("what is kept of a VM outlives the agent", () => {
  const memory = new InstanceMemory(path, 1);
  expect(memory.kept).toEqual({ recordSeen: false, lastRun: "never" });
  memory.keep({ off: "shut down", recordSeen: true });
  memory.keep({ lastRun: "alone" });
  expect(new InstanceMemory(path, 1).kept).toEqual({ off: "shut down", recordSeen: true, lastRun: "alone" });
  memory.keep({ off: undefined });
  expect(new InstanceMemory(path, 1).kept.off).toBeUndefined();
});

test("a replica at rest is that of a VM with as many network interfaces", () => {
  new InstanceMemory(path, 2).keep({ rest: REST });
  expect(new InstanceMemory(path, 2).kept.rest).toEqual(REST);
  expect(new InstanceMemory(path, 1).kept).toEqual({ recordSeen: false, lastRun: "never" });
});

const GOOD = { recordSeen: true, lastRun: "as_replica", rest: REST };
test.each<[string, unknown]>([
  ["no JSON", "{"],
  ["an empty file, as a crash may leave", ""],
  ["another kind of value", "[]"],
  ["a missing key", { lastRun: "never" }],
  ["an unknown last run", { ...GOOD, lastRun: "maybe" }],
  ["a reason that is no text", { ...GOOD, off: true }],
  ["a negative epoch", { ...GOOD, rest: { ...REST, epoch: -1 } }],
  ["a generation that is no whole number", { ...GOOD, rest: { ...REST, generation: 1.5 } }],
  ["a base that is text", { ...GOOD, rest: { ...REST, mirrorBases: ["5", 0] } }],
  ["no bases", { ...GOOD, rest: { generation: 3, epoch: 17 } }],
])("%s is an error that names the file and what to do", (_, content) => {
  mkdirSync(dirname(path));
  writeFileSync(path, typeof content === "string" ? content : JSON.stringify(content));
  const read = () => new InstanceMemory(path, 2);
  expect(read).toThrow(path);
  expect(read).toThrow(/remove the file/);
});
