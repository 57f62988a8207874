/**
 * The environment variables of the tests: which there are, what each does, and how a test reads one. Nothing
 * else in test/ looks for a variable whose name begins with COLO_. CONTRIBUTING.md has the same table
 * (tidy.test.ts).
 */

interface Variable {
  /** One phrase for CONTRIBUTING.md. */
  meaning: string;
  /** Used when the variable is not set. Without it, not being set means something by itself. */
  usual?: string;
  /** The same in the other two forms of a run; as usual where it is not given. */
  quick?: string;
  long?: string;
}

export const VARIABLES = {
  COLO_FORM: {
    meaning: "`quick` or `long`: the form of a run, as `scripts/test --quick` and `--long` set it",
  },
  COLO_CAPTURE_SEED: { meaning: "the one seed of test/capture/random.test.ts and hostile.test.ts to run" },
  COLO_COMPARE_RUNS: { meaning: "seeds of test/compare/property.test.ts", usual: "200", long: "5000" },
  COLO_COMPARE_SEED: { meaning: "the one seed of test/compare/property.test.ts to run" },
  COLO_DIFF_FIRST: { meaning: "the first seed of test/differential", usual: "1" },
  COLO_DIFF_SEED: { meaning: "the one seed of test/differential to run" },
  COLO_DIFF_SEQUENCES: { meaning: "seeds of each test of test/differential", usual: "2500", long: "25000" },
  COLO_DIFF_VERBOSE: { meaning: "1: print how often each difference occurred" },
  COLO_FAULT_CYCLES: {
    meaning: "cycles of test/e2e/faults.test.ts; 0: each fault at least once",
    usual: "0",
    long: "300",
  },
  COLO_FAULT_FIGURES: { meaning: "file for the figures of all fault cycles, as JSON" },
  COLO_FAULT_ONLY: { meaning: "regular expression: only faults with such a name" },
  COLO_FAULT_SEED: { meaning: "another order and other moments of the faults", usual: "1" },
  COLO_FUZZ_SECONDS: { meaning: "seconds of test/compare/fuzz.test.ts", usual: "10", long: "600" },
  COLO_FUZZ_SEED: {
    meaning: "the first seed of test/compare/fuzz.test.ts; the only one unless COLO_FUZZ_SECONDS is set",
  },
  COLO_LIFE_ROUNDS: { meaning: "rounds of test/e2e/lives.test.ts", usual: "10", long: "100" },
  COLO_PAIRS_SEED: { meaning: "the one seed of test/compare/pairs.test.ts to run" },
  COLO_PAIRS_SEEDS: { meaning: "seeds of test/compare/pairs.test.ts", usual: "150", long: "3000" },
  COLO_RELEASE_SEED: { meaning: "the seed of test/datapath/release_queue.test.ts" },
  COLO_SIMULATION_LINES: { meaning: "lines of the trace of a simulated run", usual: "60" },
  COLO_SIMULATION_SEED: { meaning: "the one seed of test/simulation to run, with its trace" },
  COLO_SIMULATION_SEEDS: {
    meaning: "seeds of test/simulation: a count, or the first and the last as 10001-50000",
    quick: "1000",
    usual: "10000",
    long: "100000",
  },
  COLO_SOAK_SECONDS: { meaning: "seconds of test/e2e/soak.test.ts", usual: "45", long: "600" },
  COLO_STACK_FIRST: { meaning: "the first seed of test/stacks", usual: "1" },
  COLO_STACK_RUNS: { meaning: "seeds of test/stacks", usual: "200", long: "2000" },
  COLO_STACK_SEED: { meaning: "the one seed of test/stacks to run" },
  COLO_UPDATE_GOLDEN: { meaning: "1: write the golden files instead of comparing with them" },
  COLO_WORKLOAD_SECONDS: {
    meaning: "seconds of traffic in each protected phase of test/workload",
    usual: "5",
    long: "60",
  },
} as const satisfies Record<string, Variable>;

type VariableName = keyof typeof VARIABLES;

/** The value set in the environment, if there is one. */
export function given(name: VariableName): string | undefined {
  const text = process.env[name];
  return text === "" ? undefined : text;
}

/** The value set in the environment, else the one for this form of the run. */
export function text(name: VariableName): string | undefined {
  const variable: Variable = VARIABLES[name];
  const form = given("COLO_FORM") ?? "usual";
  if (form !== "quick" && form !== "usual" && form !== "long")
    throw new Error(`COLO_FORM=${form}: quick or long`);
  return given(name) ?? variable[form] ?? variable.usual;
}

/** The seed that is set, else one by chance; 1 where CI is set, so that its runs can be compared. */
export function seedOf(name: VariableName): number {
  if (given(name) !== undefined) return count(name);
  return process.env.CI ? 1 : Math.floor(Math.random() * 2 ** 31);
}

/** `text` as a whole number, 0 or more. @throws when it is none: a mistyped count must not run nothing */
export function count(name: VariableName): number {
  const value = text(name) ?? "";
  if (!/^\d+$/.test(value)) throw new Error(`${name}=${value}: give a whole number`);
  return Number(value);
}
