/** What a host does for a VM that has no QEMU there. */
import { describe, expect, test } from "bun:test";
import { type InstanceFacts, nextInstance } from "../../src/agent/next_instance.ts";

const RECORD = { term: 3, generation: 7, revision: 20 };
const record = (holder: string, replicaValid: boolean) => ({ ...RECORD, holder, replicaValid });

const FACTS: InstanceFacts = {
  self: "host-a",
  peer: "host-b",
  configuredRole: "primary",
  arbiter: true,
  restart: true,
  record: undefined,
  recordSeen: false,
  lastRun: "never",
  off: undefined,
  started: false,
};
const secondary = { configuredRole: "secondary" } as const;
const alone = { arbiter: false } as const;

const cases: [string, Partial<InstanceFacts>, string, RegExp?][] = [
  ["a new VM, configured primary", {}, "boot"],
  ["a new VM, configured secondary", secondary, "incoming"],
  ["the arbiter is silent", { record: "unknown" }, "ask_again"],
  ["the arbiter is silent for one that ran here", { record: "unknown", lastRun: "alone" }, "ask_again"],
  ["the peer runs it", { record: record("host-b", false) }, "incoming"],
  ["the peer runs it with a replica that was here", { record: record("host-b", true) }, "incoming"],
  [
    "the peer runs it, and it once ran here",
    { record: record("host-b", false), lastRun: "alone" },
    "incoming",
  ],
  ["the peer runs it, whatever is configured", { ...secondary, record: record("host-b", false) }, "incoming"],
  ["it ran here without a replica", { record: record("host-a", false), lastRun: "alone" }, "boot"],
  [
    "it ran here, though this host is configured secondary",
    { ...secondary, record: record("host-a", false), lastRun: "alone" },
    "boot",
  ],
  ["its replica is to take over", { record: record("host-a", true), lastRun: "with_replica" }, "incoming"],
  [
    "its replica is to take over, even without restarts",
    { record: record("host-a", true), restart: false },
    "incoming",
  ],
  [
    "no restarts, and it was lost here",
    { record: record("host-a", false), restart: false, lastRun: "alone" },
    "off",
    /host-b had no replica.*restart = false/,
  ],
  [
    "no restarts, but started by the administrator",
    { record: record("host-a", false), restart: false, lastRun: "alone", started: true },
    "boot",
  ],
  ["it was shut down", { record: record("host-a", false), off: "shut down" }, "off", /^shut down$/],
  ["it was shut down, and the arbiter is silent", { record: "unknown", off: "shut down" }, "off"],
  ["the record is lost", { recordSeen: true }, "off", /has lost this VM's record/],
  ["the record is lost, configured secondary", { ...secondary, recordSeen: true }, "off"],
  ["the record is lost, the administrator has decided", { recordSeen: true, started: true }, "boot"],
  ["no arbiter, new, primary", alone, "boot"],
  ["no arbiter, new, secondary", { ...alone, ...secondary }, "incoming"],
  ["no arbiter, it ran alone here", { ...alone, lastRun: "alone" }, "boot"],
  ["no arbiter, it was promoted here", { ...alone, ...secondary, lastRun: "alone" }, "boot"],
  ["no arbiter, no restarts", { ...alone, restart: false, lastRun: "alone" }, "off"],
  [
    "no arbiter, a replica may have been promoted",
    { ...alone, lastRun: "with_replica" },
    "off",
    /promote it/,
  ],
  ["no arbiter, the administrator knows", { ...alone, lastRun: "with_replica", started: true }, "boot"],
  ["no arbiter, a replica was here", { ...alone, lastRun: "as_replica" }, "incoming"],
];

describe("the next instance", () => {
  for (const [what, facts, type, reason] of cases) {
    test(`${what}: ${type}`, () => {
      const next = nextInstance({ ...FACTS, ...facts });
      expect(next.type).toBe(type as typeof next.type);
      if (reason !== undefined) expect(next.type === "off" ? next.reason : "").toMatch(reason);
    });
  }

  test("never boots here what the peer holds or a replica covers", () => {
    const booleans = [true, false];
    for (const configuredRole of ["primary", "secondary"] as const)
      for (const lastRun of ["never", "alone", "with_replica", "as_replica"] as const)
        for (const restart of booleans)
          for (const started of booleans)
            for (const covered of [record("host-b", true), record("host-b", false), record("host-a", true)]) {
              const facts = { ...FACTS, configuredRole, lastRun, restart, started, record: covered };
              expect(nextInstance(facts).type).toBe("incoming");
            }
  });
});
