/** A request to the decisions, as a promise. */
import type { Answered } from "../failover/driver.ts";
import type { Request } from "../failover/events.ts";

interface Asked {
  readonly config: { readonly name: string };
  ask(request: Request, answered: Answered): void;
}

/**
 * Does what was asked for as soon as the decisions accept it, before anything else happens; or throws their
 * refusal.
 */
export function accepted(vm: Asked, request: Request): Promise<void>;
export function accepted<T>(vm: Asked, request: Request, work: () => T | Promise<T>): Promise<T>;
export function accepted<T>(
  vm: Asked,
  request: Request,
  work?: () => T | Promise<T>,
): Promise<T | undefined> {
  return new Promise((resolve, reject) =>
    vm.ask(request, (refusal) => {
      if (refusal !== undefined) reject(new Error(`VM ${vm.config.name}: ${refusal}`));
      else resolve((async () => work?.())());
    }),
  );
}
