/**
 * `bench --against`: ratios and their direction, the order of the runs, and an older commit checked out and
 * run.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { hasBenchOption, parseBenchOutput, runBenchOf } from "../../src/bench/against/bench_process.ts";
import { runInTurn } from "../../src/bench/against/in_turn.ts";
import { builtFolder, findCommit, uncommitted } from "../../src/bench/against/older_commit.ts";
import { compareRuns, renderRatios, slowerRows } from "../../src/bench/against/ratios.ts";
import type { BenchResult } from "../../src/bench/result.ts";

const result = (median: number, about: Partial<BenchResult> = {}): BenchResult => ({
  bench: "compare",
  case: "64 B",
  subject: "colo-agent",
  metric: "packets",
  unit: "packets/s",
  median,
  min: median * 0.9,
  max: median * 1.1,
  runs: 5,
  ...about,
});
const delay = (median: number, metric = "delay p50") => result(median, { metric, unit: "us" });

describe("ratios", () => {
  test.each([
    ["a rate that falls is slower", result(110), result(100), 1.1, "worse"],
    ["a rate that rises is faster", result(100), result(110), 1 / 1.1, "better"],
    ["a delay that rises is slower", delay(100), delay(106), 1.06, "worse"],
    ["a delay that falls is faster", delay(100), delay(94), 0.94, "better"],
    ["as far as the limit is even", delay(100), delay(105), 1.05, "even"],
    ["equal zeros are even", delay(0), delay(0), 1, "even"],
    ["a cost out of nothing is worse", delay(0), delay(1), undefined, "worse"],
    ["a rate that ends is worse", result(100), result(0), undefined, "worse"],
    ["a tail is shown only", delay(10, "delay p99.9"), delay(90, "delay p99.9"), 9, "shown"],
    ["a peer is shown only", result(9, { subject: "qemu" }), result(3, { subject: "qemu" }), 3, "shown"],
  ] as const)("%s", (_, older, newer, ratio, verdict) => {
    const [row] = compareRuns([[older]], [[newer]], 5);
    expect(row?.verdict).toBe(verdict);
    if (ratio === undefined) expect(row?.ratio).toBeUndefined();
    else expect(row?.ratio).toBeCloseTo(ratio, 10);
  });

  test("a commit's figure is the median of its runs' medians, its spread their range", () => {
    const [row] = compareRuns([[result(100)], [result(120)]], [[result(90)], [result(118)]], 5);
    expect(row?.older).toEqual({ median: 110, min: 100, max: 120, runs: 2 });
    expect(row?.newer).toEqual({ median: 104, min: 90, max: 118, runs: 2 });
    expect(row).toMatchObject({ verdict: "worse", overlap: true });
    const [apart] = compareRuns([[result(100)], [result(120)]], [[result(90)], [result(99)]], 5);
    expect(apart).toMatchObject({ verdict: "worse", overlap: false });
  });

  test("a figure that only one commit has: missing is a failure, new is none", () => {
    const rows = compareRuns([[result(1)]], [[result(1, { case: "256 B" })]], 5);
    expect(rows.map((row) => [row.case, row.verdict])).toEqual([
      ["64 B", "missing"],
      ["256 B", "new"],
    ]);
    expect(slowerRows(rows)).toEqual([rows[0]!]);
  });

  test("the limit is the caller's", () => {
    const verdictAt = (worseBy: number) => compareRuns([[delay(100)]], [[delay(112)]], worseBy)[0]?.verdict;
    expect([5, 11, 12.5, 20].map(verdictAt)).toEqual(["worse", "worse", "even", "even"]);
  });

  test("the table has both sides, the ratio, and the peers' beside it", () => {
    const peers = (value: number) => [
      result(value, { subject: "qemu" }),
      result(2 * value, { subject: "limit" }),
    ];
    const rows = compareRuns(
      [[result(120), ...peers(50), delay(10, "delay p99")]],
      [[result(100), ...peers(40), delay(30, "delay p99")]],
      5,
    );
    const cells = renderRatios(rows, "5b23c77", "HEAD")
      .split("\n")
      .filter((line) => line.startsWith("│"))
      .map((line) => line.split("│").map((cell) => cell.trim()))
      .map((line) => line.slice(1, -1));
    expect(cells).toEqual([
      ["case", "metric", "5b23c77", "HEAD", "ratio", "peers' ratio", ""],
      ["64 B", "packets, packets/s", "120", "100", "1.20", "qemu 1.25, limit 1.25", "worse"],
      ["", "delay p99, us", "10", "30", "3.00", "", ""],
    ]);
  });
});

describe("what a benchmark prints", () => {
  test("results, and what it could not measure", () => {
    const skipped = { bench: "path", subject: "qemu", skipped: "no QEMU" } as const;
    expect(parseBenchOutput(JSON.stringify([result(3), skipped]))).toEqual({
      results: [result(3)],
      skipped: [skipped],
    });
  });

  test.each([
    ["no JSON", "median 3", "the output of bench --json: not JSON: median 3"],
    ["no list", "{}", "the output of bench --json: Invalid input"],
    [
      "a median that is no number",
      JSON.stringify([{ ...result(1), median: "3" }]),
      "the output of bench --json: 0: Invalid input",
    ],
    [
      "a benchmark that does not exist",
      JSON.stringify([{ ...result(1), bench: "x" }]),
      "the output of bench --json: 0: Invalid input",
    ],
  ])("%s is an error", (_, text, message) => {
    expect(() => parseBenchOutput(text)).toThrow(message);
  });
});

test("old, new, new, old; cases that are not wanted are left out; skips are kept by side", async () => {
  const ran: string[] = [];
  const { lists, skipped } = await runInTurn({
    name: "compare",
    folders: { older: "/old", newer: "/new" },
    repetitions: 2,
    options: ["--quick"],
    wanted: (name) => name === "64 B",
    signal: new AbortController().signal,
    progress: () => undefined,
    run: async (folder, { name, options }) => {
      expect([name, options]).toEqual(["compare", ["--quick"]]);
      ran.push(folder);
      return {
        results: [result(ran.length), result(1, { case: "256 B" })],
        skipped: folder === "/new" ? [{ bench: "compare", subject: "qemu", skipped: "why" }] : [],
      };
    },
  });
  expect(ran).toEqual(["/old", "/new", "/new", "/old", "/old", "/new", "/new", "/old"]);
  const medians = (side: "older" | "newer") => lists[side].map((list) => list.map((one) => one.median));
  expect(medians("older")).toEqual([[1], [4], [5], [8]]);
  expect(medians("newer")).toEqual([[2], [3], [6], [7]]);
  expect([skipped.older.length, skipped.newer.length]).toEqual([0, 4]);
});

/** A repository with the same commands, in which `bench` prints what the test says. */
describe("an older commit", () => {
  const directory = mkdtempSync(join(tmpdir(), "colo-against-"));
  const repository = join(directory, "repository");
  const cacheBefore = process.env.XDG_CACHE_HOME;
  const signal = new AbortController().signal;

  const git = (...args: string[]): string => {
    const identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"];
    const { exitCode, stdout, stderr } = Bun.spawnSync(["git", "-C", repository, ...identity, ...args]);
    if (exitCode !== 0) throw new Error(`git ${args.join(" ")}: ${stderr.toString()}`);
    return stdout.toString().trim();
  };
  const script = (name: string, text: string): void => {
    const path = join(repository, "scripts", name);
    writeFileSync(path, `#!/bin/sh\n${text}\n`);
    chmodSync(path, 0o755);
  };
  const commit = (subject: string): string => {
    git("add", "--all");
    git("commit", "--quiet", "--message", subject);
    return git("rev-parse", "HEAD");
  };

  beforeAll(() => {
    process.env.XDG_CACHE_HOME = join(directory, "cache");
    mkdirSync(join(repository, "scripts"), { recursive: true });
    const { name, version } = { name: "measured", version: "1.0.0" };
    writeFileSync(join(repository, "package.json"), JSON.stringify({ name, version }));
    const lock = { name, version, lockfileVersion: 3, packages: { "": { name, version } } };
    writeFileSync(join(repository, "package-lock.json"), JSON.stringify(lock));
    git("init", "--quiet");
  });
  afterAll(() => {
    if (cacheBefore === undefined) delete process.env.XDG_CACHE_HOME;
    else process.env.XDG_CACHE_HOME = cacheBefore;
    rmSync(directory, { recursive: true, force: true });
  });

  test("is built in the cache, kept there, and run as its own command line", async () => {
    script(
      "build-bpf",
      'here=$(dirname "$0")\nmkdir "$here/../build" && echo built > "$here/../build/colo.bpf.o"',
    );
    script(
      "colo-agent",
      `[ "$2" = --help ] && { echo "  --json  for machines"; exit 0; }
echo "$@" >&2
echo '${JSON.stringify([result(7)])}'`,
    );
    const hash = commit("prints seven");
    script("colo-agent", "exit 1");
    commit("is broken");

    const found = await findCommit("HEAD~1", repository);
    expect(found).toEqual({ hash, subject: "prints seven" });
    const steps: string[] = [];
    const folder = await builtFolder(found, (step) => steps.push(step), repository);
    expect(folder).toBe(join(directory, "cache/colo-agent/against", hash));
    expect(existsSync(join(folder, "build/colo.bpf.o"))).toBe(true);
    expect(steps).toHaveLength(3);
    expect(await hasBenchOption(folder, "--only")).toBe(false);
    const said: string[] = [];
    const options = { name: "compare", options: ["--runs", "2"], signal } as const;
    const output = await runBenchOf(folder, { ...options, progress: (line) => said.push(line) });
    expect(output.results).toEqual([result(7)]);
    expect(said).toEqual(["bench compare --json --runs 2"]);

    expect(await builtFolder(found, (step) => steps.push(step), repository)).toBe(folder);
    expect(steps).toHaveLength(3);
  });

  test("a build that fails says why and leaves nothing that could be used", async () => {
    script("build-bpf", "echo 'no such header' >&2\nexit 3");
    const found = await findCommit(commit("does not compile"), repository);
    await expect(builtFolder(found, () => undefined, repository)).rejects.toThrow("no such header");
    const kept = readdirSync(join(directory, "cache/colo-agent/against"));
    expect(kept.filter((name) => name.startsWith(found.hash))).toEqual([]);
  });

  test("a run that fails quotes the end of what it said; one without benchmarks is refused", async () => {
    const folder = join(directory, "failing");
    mkdirSync(join(folder, "scripts"), { recursive: true });
    const program = join(folder, "scripts/colo-agent");
    writeFileSync(program, "#!/bin/sh\necho 'error: no tap' >&2\nexit 4\n");
    chmodSync(program, 0o755);
    const run = runBenchOf(folder, { name: "path", options: [], signal, progress: () => undefined });
    await expect(run).rejects.toThrow(/failed with status 4:\nerror: no tap/);
    await expect(hasBenchOption(folder, "--only")).rejects.toThrow("has no `bench --json` (error: no tap)");
  });

  test("a run that is interrupted ends", async () => {
    const folder = join(directory, "sleeping");
    mkdirSync(join(folder, "scripts"), { recursive: true });
    const program = join(folder, "scripts/colo-agent");
    writeFileSync(program, "#!/bin/sh\necho begun >&2\nexec sleep 1000\n");
    chmodSync(program, 0o755);
    const controller = new AbortController();
    const progress = () => controller.abort(new Error("interrupted"));
    const run = runBenchOf(folder, { name: "path", options: [], signal: controller.signal, progress });
    await expect(run).rejects.toThrow("interrupted");
  });

  test("no such commit, a shallow clone, a folder without git and changes are told apart", async () => {
    await expect(findCommit("5b23c78", repository)).rejects.toThrow("5b23c78 is not a commit of");
    await expect(findCommit("--all", repository)).rejects.toThrow("--all is not a commit of");
    const shallow = join(directory, "shallow");
    git("clone", "--quiet", "--depth", "1", `file://${repository}`, shallow);
    await expect(findCommit("HEAD~1", shallow)).rejects.toThrow("git fetch --unshallow");
    await expect(findCommit("HEAD", directory)).rejects.toThrow("is not a git checkout");
    expect(await uncommitted(shallow)).toEqual([]);
    writeFileSync(join(shallow, "new.ts"), "");
    expect(await uncommitted(shallow)).toEqual(["?? new.ts"]);
  });
});
