/**
 * The failover protocol, searched state by state (model/README.md): no rule is broken within the bounds, and
 * each rule that is left out is noticed.
 */
import { beforeAll, describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { MODEL, type Search, search, stepsThatHappen } from "./spin.ts";

/** The defines of each search that must find an error, by the rule that it leaves out. */
const MUTATIONS: Record<string, string[]> = {
  "the margin": ["MUTATE_NO_MARGIN"],
  "a clock drift that the margin covers": ["MUTATE_DRIFT"],
  "no answer once the takeover may be under way": ["MUTATE_ANSWER_WHEN_COMMITTED"],
  "no answer counts that was asked for before priming was over": ["MUTATE_EARLY_ANSWER"],
  "the lease counts from the time of sending": ["MUTATE_LEASE_FROM_RECEIPT"],
  "a takeover waits for the lease": ["MUTATE_LEASE_NOT_WAITED_FOR"],
  "only a valid replica takes over": ["MUTATE_VALID_UNCHECKED"],
  // A second line of defence: without late requests no record can be valid for another generation than the
  // standby's.
  "only a replica of the recorded generation takes over": ["MUTATE_GENERATION_UNCHECKED", "LATE_ENTER"],
  "the record says invalid before the holder goes on alone": ["MUTATE_ALONE_UNRECORDED"],
  "invalid is written even where it stands already": ["MUTATE_INVALID_KEPT"],
  "a restarted holder writes the record again": ["MUTATE_RESTART_UNRECORDED"],
  "a restarted holder that resumes writes the record again too": ["MUTATE_RESUME_UNRECORDED", "RECOVERY"],
  "nobody goes on who has given up": ["MUTATE_RESUME_AFTER_GIVE_UP"],
  "a restarted holder has no lease before its replica has answered": ["MUTATE_RESUME_UNANSWERED"],
  "a secondary's agent that is back counts from then": ["MUTATE_REST_COUNTS"],
  "a restarted secondary disowns its replica": ["MUTATE_RESTART_UNDISOWNED"],
  "a QEMU started afresh is not taken for the VM": ["MUTATE_FRESH_QEMU_ADOPTED"],
  "the record forbids a takeover before the VM is booted from disks": ["MUTATE_BOOT_UNRECORDED"],
  "a request dies with the agent it was sent to": ["MUTATE_ENTER_TWICE"],
  "who gives up has blocked itself": ["MUTATE_GIVE_UP_UNBLOCKED"],
  "writes are compare-and-swaps": ["MUTATE_BLIND_WRITE"],
  "a refused write is tried again": ["MUTATE_NO_RETRY", "RECOVERY"],
};

const SEARCH_TIMEOUT_MS = 300_000;
const CONCURRENT_SEARCHES = 2;

const source = readFileSync(MODEL, "utf8");

function expectNoError(result: Search): void {
  expect(result.output).toContain("errors: 0");
  expect(result.exhaustive).toBe(true);
  expect(result.states).toBeGreaterThan(100_000);
}

describe("the protocol", () => {
  test(
    "breaks no rule",
    async () => expectNoError(await search(["MAX_GENERATION=3", "MAX_TERM=3"])),
    SEARCH_TIMEOUT_MS,
  );

  test(
    "breaks no rule when requests outlive agents",
    async () => expectNoError(await search(["LATE_ENTER"])),
    SEARCH_TIMEOUT_MS,
  );

  test(
    "gets from every state back to a protected VM",
    async () => expectNoError(await search(["RECOVERY"])),
    SEARCH_TIMEOUT_MS,
  );

  test(
    "takes every step that the model knows",
    async () => {
      const steps = [...source.matchAll(/:: STEP\((\w+)\)/g)].map(([, step]) => step!);
      const withoutLateRequests = steps.filter((step) => step !== "follow_late");
      expect(steps.length).toBeGreaterThan(20);
      const happening = await stepsThatHappen(["MAX_GENERATION=1", "MAX_TERM=2"]);
      expect([...happening].sort()).toEqual(withoutLateRequests.sort());
    },
    SEARCH_TIMEOUT_MS,
  );
});

describe("an error is found without the rule that", () => {
  const results = new Map<string, Promise<Search>>();

  beforeAll(() => {
    const waiting = Object.entries(MUTATIONS).map(([rule, defines]) => {
      const { promise, resolve, reject } = Promise.withResolvers<Search>();
      promise.catch(() => undefined); // its own test reports it
      results.set(rule, promise);
      return () => search(defines).then(resolve, reject);
    });
    const worker = async () => {
      for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) await next();
    };
    for (let i = 0; i < CONCURRENT_SEARCHES; i++) void worker();
  });

  test("every mutation of the model is in the list", () => {
    const inModel = new Set([...source.matchAll(/MUTATE_\w+/g)].map(([name]) => name));
    inModel.delete("MUTATE_"); // the comment that explains them
    const tried = Object.values(MUTATIONS).map(([mutation]) => mutation!);
    expect(tried.sort()).toEqual([...inModel].sort());
  });

  for (const rule of Object.keys(MUTATIONS)) {
    test(
      rule,
      async () => {
        const { output, errors } = await results.get(rule)!;
        expect(errors).toBe(1);
        expect(output).toContain("assertion violated");
      },
      SEARCH_TIMEOUT_MS,
    );
  }
});
