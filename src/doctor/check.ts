/**
 * What `colo-agent doctor` is made of: groups of checks, each of which tries one thing and says what it found
 * and what to do. A check is an entry of its group's list, a group a file beside this one.
 */
import type { Config } from "../config/config.ts";
import { explained } from "../errors/problem.ts";
import type { DoctorQemu } from "./qemu_program.ts";
import type { ScratchNamespace } from "./scratch_namespace.ts";

/** `not_asked`: it needs a configuration that was not given, or its group was left out. */
export type Status = "ok" | "warn" | "fail" | "not_asked";

export interface Finding {
  status: Status;
  /** A sentence or a figure. */
  found: string;
  /** What to do about it; with "warn" and "fail". */
  fix?: string;
  /** Of several things of one kind (VMs, certificates), which. */
  subject?: string;
}

export interface Check {
  /** Name of the check for programs, unique within its group. */
  id: string;
  title: string;
  needsConfig?: boolean;
  /** Default 15 000. */
  timeoutMs?: number;
  /** An error that is thrown is a "fail"; a Problem gives its advice too. */
  run(context: DoctorContext): Finding | Finding[] | Promise<Finding | Finding[]>;
}

export interface Group {
  name: string;
  title: string;
  checks: readonly Check[];
}

export interface DoctorContext {
  config: Config | undefined;
  /** The compiled BPF programs. Throws an Error if they are missing. */
  objectPath(): string;
  /** The QEMU to try. Throws an Error if there is none. */
  qemu(): DoctorQemu;
  /** A network namespace for this run, made at the first call. */
  namespace(): Promise<ScratchNamespace>;
  /** A folder for this run, removed at its end. */
  directory(): string;
}

/** The configuration, in a check that has `needsConfig`. */
export function configOf({ config }: DoctorContext): Config {
  if (config === undefined) throw new Error("this check needs a configuration, and was run without one");
  return config;
}

/** Does it once in a run, however many checks ask. */
export function once<T>(
  action: (context: DoctorContext) => Promise<T>,
): (context: DoctorContext) => Promise<T> {
  const done = new WeakMap<DoctorContext, Promise<T>>();
  return (context) => {
    const before = done.get(context);
    if (before !== undefined) return before;
    const result = action(context);
    done.set(context, result);
    return result;
  };
}

export interface Result extends Finding {
  group: string;
  id: string;
  title: string;
}

const TIMEOUT_MS = 15_000;

export const ok = (found: string): Finding => ({ status: "ok", found });
export const warn = (found: string, fix: string): Finding => ({ status: "warn", found, fix });
export const fail = (found: string, fix: string): Finding => ({ status: "fail", found, fix });

/** A "fail" with what the error says; `fix` where the error has no advice of its own. */
export function failed(error: unknown, fix: string): Finding {
  const { problem, advice } = explained(error);
  return fail(problem, advice ?? fix);
}

/**
 * Runs the checks one after the other, those of one group in their order; calls `onResult` with each.
 * @param skip names of groups to leave out
 */
export async function runChecks(
  groups: readonly Group[],
  context: DoctorContext,
  { skip = [], onResult }: { skip?: readonly string[]; onResult?: (result: Result) => void } = {},
): Promise<Result[]> {
  const results: Result[] = [];
  for (const group of groups) {
    for (const check of group.checks) {
      for (const finding of await findings(check, context, skip.includes(group.name))) {
        const result = { group: group.name, id: check.id, title: check.title, ...finding };
        results.push(result);
        onResult?.(result);
      }
    }
  }
  return results;
}

async function findings(check: Check, context: DoctorContext, skipped: boolean): Promise<Finding[]> {
  if (skipped) return [{ status: "not_asked", found: "not asked: left out with --skip" }];
  if (check.needsConfig && context.config === undefined)
    return [{ status: "not_asked", found: "not asked: no configuration" }];
  try {
    const found = await inTime(async () => check.run(context), check.timeoutMs ?? TIMEOUT_MS);
    return Array.isArray(found) ? found : [found];
  } catch (error) {
    const { problem, advice } = explained(error);
    return [{ status: "fail", found: problem, ...(advice === undefined ? {} : { fix: advice }) }];
  }
}

function inTime<T>(action: () => Promise<T>, timeoutMs: number): Promise<T> {
  let timer: Timer | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`no result within ${timeoutMs / 1000} s`)), timeoutMs);
  });
  return Promise.race([action(), late]).finally(() => clearTimeout(timer));
}
