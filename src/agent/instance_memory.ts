/** What an agent has to remember of a VM across its own restarts and those of the host. */
import { mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname } from "node:path";
import { z } from "zod";
import type { LastRun } from "../failover/state.ts";
import { jsonAs } from "../host/json.ts";

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
const lastRun: z.ZodType<LastRun> = z.enum(["never", "alone", "with_replica", "as_replica"]);

const replicaAtRest = z.object({
  generation: count,
  epoch: count,
  /**
   * By network interface: by how much the primary's count of mirrored frames exceeds this host's of delivered
   * ones.
   */
  mirrorBases: z.array(z.number().int()),
});
export type ReplicaAtRest = z.output<typeof replicaAtRest>;

const factsKept = z.object({
  /** Why the VM is to stay off, until `colo-agent start`. */
  off: z.string().optional(),
  recordSeen: z.boolean(),
  lastRun,
  /** The replica that an agent has left in good order, to be followed again. */
  rest: replicaAtRest.optional(),
});
type FactsKept = z.output<typeof factsKept>;

export class InstanceMemory {
  #kept: FactsKept = { recordSeen: false, lastRun: "never" };

  /**
   * `nics`: how many network interfaces the VM has. A replica at rest with another number is forgotten.
   * Throws an Error if the file is there and cannot be read.
   */
  constructor(
    private readonly path: string,
    nics: number,
  ) {
    let text: string;
    try {
      text = readFileSync(path, "utf8");
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return;
      throw error;
    }
    let read: FactsKept;
    try {
      read = jsonAs(factsKept, text, path);
    } catch (error) {
      throw new Error(
        `${(error as Error).message}; the agent did not write this: decide whether the VM may run on ` +
          "this host, then remove the file",
        { cause: error },
      );
    }
    const { rest, ...others } = read;
    this.#kept = rest?.mirrorBases.length === nics ? read : others;
  }

  get kept(): Readonly<FactsKept> {
    return this.#kept;
  }

  /** Writes what has changed; a crash leaves the old or the new. */
  keep(changes: Partial<FactsKept>): void {
    const kept: FactsKept = { ...this.#kept, ...changes };
    if (JSON.stringify(kept) === JSON.stringify(this.#kept)) return;
    this.#kept = kept;
    mkdirSync(dirname(this.path), { recursive: true });
    writeFileSync(`${this.path}.new`, JSON.stringify(kept));
    renameSync(`${this.path}.new`, this.path);
  }
}
