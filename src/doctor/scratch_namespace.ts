/** A network namespace with devices to try things on, so that nothing of the machine's own network is touched. */
import { existsSync, readdirSync } from "node:fs";
import { inNamespace } from "../ffi/netns.ts";
import { runToEnd } from "../host/run_to_end.ts";

const PREFIX = "colo-doctor-";

export class ScratchNamespace {
  private constructor(readonly name: string) {}

  /** Removes those of runs that were killed first. Throws an Error with `ip`'s words. */
  static async create(): Promise<ScratchNamespace> {
    for (const name of existsSync("/run/netns") ? readdirSync("/run/netns") : []) {
      const owner = name.startsWith(PREFIX) ? name.slice(PREFIX.length) : undefined;
      if (owner !== undefined && !existsSync(`/proc/${owner}`)) await ip("netns", "delete", name);
    }
    const namespace = new ScratchNamespace(`${PREFIX}${process.pid}`);
    await ip("netns", "add", namespace.name);
    return namespace;
  }

  /** `ip` in this namespace. Throws an Error with its words. */
  ip(...words: string[]): Promise<string> {
    return ip("-n", this.name, ...words);
  }

  /** With this thread in the namespace. */
  enter<T>(action: () => T): T {
    return inNamespace(this.name, action);
  }

  remove(): Promise<string> {
    return ip("netns", "delete", this.name);
  }
}

/** Runs `ip` and returns its output. Throws an Error with its words. */
export async function ip(...words: string[]): Promise<string> {
  const { output, complaint, status } = await runToEnd(["ip", ...words]);
  if (status !== 0) throw new Error(`ip ${words.join(" ")}: ${complaint}`);
  return output;
}
