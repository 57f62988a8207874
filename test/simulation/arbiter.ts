/** The arbiter: a linearizable, durable register with compare-and-swap, and an unreliable way there. */
import type { Action } from "../../src/failover/actions.ts";
import type { ArbiterResult } from "../../src/failover/events.ts";
import type { State } from "../../src/failover/state.ts";
import type { Agent } from "./agent.ts";
import { Violation } from "./violation.ts";
import type { World } from "./world.ts";

type VmRecord = NonNullable<State["record"]>;
type Request = Extract<Action, { type: "read_record" | "swap_record" }>;

const TIMEOUT_MS = 1_000;
/** `expectedRevision` of a write that does not compare (a mutation). */
export const BLIND = -1;

export class Arbiter {
  record: VmRecord | undefined;
  up = true;
  /** How much later than usual the next requests arrive, and their answers. */
  readonly late: { requestMs: number; answerMs: number }[] = [];
  readonly #holders = new Map<number, string>();

  constructor(private readonly world: World) {}

  ask(agent: Agent, request: Request, answer: (result: ArbiterResult) => void): void {
    const { world } = this;
    const { random, network } = world;
    if (!agent.state.settings.arbiter) throw new Error("there is no arbiter to ask");
    // A holder that gives its replica up has a VM of its own, at the time when it decides so.
    const runs = agent.host.qemu?.mode === "running";
    const { requestMs, answerMs } = this.late.shift() ?? { requestMs: 0, answerMs: 0 };
    let answered = false;
    const once = (result: ArbiterResult) => {
      if (answered) return;
      answered = true;
      world.queue.cancel(timeout);
      agent.post(() => answer(result));
    };
    const timeout = world.after(TIMEOUT_MS, () => once({ kind: "unreachable", reason: "no answer in time" }));
    let delayMs = random.chance(0.02) ? random.between(5, 3_000) : random.skewed(0.3, world.arbiterMs);
    delayMs += requestMs;
    if (random.chance(0.01)) return; // lost
    if (!network.arbiterUp(agent.host)) {
      // The kernel may send it again when the way is free, long after the agent has stopped waiting.
      if (random.chance(0.5)) return;
      delayMs += random.between(100, 4_000);
    }
    world.after(delayMs, () => {
      if (!network.arbiterUp(agent.host)) return;
      if (!this.up) {
        if (random.chance(0.5)) world.after(1, () => once({ kind: "unreachable", reason: "refused" }));
        return;
      }
      const result = this.#apply(agent, request, runs);
      if (random.chance(0.03)) {
        world.coverage.count("lost answers");
        return;
      }
      const backMs = random.chance(0.02) ? random.between(5, 1_500) : random.skewed(0.3, world.arbiterMs);
      world.after(answerMs + backMs, () => {
        if (network.arbiterUp(agent.host) && agent.host.up) once(result);
      });
    });
  }

  #apply(agent: Agent, request: Request, runs: boolean): ArbiterResult {
    const { record, world } = this;
    if (request.type === "read_record") return { kind: "record", record };
    const { expectedRevision } = request;
    if (expectedRevision !== BLIND && expectedRevision !== (record?.revision ?? 0)) {
      world.coverage.count("conflicts");
      return { kind: "conflict", record };
    }
    const next: VmRecord = { ...request.record, revision: (record?.revision ?? 0) + 1 };
    this.record = next;
    world.trace(
      "arbiter",
      () =>
        `${agent.id} writes revision ${next.revision}: term ${next.term}, generation ` +
        `${next.generation}, holder ${next.holder}, replica ${next.replicaValid ? "valid" : "invalid"}`,
    );
    const holder = this.#holders.get(next.term);
    if (holder !== undefined && holder !== next.holder)
      throw new Violation(4, `term ${next.term} has two holders`);
    if (record !== undefined && next.term < record.term)
      throw new Violation(4, `term ${next.term} after ${record.term}`);
    this.#holders.set(next.term, next.holder);
    world.recorded(agent, runs, record, next);
    return { kind: "swapped", record: next };
  }
}
