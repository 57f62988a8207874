/** Events and actions as lines of a trace. */
import type { Action } from "../../src/failover/actions.ts";
import type { Event } from "../../src/failover/events.ts";

/** What happens all the time and says nothing: it would crowd a trace. */
export function isRoutine(event: Event, actions: readonly Action[]): boolean {
  switch (event.type) {
    case "peer_seen":
      return actions.length === 0;
    case "heartbeat":
      return actions.length === 1;
    case "round":
    case "deadline":
    case "heartbeat_answered":
      return actions.every((action) => action.type === "extend_lease");
    default:
      return false;
  }
}

export function showEvent(event: Event): string {
  if (event.type === "arbiter") return `arbiter ${event.result.kind} (call ${event.call})`;
  const { type, ...rest } = event;
  const details = Object.entries(rest).map(([key, value]) => `${key} ${format(value)}`);
  return [type, ...details].join(", ");
}

export function showActions(actions: readonly Action[]): string {
  const shown = actions.map(({ type, ...rest }) => {
    const details = Object.values(rest).filter((value) => typeof value !== "object");
    return details.length === 0 ? type : `${type}(${details.map(format).join(", ")})`;
  });
  return shown.length === 0 ? "" : ` -> ${shown.join(", ")}`;
}

function format(value: unknown): string {
  return typeof value === "number" ? String(Math.round(value * 10) / 10) : String(value);
}
