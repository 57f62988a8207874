/** What an agent has to remember of a VM across its own restarts and those of the host. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { LastRun } from "../failover/state.ts";

export interface LifeFactsKept {
  /** Why the VM is to stay off, until `colo-agent start`. */
  off?: string;
  recordSeen: boolean;
  lastRun: LastRun;
  /** The replica that an agent has left in good order, to be followed again. */
  rest?: ReplicaAtRest;
}

export interface ReplicaAtRest {
  generation: number;
  epoch: number;
  /** By network interface: what the primary's count of mirrored frames is ahead of this host's count of delivered ones. */
  mirrorBases: number[];
}

export class LifeMemory {
  #kept: LifeFactsKept = { recordSeen: false, lastRun: "never" };

  /** Throws an Error if the file is there and cannot be read. */
  constructor(private readonly path: string) {
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw error;
    }
    try {
      this.#kept = { ...this.#kept, ...(JSON.parse(text) as LifeFactsKept) };
    } catch (error) {
      throw new Error(
        `${path} does not hold what this agent wrote there; look whether the VM is to run on this host, then remove the file`,
        { cause: error },
      );
    }
  }

  get kept(): Readonly<LifeFactsKept> {
    return this.#kept;
  }

  /** Writes what has changed; a crash leaves the old or the new. */
  keep(changes: {
    off?: string | undefined;
    recordSeen?: boolean;
    lastRun?: LastRun;
    rest?: ReplicaAtRest | undefined;
  }): void {
    const kept = { ...this.#kept, ...changes } as LifeFactsKept;
    if (JSON.stringify(kept) === JSON.stringify(this.#kept)) return;
    this.#kept = kept;
    mkdirSync(dirname(this.path), { recursive: true });
    writeFileSync(`${this.path}.new`, JSON.stringify(kept));
    renameSync(`${this.path}.new`, this.path);
  }
}
