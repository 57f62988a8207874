/** Rules of src/failover, each broken on its own: the simulation has to notice. */

import type { Action } from "../../src/failover/actions.ts";
import { decide } from "../../src/failover/decide.ts";
import { type Answered, Driver } from "../../src/failover/driver.ts";
import type { Event, Request } from "../../src/failover/events.ts";
import type { State } from "../../src/failover/state.ts";
import { BLIND } from "./arbiter.ts";
import { type Decide, REAL, type Rules } from "./world.ts";

type Swap = Extract<Action, { type: "swap_record" }>;

/** Decides with an altered state and an altered event. */
function seeing(alter: (s: State, event: Event, nowMs: number) => [State, Event]): Decide {
  return (s, event, nowMs) => decide(...alter(s, event, nowMs), nowMs);
}

/** Decides, then alters the actions. */
function doing(alter: (actions: Action[], s: State, event: Event, nowMs: number) => Action[]): Decide {
  return (s, event, nowMs) => {
    const { state, actions } = decide(s, event, nowMs);
    return { state, actions: alter(actions, s, event, nowMs) };
  };
}

/** The record that the arbiter gives is not looked at closely. */
function reading(
  applies: (s: State) => boolean,
  alter: (s: State) => Partial<NonNullable<State["record"]>>,
): Decide {
  return seeing((s, event) => {
    if (event.type !== "arbiter" || event.result.kind === "unreachable" || !applies(s)) return [s, event];
    const { result } = event;
    if (result.record === undefined) return [s, event];
    const record = { ...result.record, ...alter(s) };
    return [s, { ...event, result: { ...result, record } as typeof result }];
  });
}

/** A write is not made but taken for made. */
function pretending(which: (before: State, after: State, swap: Swap) => boolean): Decide {
  return (s, event, nowMs) => {
    const first = decide(s, event, nowMs);
    const swap = first.actions.find((action) => action.type === "swap_record");
    if (swap === undefined || !which(s, first.state, swap)) return first;
    const record = { ...swap.record, revision: swap.expectedRevision };
    const second = decide(
      first.state,
      { type: "arbiter", call: swap.call, result: { kind: "swapped", record } },
      nowMs,
    );
    const others = first.actions.filter((action) => action !== swap);
    return { state: second.state, actions: [...others, ...second.actions] };
  };
}

/** The driver forgets what happens while it carries a decision out. */
class Deaf extends Driver {
  override tell(event: Event): void {
    if (!this.busy) super.tell(event);
  }
}

/** The driver waits for the next round. */
class Timeless extends Driver {
  protected override armDeadline(): void {}
}

/** The driver does not hand refusals on. */
class Agreeable extends Driver {
  override ask(request: Request, answered: Answered): void {
    super.ask(request, () => answered(undefined));
  }
}

const DECISIONS: Record<string, Decide> = {
  "heartbeats are answered after a takeover may have been written": (s, event, nowMs) =>
    event.type === "heartbeat" && s.phase === "taking_over" && event.generation === s.generation
      ? { state: s, actions: [{ type: "answer", request: event.request, refusal: undefined }] }
      : decide(s, event, nowMs),

  "the lease counts from the arrival of the answer": doing((actions, s, event, nowMs) =>
    actions.map((action) =>
      action.type === "extend_lease" && event.type === "heartbeat_answered"
        ? { ...action, untilMs: nowMs + s.settings.leaseMs }
        : action,
    ),
  ),

  "a takeover does not wait for the lease": seeing((s, event) => [
    s.phase === "standby" && s.claim !== undefined ? { ...s, givenUp: true } : s,
    event,
  ]),

  "no margin for clocks of different rates": seeing((s, event) => [
    { ...s, settings: { ...s.settings, marginMs: 0 } },
    event,
  ]),

  "a takeover ignores that the replica is out of date": reading(
    (s) => s.goal === "take",
    () => ({ replicaValid: true }),
  ),

  "a takeover ignores the generation": reading(
    (s) => s.goal === "take",
    (s) => ({ generation: s.generation }),
  ),

  "going alone is not recorded": pretending((_, after) => after.phase === "going_alone"),

  "a restarted holder writes nothing": pretending(
    (before, after) => before.phase === "starting" && after.goal === "invalid",
  ),

  "a restarted holder renews its lease before its replica has answered": doing((actions, s, event, nowMs) =>
    event.type === "round" && s.phase === "resuming"
      ? [...actions, { type: "extend_lease", untilMs: nowMs + s.settings.leaseMs }]
      : actions,
  ),

  "a secondary whose agent is back takes over without waiting for the lease": (s, event, nowMs) => {
    const decision = decide(s, event, nowMs);
    if (s.phase === "starting" && decision.state.phase === "standby")
      decision.state.lastAnswerMs = nowMs - 100_000;
    return decision;
  },

  "writes do not compare": doing((actions) =>
    actions.map((action) =>
      action.type === "swap_record" ? { ...action, expectedRevision: BLIND } : action,
    ),
  ),

  "a holder without QEMU writes that the replica is invalid": (s, event, nowMs) => {
    if (event.type !== "qemu_gone" || s.leaseFrom !== "peer" || s.shutdown !== undefined)
      return decide(s, event, nowMs);
    const first = decide(s, { type: "pair_broken", reason: event.reason }, nowMs);
    const second = decide(first.state, { type: "qemu_answers" }, nowMs);
    return { state: second.state, actions: [...first.actions, ...second.actions] };
  },

  "heartbeats for another generation are accepted": seeing((s, event) => [
    s,
    event.type === "heartbeat" ? { ...event, generation: s.generation } : event,
  ]),

  "the lease renews itself while the replica is valid": doing((actions, s, event, nowMs) =>
    event.type === "round" && s.leaseFrom === "peer"
      ? [...actions, { type: "extend_lease", untilMs: nowMs + s.settings.leaseMs }]
      : actions,
  ),

  "the replica is recorded as valid before it is complete": (s, event, nowMs) => {
    if (event.type !== "heartbeat_answered" || !event.accepted || s.protecting !== "copying")
      return decide(s, event, nowMs);
    const { state } = decide(s, { type: "primed", generation: s.generation }, event.sentMs);
    return decide(state, event, nowMs);
  },

  "who gives up does not block": doing((actions) =>
    actions.some((action) => action.type === "tell_peer" && action.what === "give_up")
      ? actions.filter((action) => action.type !== "block" && action.type !== "retire")
      : actions,
  ),

  "an answer of the arbiter to an older question counts": seeing((s, event) => [
    event.type === "arbiter" ? { ...s, call: event.call } : s,
    event,
  ]),

  "a restarted secondary does not renounce its replica": reading(
    (s) => s.phase === "starting",
    (s) => (s.goal === undefined && s.found !== "running" ? { replicaValid: false } : {}),
  ),

  "a fresh QEMU is taken for the VM": seeing((s, event) => [
    s,
    event.type === "started" ? { ...event, vm: "running" } : event,
  ]),

  "a replica that nobody makes any more waits for ever": (s, event, nowMs) =>
    s.phase === "incoming" &&
    (event.type === "control_closed" || event.type === "deadline" || event.type === "round")
      ? { state: { ...s, lastAnswerMs: nowMs }, actions: [] }
      : decide(s, event, nowMs),

  "a hand-over is never taken back": (s, event, nowMs) => {
    const decision = decide(s, event, nowMs);
    if (event.type === "handed_over") decision.state.phase = "stopped";
    return decision;
  },
};

const DRIVERS: Record<string, typeof Driver> = {
  "the driver drops what it is told while it carries out a decision": Deaf,
  "the driver arms no timer for the next deadline": Timeless,
  "the driver answers every request with yes": Agreeable,
};

export const MUTATIONS: Readonly<Record<string, Rules>> = {
  ...Object.fromEntries(
    Object.entries(DECISIONS).map(([name, broken]) => [name, { ...REAL, decide: broken }]),
  ),
  ...Object.fromEntries(Object.entries(DRIVERS).map(([name, broken]) => [name, { ...REAL, driver: broken }])),
};
