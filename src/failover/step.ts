/** One decision under way: a copy of the state that the transitions change, and the actions they ask for. */
import type { Action } from "./actions.ts";
import type { Goal, Phase, State } from "./state.ts";

export interface Step {
  readonly s: State;
  /** CLOCK_BOOTTIME in ms. */
  readonly now: number;
  readonly actions: Action[];
  /**
   * `s.record` is as recent as it has to be for the goal: a write may be tried on top of it without another
   * read.
   */
  informed: boolean;
}

export function begin(before: State, now: number): Step {
  const s = { ...before, heardMs: { ...before.heardMs }, claim: before.claim && { ...before.claim } };
  return { s, now, actions: [], informed: false };
}

export function enter({ s, now }: Step, phase: Phase, reason?: string): void {
  s.phase = phase;
  s.sinceMs = now;
  s.reason = reason;
}

/** What only a phase has that does something. */
const IDLE = {
  leaseFrom: "none",
  protecting: undefined,
  goingAlone: undefined,
  retiredMs: undefined,
  claim: undefined,
  committed: false,
  succeeding: false,
  succeededAtMs: undefined,
  restarting: false,
  goal: undefined,
  call: undefined,
} as const satisfies Partial<State>;

/** This host stops for the VM: nothing of it leaves any more, and nothing is under way. */
export function stop(step: Step, reason: string): void {
  Object.assign(step.s, IDLE);
  step.actions.push({ type: "block", reason });
  enter(step, "stopped", reason);
}

/** Sets what is to stand in the arbiter's record. The pump at the end of the step sees to it. */
export function want(step: Step, goal: Goal): void {
  const { s, now } = step;
  s.goal = goal;
  s.call = undefined;
  s.retryAtMs = now;
  // The last writer knows the revision. One that is wrong learns it from the conflict. A takeover always
  // reads first.
  step.informed = goal === "first" || (goal !== "take" && s.record !== undefined);
}

/** Answers a request: yes, or no and why. */
export function answer({ actions }: Step, request: number, refusal?: string): void {
  actions.push({ type: "answer", request, refusal });
}

/** This host's QEMU has a VM, not a replica of one. */
export function hasVm({ found }: State): boolean {
  return found === "running" || found === "protected";
}

export function retryProtectionLater({ s, now }: Step): void {
  s.protectAtMs = now + s.settings.protectRetryMs;
}
