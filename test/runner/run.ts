/**
 * Runs the checks of the code, then the test files, each in a process of its own: neither a crash nor what a
 * file leaves in its memory reaches another. The files wait in three queues (suites.ts). One processor takes
 * those that need a lab, which mostly wait for VMs; the next one those that need the kernel or QEMU; all that
 * have nothing else to do take those that need neither. scripts/test is the way to call it.
 */
import { existsSync, mkdirSync, rmSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join, relative } from "node:path";
import { parseArgs } from "node:util";
import { CHECKS } from "./checks.ts";
import { type Counts, countsOf, summary } from "./junit.ts";
import { removeLabs, removeLeftovers } from "./leftovers.ts";
import { killAll, run } from "./process.ts";
import { classesOf, LONGEST, type Queue, SUITES } from "./suites.ts";

const REPOSITORY = join(import.meta.dir, "../..");
const RESULTS = join(REPOSITORY, "build/test-results");
const MINUTE_MS = 60_000;
/** Of one test that sets none itself, and of one file, whose tests set more. */
const TEST_LIMIT_MS = { usual: 120_000, long: 6 * 60 * MINUTE_MS };
const FILE_LIMIT_MS = { usual: 20 * MINUTE_MS, long: 12 * 60 * MINUTE_MS };

const LOW_PRIORITY = ["nice", "-n", "10"];

const { values: options, positionals: paths } = parseArgs({
  options: { quick: { type: "boolean", default: false }, long: { type: "boolean", default: false } },
  allowPositionals: true,
});
const limits = options.long ? "long" : "usual";
const environment: Record<string, string> = {};
if (options.quick || options.long) environment.COLO_FORM = options.quick ? "quick" : "long";

const total: Counts = { passed: 0, failed: 0, skipped: 0 };
const failures: string[] = [];

/** Every test file, or those that a path given on the command line names. */
function filesWanted(): string[] {
  const all = [...new Bun.Glob("test/**/*.test.ts").scanSync(REPOSITORY)].sort();
  if (paths.length === 0) return all;
  const wanted = paths.map((path) => relative(REPOSITORY, join(process.cwd(), path)));
  const none = wanted.filter((path) => !all.some((file) => file === path || file.startsWith(`${path}/`)));
  if (none.length > 0) {
    console.error(`No test file is at ${none.join(" or ")}.`);
    process.exit(2);
  }
  return all.filter((file) => wanted.some((path) => file === path || file.startsWith(`${path}/`)));
}

function report(name: string, seconds: number, counts: Counts, output: string, remark = ""): void {
  total.passed += counts.passed;
  total.failed += counts.failed;
  total.skipped += counts.skipped;
  const result = counts.failed > 0 ? "FAILED" : "ok";
  console.log(
    `${result.padEnd(6)} ${seconds.toFixed(1).padStart(6)} s  ${name}: ${summary(counts)}${remark}`,
  );
  if (counts.failed === 0) return;
  failures.push(name);
  const unlessPassed = output.replaceAll(/^\(pass\) .*\n/gm, "").trimEnd();
  console.log(`${unlessPassed.replaceAll(/^/gm, "    ")}\n`);
}

async function runCheck([name, command]: (typeof CHECKS)[number]): Promise<void> {
  const log = join(RESULTS, `check.${name.replaceAll(/\W+/g, "_")}.log`);
  const { status, output, seconds } = await run(command, { limitMs: 10 * MINUTE_MS, log });
  const failed = status === 0 ? 0 : 1;
  report(name, seconds, { passed: 1 - failed, failed, skipped: 0 }, output);
}

/** @param priority words before the command */
async function runFile(file: string, priority: readonly string[] = []): Promise<void> {
  const name = relative("test", file).replaceAll("/", ".");
  const xml = join(RESULTS, `${name}.xml`);
  const { status, output, seconds, timedOut } = await run(
    [
      ...priority,
      process.execPath,
      "test",
      "--timeout",
      `${TEST_LIMIT_MS[limits]}`,
      "--reporter=junit",
      `--reporter-outfile=${xml}`,
      `./${file}`,
    ],
    { limitMs: FILE_LIMIT_MS[limits], log: join(RESULTS, `${name}.log`), environment },
  );
  const counts = countsOf(existsSync(xml) ? await Bun.file(xml).text() : undefined, status);
  report(
    file,
    seconds,
    counts,
    output,
    timedOut ? `; killed after ${FILE_LIMIT_MS[limits] / MINUTE_MS} minutes` : "",
  );
  // Only of this queue: others run at the same time.
  if (counts.failed > 0 && queueOf(file) === "lab") await removeLabs();
}

async function cleanUp(): Promise<void> {
  const removed = await removeLeftovers();
  if (removed.length > 0) console.log(`Removed what an earlier test has left: ${removed.join(", ")}`);
}

type Jobs = Iterable<() => Promise<void>>;

/** Takes the jobs of one list after the other. Lists may be shared: an iterator gives each job once. */
async function runAll(lists: readonly Jobs[]): Promise<void> {
  for (const jobs of lists) for (const job of jobs) await job();
}

/** A file that no class has may need anything. */
function queueOf(file: string): Queue {
  const [name] = classesOf(file);
  return name === undefined ? "lab" : SUITES[name].queue;
}

async function stop(): Promise<never> {
  killAll();
  if (!options.quick) await cleanUp();
  console.log(`interrupted\n${summary({ ...total, failed: total.failed + 1 })}`);
  process.exit(130);
}

const files = filesWanted();
process.chdir(REPOSITORY);
process.once("SIGINT", stop);
process.once("SIGTERM", stop);
rmSync(RESULTS, { recursive: true, force: true });
mkdirSync(RESULTS, { recursive: true });

const begin = performance.now();
const lanes = availableParallelism();
const isLong = (file: string) => (LONGEST.some((entry) => file.startsWith(entry)) ? 0 : 1);
const queued = (queue: Queue) =>
  files
    .filter((file) => queueOf(file) === queue && (!options.quick || classesOf(file)[0] === "pure"))
    .sort((a, b) => isLong(a) - isLong(b));
const queues = { lab: queued("lab"), kernel: queued("kernel"), free: queued("free") };

if (!options.quick) await cleanUp();
const checks = CHECKS.filter(([, [program = ""]]) => !options.quick || Bun.which(program) !== null);
const checking = checks.map((check) => () => runCheck(check)).values();
await Promise.all(Array.from({ length: lanes }, () => runAll([checking])));
const priority = queues.lab.length > 0 ? LOW_PRIORITY : [];
const [lab, kernel, free] = [
  queues.lab.map((file) => () => runFile(file)).values(),
  queues.kernel.map((file) => () => runFile(file, priority)).values(),
  queues.free.map((file) => () => runFile(file, priority)).values(),
];
const byProcessor = Array.from(
  { length: lanes },
  (_, at) =>
    [
      [lab, free],
      [kernel, free],
    ][at] ?? [free],
);
await Promise.all((lanes > 1 ? byProcessor : [[lab, kernel, free]]).map(runAll));
if (Object.values(queues).every((queue) => queue.length === 0)) failures.push("no test file was run");

const minutes = (performance.now() - begin) / MINUTE_MS;
console.log(
  `\n${minutes.toFixed(1)} minutes; what each file printed is in ${relative(REPOSITORY, RESULTS)}/`,
);
if (failures.length > 0) console.log(`Failed:\n${failures.map((name) => `  ${name}`).join("\n")}`);
console.log(summary(total));
process.exitCode = failures.length > 0 || total.failed > 0 ? 1 : 0;
