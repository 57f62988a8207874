/** What the administrator asks for, and why it cannot be. */

import type { Event } from "./events.ts";
import { goAlone, handOver } from "./holder.ts";
import { promoteByHand } from "./replica.ts";
import { awaitsTakeover, isHolder, type State } from "./state.ts";
import { answer, type Step, want } from "./step.ts";

type Command = Extract<
  Event,
  { type: "fail_over_wanted" | "unprotect_wanted" | "protect_wanted" | "promote_wanted" | "boot_wanted" }
>;

export function command(step: Step, event: Command): void {
  const refusal = refusalOf(step, event.type);
  answer(step, event.request, refusal);
  if (refusal !== undefined) return;
  const { s, now } = step;
  switch (event.type) {
    case "fail_over_wanted":
      handOver(step, event.reason);
      break;
    case "unprotect_wanted":
      s.unprotectedUntilMs = event.untilMs;
      goAlone(step, "protection was ended by the administrator");
      break;
    case "protect_wanted":
      s.unprotectedUntilMs = Number.NEGATIVE_INFINITY;
      s.protectAtMs = now;
      break;
    case "promote_wanted":
      promoteByHand(step);
      break;
    case "boot_wanted":
      want(step, "boot");
      break;
  }
}

function refusalOf({ s, now }: Step, command: Command["type"]): string | undefined {
  switch (command) {
    case "fail_over_wanted":
      if (!s.settings.arbiter) return "a hand-over needs an arbiter; configure one";
      if (s.phase === "protected") return undefined;
      return (
        `only a protected VM can be handed over, and this host says "${s.phase}"; ask the agent of ` +
        "the host that runs it"
      );
    case "promote_wanted":
      if (s.settings.arbiter) return "the arbiter decides who takes over; promote is for a pair without one";
      if (s.phase === "standby") return undefined;
      return `there is no complete replica here, this host says "${s.phase}"`;
    case "boot_wanted":
      if (awaitsTakeover(s) && s.goal === undefined && now - s.sinceMs >= s.settings.takeoverPatienceMs)
        return undefined;
      return `this host says "${s.phase}"; there is nothing to start`;
    case "unprotect_wanted":
      return notHere(s);
    case "protect_wanted":
      return isHolder(s) ? s.unsuitable : notHere(s);
  }
}

function notHere(s: State): string | undefined {
  if (isHolder(s)) return undefined;
  return `this host does not run it ("${s.phase}"); ask the agent of ${s.settings.peer}`;
}
