/**
 * Runs the decisions: one event after the other, each with all its actions, and a timer for the next
 * deadline. The agent and the simulation (test/simulation) run this same loop; they differ in clock, timer
 * and in what performs an action.
 */
import type { Action } from "./actions.ts";
import { nextDeadlineMs } from "./deadlines.ts";
import { decide } from "./decide.ts";
import type { Event, Request } from "./events.ts";
import { brokenInvariant, stopBroken } from "./invariants.ts";
import { initialState, type Settings, type State } from "./state.ts";

interface DriverParts {
  /** CLOCK_BOOTTIME in ms. */
  now(): number;
  /** Calls back after `ms` of that clock; returns what cancels it. */
  setTimer(ms: number, run: () => void): () => void;
  /** Carries out an action, without waiting for its end. Answers go to the asker. */
  perform(action: Exclude<Action, { type: "answer" }>): void;
  /** Called before the actions of the decision. */
  decided?(before: State, event: Event, after: State, actions: readonly Action[]): void;
  phaseChanged(before: State, after: State, event: Event): void;
  /**
   * Looked at before each event and each action. While it is false nothing happens; {@link Driver.proceed}
   * continues.
   */
  mayContinue(): boolean;
  /** For tests of the rules: a broken one. */
  decide?: typeof decide;
}

/** The answer to a request: undefined is yes, a sentence says why not. */
export type Answered = (refusal: string | undefined) => void;

export class Driver {
  #state: State;
  protected readonly parts: DriverParts;
  readonly #events: Event[] = [];
  readonly #actions: Action[] = [];
  readonly #asked = new Map<number, Answered>();
  #nextRequest = 1;
  #busy = false;
  #deadlineMs = Number.POSITIVE_INFINITY;
  #cancelDeadline: (() => void) | undefined;

  constructor(settings: Settings, parts: DriverParts) {
    this.parts = parts;
    this.#state = initialState(settings, parts.now());
  }

  get state(): Readonly<State> {
    return this.#state;
  }

  /** Events and actions are being worked off. */
  protected get busy(): boolean {
    return this.#busy;
  }

  /** Something has happened. What happens while a decision is carried out is decided after it. */
  tell(event: Event): void {
    this.#events.push(event);
    this.proceed();
  }

  /**
   * A request; `answered` is called once, at once or when what has to come before it is
   * done.
   */
  ask(request: Request, answered: Answered): void {
    const number = this.#nextRequest++;
    this.#asked.set(number, answered);
    this.tell({ ...request, request: number });
  }

  /** Works off what there is to do. */
  proceed(): void {
    if (this.#busy) return;
    this.#busy = true;
    try {
      while (this.parts.mayContinue()) {
        const action = this.#actions.shift();
        if (action !== undefined) {
          this.#perform(action);
          continue;
        }
        const event = this.#events.shift();
        if (event === undefined) break;
        this.#decide(event);
      }
    } finally {
      this.#busy = false;
    }
    this.armDeadline();
  }

  /** No deadline is noticed any more. Who still waits for an answer gets `refusal`. */
  close(refusal: string): void {
    this.#cancelDeadline?.();
    this.#deadlineMs = Number.POSITIVE_INFINITY;
    const open = [...this.#asked.values()];
    this.#asked.clear();
    for (const answered of open) answered(refusal);
  }

  #decide(event: Event): void {
    const { parts } = this;
    const nowMs = parts.now();
    const before = this.#state;
    let decision = (parts.decide ?? decide)(before, event, nowMs);
    const broken = brokenInvariant(decision.state);
    if (broken !== undefined) decision = stopBroken(decision.state, event, broken, nowMs);
    const { state, actions } = decision;
    // The state is set before any of its actions is carried out.
    this.#state = state;
    this.#actions.push(...actions);
    parts.decided?.(before, event, state, actions);
    if (state.phase !== before.phase) parts.phaseChanged(before, state, event);
  }

  #perform(action: Action): void {
    if (action.type !== "answer") {
      this.parts.perform(action);
      return;
    }
    const answered = this.#asked.get(action.request);
    this.#asked.delete(action.request);
    answered?.(action.refusal);
  }

  protected armDeadline(): void {
    const atMs = nextDeadlineMs(this.#state);
    if (atMs === this.#deadlineMs) return;
    this.#cancelDeadline?.();
    this.#cancelDeadline = undefined;
    this.#deadlineMs = atMs;
    if (!Number.isFinite(atMs)) return;
    const leftMs = Math.max(1, Math.ceil(atMs - this.parts.now()));
    this.#cancelDeadline = this.parts.setTimer(leftMs, () => {
      this.#cancelDeadline = undefined;
      this.#deadlineMs = Number.POSITIVE_INFINITY;
      this.tell({ type: "deadline" });
    });
  }
}
