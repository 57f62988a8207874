/**
 * The decisions of src/failover/decide.ts in a simulated world with a simulated clock: hosts, links, an
 * arbiter and QEMUs that fail at the worst moments. All chance comes from one number, so a run can be had
 * again:
 *
 * COLO_SIMULATION_SEED=123 bun test test/simulation        one run, with its trace (COLO_SIMULATION_LINES of
 * it) COLO_SIMULATION_SEEDS=10001-50000 bun test test/simulation    other runs; a single number counts from 1
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { count, given, text } from "../variables.ts";
import { Coverage } from "./coverage.ts";
import { ACTIONS, FAULTS, PHASES } from "./faults.ts";
import { MUTATIONS } from "./mutations.ts";
import { Violation } from "./violation.ts";
import { REAL, World } from "./world.ts";

const LINES = count("COLO_SIMULATION_LINES");
/** Seeds from 1 on that see all that can happen. */
const COVERING_SEEDS = 10_000;
const MUTATION_SEEDS_MAX = 4_000;
/** Copies of the VM may all be destroyed by faults; runs in which that happens show little else. */
const LOST_SHARE_MAX = 0.1;
const TIMEOUT_MS = 1_800_000;

/** The same run again, told. */
function replay(seed: number): { text: string; violation: Violation | undefined } {
  const world = new World(seed, new Coverage(), REAL, true);
  let end: string;
  let violation: Violation | undefined;
  try {
    end = `The run ends: ${world.run()}.`;
  } catch (error) {
    if (!(error instanceof Violation)) throw error;
    violation = error;
    end = error.message;
  }
  const lines = world.lines
    .slice(-LINES)
    .map(({ atMs, who, text }) => `${atMs.toFixed(1).padStart(9)} ${who.padEnd(10)} ${text}`);
  const again = `COLO_SIMULATION_SEED=${seed} COLO_SIMULATION_LINES=1000 bun test test/simulation`;
  return {
    text: [`Seed ${seed}, step ${world.steps}`, ...lines, end, `Replay: ${again}`].join("\n"),
    violation,
  };
}

function seedsWanted(): { from: number; to: number; all: boolean } {
  const seeds = text("COLO_SIMULATION_SEEDS") ?? "";
  const [, from, to] = /^(?:(\d+)-)?(\d+)$/.exec(seeds) ?? [];
  if (to === undefined)
    throw new Error(`COLO_SIMULATION_SEEDS=${seeds}: give a count, or the first and last as 1-2000`);
  return { from: Number(from ?? 1), to: Number(to), all: from === undefined && Number(to) >= COVERING_SEEDS };
}

const single = given("COLO_SIMULATION_SEED") === undefined ? undefined : count("COLO_SIMULATION_SEED");

/** Instead of all runs, that one. */
if (single !== undefined) {
  test("one run", () => {
    const { text, violation } = replay(single);
    console.log(text);
    expect(violation).toBeUndefined();
  });
} else {
  describe("simulation", allRuns);
  describe("a broken rule is noticed", brokenRules);
}

function allRuns(): void {
  const { from, to, all } = seedsWanted();
  const coverage = new Coverage();

  test(
    `no rule is broken in the runs of seeds ${from} to ${to}`,
    () => {
      for (let seed = from; seed <= to; seed++) {
        try {
          coverage.count(`outcome ${new World(seed, coverage).run()}`);
        } catch (error) {
          if (!(error instanceof Violation))
            throw new Error(`seed ${seed}: ${String(error)}`, { cause: error });
          throw new Error(`a rule is broken\n${replay(seed).text}`);
        }
      }
      const runs = to - from + 1;
      const share = (what: string) => `${((100 * coverage.of(`outcome ${what}`)) / runs).toFixed(1)} %`;
      console.log(
        `${runs} runs: protected again ${share("protected")}, both copies destroyed ${share("lost")}, ` +
          `shut down ${share("shut down")}, without an arbiter ${share("no arbiter")}; ` +
          `${coverage.of("takeovers")} takeovers, ${coverage.of("phase protected")} protections, ` +
          `${coverage.of("conflicts")} conflicts, ${coverage.of("lost answers")} lost answers, ` +
          `${coverage.of("outputs seen")} outputs`,
      );
    },
    TIMEOUT_MS,
  );

  test.if(all)("the runs have been everywhere", () => {
    const wanted = [
      ...PHASES.filter((phase) => phase !== "starting").map((phase) => `phase ${phase}`),
      ...PHASES.map((phase) => `fault in ${phase}`),
      ...Object.keys(FAULTS).map((name) => `fault ${name}`),
      ...ACTIONS,
      ...["answer heartbeat", "action extend_lease", "action block", "action end_protection"],
      "takeovers",
      "protections that went on",
      "replicas that were followed again",
      "restarts that were agreed",
      "conflicts",
      "lost answers",
      "fencing succeeded",
      "fencing failed",
      "takeovers written by agents that had ended",
      "outputs dropped by the kernel",
      "outcome shut down",
      "outcome no arbiter",
    ];
    expect(wanted.filter((what) => coverage.of(what) === 0)).toEqual([]);
    expect(coverage.of("outcome lost") / (to - from + 1)).toBeLessThan(LOST_SHARE_MAX);
  });

  test.if(all)("docs/failover.md names every change of phase, and each of them has happened", () => {
    const documented = transitionsOfDocs();
    const seen = [...coverage.counts.keys()].filter((key) => key.split(" > ").length === 3);
    const known = new Set(documented.flatMap(({ keys }) => keys));
    expect(seen.filter((key) => !known.has(key))).toEqual([]);
    const missed = documented.filter(({ keys }) => keys.every((key) => coverage.of(key) === 0));
    expect(missed.map(({ name }) => name)).toEqual([]);
  });

  test("a run can be had again, step by step", () => {
    for (const seed of [3, 14, 159]) expect(replay(seed).text).toBe(replay(seed).text);
  });
}

function brokenRules(): void {
  test.each(Object.entries(MUTATIONS))(
    "%s",
    (_, broken) => {
      let noticed: Violation | undefined;
      for (let seed = 1; seed <= MUTATION_SEEDS_MAX && noticed === undefined; seed++) {
        try {
          new World(seed, new Coverage(), broken).run();
        } catch (error) {
          if (!(error instanceof Violation)) throw error;
          noticed = error;
        }
      }
      expect(noticed).toBeInstanceOf(Violation);
    },
    TIMEOUT_MS,
  );
}

/** The rows of the table under "Changes of phase": name | from | on | to | ... */
function transitionsOfDocs(): { name: string; keys: string[] }[] {
  const text = readFileSync(join(import.meta.dir, "../../docs/failover.md"), "utf8");
  const section = text.split(/^## /m).find((part) => part.startsWith("Changes of phase"));
  if (section === undefined) throw new Error('docs/failover.md has no section "Changes of phase"');
  const words = (cell: string) => cell.match(/[a-z_]+/g) ?? [];
  return section
    .split("\n")
    .filter((line) => line.startsWith("| `"))
    .map((line) => {
      const [, name = "", from = "", on = "", to = ""] = line.split("|");
      const keys = words(from).flatMap((a) =>
        words(on).flatMap((e) => words(to).map((b) => `${a} > ${e} > ${b}`)),
      );
      return { name: name.trim(), keys };
    });
}
