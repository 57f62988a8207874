/**
 * A network namespace with devices to try things on, so that nothing of the machine's own network is touched.
 */
import { existsSync, readdirSync } from "node:fs";
import { inNamespace } from "../ffi/netns.ts";
import { type Ip, ip, ipIn } from "../host/ip.ts";

const PREFIX = "colo-doctor-";

export class ScratchNamespace {
  /** `ip` in this namespace. */
  readonly ip: Ip;

  private constructor(readonly name: string) {
    this.ip = ipIn(name);
  }

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

  /** With this thread in the namespace. */
  enter<T>(action: () => T): T {
    return inNamespace(this.name, action);
  }

  remove(): Promise<string> {
    return ip("netns", "delete", this.name);
  }
}
