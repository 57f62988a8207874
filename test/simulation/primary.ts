/** What src/agent/primary.ts does: an attempt to protect, checkpoints, and their end. */
import type { Agent } from "./agent.ts";
import { ProcedureError, type Running, run } from "./procedure.ts";
import * as procedures from "./procedures.ts";

export class Primary {
  #protection: Running | undefined;
  #checkpoints: { running: Running | undefined } | undefined;

  constructor(private readonly agent: Agent) {}

  protect(generation: number): void {
    const progress = { entered: false };
    this.#protection = run(
      procedures.protect(this.agent, generation, progress),
      () => this.agent.tell({ type: "primed", generation }),
      (error) => {
        this.endProtection(error.message);
        const { entered } = progress;
        this.agent.tell({ type: "protection_failed", generation, entered, reason: error.message });
      },
    );
  }

  resume(generation: number): void {
    this.#protection = run(
      procedures.resume(this.agent, generation),
      () => {
        this.agent.world.coverage.count("protections that went on");
        this.agent.tell({ type: "resumed", generation });
      },
      (error) => this.agent.tell({ type: "pair_broken", reason: error.message }),
    );
  }

  /** When no checkpoint is under way. */
  whenSettled(action: () => void): void {
    if (!this.agent.inCheckpoint) action();
    else this.agent.world.after(5, () => this.agent.post(() => this.whenSettled(action)));
  }

  beginCheckpoints(): void {
    this.agent.paused = false;
    this.agent.inCheckpoint = false;
    const mine: { running: Running | undefined } = { running: undefined };
    this.#checkpoints = mine;
    mine.running = run(
      procedures.checkpoints(this.agent),
      () => undefined,
      (error) => {
        if (this.#checkpoints !== mine) return; // ended by the agent itself
        this.agent.lastCheckpoint?.fail(error);
        this.agent.tell({ type: "pair_broken", reason: error.message });
      },
    );
  }

  endProtection(reason: string): void {
    const protection = this.#protection;
    const checkpoints = this.#checkpoints;
    this.#protection = undefined;
    this.#checkpoints = undefined;
    protection?.abort(reason);
    checkpoints?.running?.abort(reason);
    this.agent.lastCheckpoint?.fail(new ProcedureError("checkpoints were ended"));
    this.agent.lastCheckpoint = undefined;
  }
}
