/** The event loop around the decisions, with a clock that stands still. */
import { describe, expect, test } from "bun:test";
import type { Action } from "../../src/failover/actions.ts";
import { decide } from "../../src/failover/decide.ts";
import { Driver } from "../../src/failover/driver.ts";
import type { Event } from "../../src/failover/events.ts";
import { SETTINGS } from "./settings.ts";

const RECORD = { revision: 1, term: 1, generation: 0, holder: "a", replicaValid: false };

interface Rig {
  driver: Driver;
  nowMs: number;
  running: boolean;
  performed: Action["type"][];
  /** In the order in which they happen. */
  decided: Event["type"][];
  timers: { ms: number; run: () => void; cancelled: boolean }[];
  /** Done with each action, beside noting it. */
  onAction: (action: Action) => void;
}

function rig(settings = SETTINGS, rules = decide): Rig {
  const made: Omit<Rig, "driver"> = {
    nowMs: 10_000,
    running: true,
    performed: [],
    decided: [],
    timers: [],
    onAction: () => undefined,
  };
  const all = made as Rig;
  all.driver = new Driver(settings, {
    now: () => all.nowMs,
    setTimer: (ms, run) => {
      const timer = { ms, run, cancelled: false };
      all.timers.push(timer);
      return () => {
        timer.cancelled = true;
      };
    },
    perform: (action) => {
      all.performed.push(action.type);
      all.onAction(action);
    },
    decided: (_, event) => all.decided.push(event.type),
    phaseChanged: () => undefined,
    mayContinue: () => all.running,
    decide: rules,
  });
  return all;
}

const started: Event = { type: "started", vm: "running" };

/** The holder's agent was restarted: it reads the record, writes it again, runs the VM alone. */
function runAlone(all: Rig): void {
  all.onAction = (action) => {
    if (action.type === "read_record")
      all.driver.tell({ type: "arbiter", call: action.call, result: { kind: "record", record: RECORD } });
    else if (action.type === "swap_record")
      all.driver.tell({ type: "arbiter", call: action.call, result: { kind: "swapped", record: RECORD } });
    else if (action.type === "run_alone") all.driver.tell({ type: "alone" });
  };
  all.driver.tell(started);
}

describe("events", () => {
  test("that happen while a decision is carried out are decided after it, none is lost", () => {
    const all = rig();
    runAlone(all);
    expect(all.driver.state.phase).toBe("alone");
    expect(all.performed).toEqual(["read_record", "swap_record", "extend_lease", "run_alone"]);
    expect(all.decided).toEqual(["started", "arbiter", "arbiter", "alone"]);
  });

  test("find the state that belongs to the actions under way", () => {
    const all = rig();
    const seen: (number | undefined)[] = [];
    all.onAction = () => seen.push(all.driver.state.call);
    all.driver.tell(started);
    expect(seen).toEqual([1]);
  });

  test("wait while the process stands still between two actions; then the rest is carried out", () => {
    const all = rig();
    runAlone(all);
    all.performed.length = 0;
    all.onAction = () => {
      all.running = false;
    };
    all.driver.tell({ type: "qemu_gone", reason: "" });
    all.driver.tell({ type: "round" });
    expect(all.performed).toEqual(["block"]);
    all.onAction = () => undefined;
    all.running = true;
    all.driver.proceed();
    expect(all.performed).toEqual(["block", "end_protection"]);
    expect(all.decided.at(-1)).toBe("round");
  });
});

describe("the timer", () => {
  const live = ({ timers }: Rig) => timers.filter(({ cancelled }) => !cancelled);

  test("is set for the next deadline, and again when that moves", () => {
    const all = rig();
    runAlone(all);
    expect(live(all)).toEqual([]);
    all.driver.tell({ type: "peer_seen", path: "control", ready: true, uplink: true });
    const [protect] = live(all);
    expect(protect?.ms).toBe(1); // at once: protection was never tried
    all.driver.tell({ type: "round" });
    expect(all.performed).toContain("protect");
    expect(live(all).map(({ ms }) => ms)).toEqual([SETTINGS.timeoutMs]);
    all.nowMs += 100;
    all.driver.tell({ type: "peer_seen", path: "control", ready: true, uplink: true });
    expect(live(all).map(({ ms }) => ms)).toEqual([SETTINGS.timeoutMs]);
  });

  test("tells the deadline", () => {
    const all = rig();
    runAlone(all);
    all.driver.tell({ type: "peer_seen", path: "control", ready: true, uplink: true });
    live(all)[0]?.run();
    expect(all.decided.at(-1)).toBe("deadline");
    expect(all.driver.state.phase).toBe("protecting");
  });

  test("is gone when the agent ends", () => {
    const all = rig();
    runAlone(all);
    all.driver.tell({ type: "peer_seen", path: "control", ready: true, uplink: true });
    all.driver.close("the agent ends");
    expect(live(all)).toEqual([]);
  });
});

describe("requests", () => {
  test("move the deadline like any other event: a heartbeat puts off the claim", () => {
    const all = rig();
    all.onAction = (action) => {
      if (action.type !== "read_record") return;
      const record = { ...RECORD, holder: "b" };
      all.driver.tell({ type: "arbiter", call: action.call, result: { kind: "record", record } });
    };
    all.driver.tell({ type: "started", vm: "incoming" });
    for (const type of ["prepare", "entered"] as const)
      all.driver.ask({ type, generation: 1 }, (refusal) => expect(refusal).toBeUndefined());
    expect(all.driver.state.phase).toBe("standby");
    const set = all.timers.length;
    all.nowMs += 100;
    all.driver.ask({ type: "heartbeat", path: "control", generation: 1 }, (refusal) =>
      expect(refusal).toBeUndefined(),
    );
    const [timer, ...others] = all.timers.slice(set);
    expect([timer?.ms, timer?.cancelled, others]).toEqual([SETTINGS.timeoutMs, false, []]);
  });

  test("are answered in the decision, or when what comes first is done", () => {
    const all = rig();
    runAlone(all);
    const answers: (string | undefined)[] = [];
    all.driver.ask({ type: "fail_over_wanted", reason: "" }, (refusal) => answers.push(refusal));
    expect(answers).toEqual([expect.stringContaining("only a protected VM")]);
    all.driver.ask({ type: "unprotect_wanted", untilMs: Number.POSITIVE_INFINITY }, (refusal) =>
      answers.push(refusal),
    );
    expect(answers[1]).toBeUndefined();
    expect(answers).toHaveLength(2);
  });

  test("that are open when the agent ends get a refusal, once", () => {
    const all = rig();
    const answers: (string | undefined)[] = [];
    all.running = false;
    all.driver.ask({ type: "restart_wanted" }, (refusal) => answers.push(refusal));
    expect(answers).toEqual([]);
    all.driver.close("the agent ends");
    all.driver.close("the agent ends");
    expect(answers).toEqual(["the agent ends"]);
  });
});

describe("a decision that breaks an invariant", () => {
  /** Forgets at the given event that answers must not prolong the lease any more. */
  const broken: typeof decide = (before, event, nowMs) => {
    const decision = decide(before, event, nowMs);
    if (event.type === "uplink" || event.type === "protect_wanted") decision.state.leaseFrom = "peer";
    return decision;
  };

  test("blocks the output of that VM and leaves it to an administrator", () => {
    const all = rig(SETTINGS, broken);
    runAlone(all);
    all.performed.length = 0;
    all.driver.tell({ type: "uplink", up: false });
    expect(all.performed).toEqual(["block", "end_protection"]);
    expect(all.driver.state).toMatchObject({
      phase: "stopped",
      reason: "invariant the lease is prolonged as the phase allows",
      leaseFrom: "none",
      needsAdministrator: true,
    });
    // Nothing starts it again by itself.
    all.performed.length = 0;
    for (const event of [{ type: "round" }, { type: "deadline" }, { type: "alone" }] as const)
      all.driver.tell(event);
    expect([all.driver.state.phase, all.performed]).toEqual(["stopped", []]);
  });

  test("refuses the request that it was about", () => {
    const all = rig(SETTINGS, broken);
    runAlone(all);
    let answer: string | undefined;
    all.driver.ask({ type: "protect_wanted" }, (refusal) => {
      answer = refusal;
    });
    expect(answer).toStartWith("invariant ");
  });

  test("leaves other VMs alone", () => {
    const [one, other] = [rig(SETTINGS, broken), rig(SETTINGS, broken)];
    runAlone(one);
    runAlone(other);
    one.driver.tell({ type: "uplink", up: false });
    other.performed.length = 0;
    other.driver.tell({ type: "round" });
    expect([other.driver.state.phase, other.performed]).toEqual(["alone", ["extend_lease"]]);
  });
});
