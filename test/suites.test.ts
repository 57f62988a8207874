/**
 * The classes of test files (test/runner/suites.ts), and what the runner makes of a file that crashes or
 * tests nothing.
 */
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { countsOf, summary } from "./runner/junit.ts";
import { run } from "./runner/process.ts";
import { classesOf, SUITES } from "./runner/suites.ts";
import { tableRows } from "./tidy/documents.ts";
import { until } from "./until.ts";

const REPOSITORY = join(import.meta.dir, "..");
const directory = mkdtempSync(join(tmpdir(), "colo-test-runner-"));
afterAll(() => rmSync(directory, { recursive: true }));
const files = [...new Bun.Glob("test/**/*.test.ts").scanSync(REPOSITORY)].sort();

test("every test file is in exactly one class", () => {
  expect(files.filter((file) => classesOf(file).length !== 1).map((file) => [file, classesOf(file)])).toEqual(
    [],
  );
});

test("every entry of a class exists", () => {
  const entries = Object.values(SUITES).flatMap((suites) => suites.entries);
  expect(entries.filter((entry) => !existsSync(join(REPOSITORY, entry)))).toEqual([]);
});

test("CONTRIBUTING.md maps every class, with its needs and its folders", async () => {
  const rows = tableRows(await Bun.file(join(REPOSITORY, "CONTRIBUTING.md")).text(), "## Map of the tests");
  expect(rows.map(([name, needs]) => [name, needs])).toEqual(
    Object.entries(SUITES).map(([name, { needs }]) => [`\`${name}\``, needs]),
  );
  Object.values(SUITES).forEach(({ entries }, at) => {
    const folders = new Set(entries.map((entry) => entry.split("/")[1] as string));
    const missing = [...folders].filter(
      (name) => !name.endsWith(".ts") && !rows[at]?.[2]?.includes(`test/${name}`),
    );
    expect(missing).toEqual([]);
  });
});

describe("the runner's count", () => {
  const report = (tests: number, failures: number, skipped: number) =>
    `<?xml version="1.0"?>\n<testsuites name="bun test" tests="${tests}" failures="${failures}" ` +
    `skipped="${skipped}" time="1">`;

  test.each([
    ["all passed", report(3, 0, 0), 0, "3 passed, 0 failed"],
    ["some skipped", report(3, 0, 2), 0, "1 passed, 0 failed, 2 skipped"],
    ["one failed", report(3, 1, 0), 1, "2 passed, 1 failed"],
    ["an error outside of the tests", report(3, 0, 0), 1, "3 passed, 1 failed"],
    ["no test", report(0, 0, 0), 0, "0 passed, 1 failed"],
    ["a crash before the report", undefined, 139, "0 passed, 1 failed"],
    ["no report in spite of success", undefined, 0, "0 passed, 1 failed"],
  ])("%s", (_, text, status, line) => {
    expect(summary(countsOf(text, status))).toBe(line);
  });
});

test("a process that takes too long is killed with its children", async () => {
  const { timedOut, status, output } = await run(["sh", "-c", "sleep 600 & echo $!; wait"], {
    limitMs: 500,
    log: join(directory, "log"),
  });
  expect(timedOut).toBe(true);
  expect(status).toBe(137);
  const sleeper = Number(output);
  expect(sleeper).toBeGreaterThan(0);
  // A killed process stays in /proc until its new parent has read its status.
  const ended = () => {
    const stat = existsSync(`/proc/${sleeper}/stat`) ? readFileSync(`/proc/${sleeper}/stat`, "utf8") : "";
    return stat === "" || /\) [ZX] /.test(stat);
  };
  await until("the process has ended", ended);
});
