/** Metrics of checkpoints and of the divergences that cause some of them. */
import { Counter, Histogram, type Registry } from "prom-client";
import { CHECKPOINT_CAUSES, type CheckpointReport } from "../checkpoint.ts";

const PAUSE_BUCKETS_SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10];

export class CheckpointMetrics {
  readonly #completed: Counter<"vm" | "cause">;
  readonly #pause: Histogram<"vm">;
  readonly #duration: Histogram<"vm">;
  readonly #notDrained: Counter<"vm">;
  readonly #divergences: Counter<"vm" | "class">;

  constructor(registry: Registry) {
    const registers = [registry];
    this.#completed = new Counter({
      name: "colo_checkpoints_total",
      help: "Checkpoints completed, by cause",
      labelNames: ["vm", "cause"],
      registers,
    });
    this.#pause = new Histogram({
      name: "colo_checkpoint_pause_seconds",
      help: "Time the primary VM stood still in a checkpoint, STOP to RESUME",
      labelNames: ["vm"],
      buckets: PAUSE_BUCKETS_SECONDS,
      registers,
    });
    this.#duration = new Histogram({
      name: "colo_checkpoint_duration_seconds",
      help: "Time from the decision to make a checkpoint until diverted input is back",
      labelNames: ["vm"],
      buckets: PAUSE_BUCKETS_SECONDS,
      registers,
    });
    this.#notDrained = new Counter({
      name: "colo_checkpoint_input_not_drained_total",
      help: "Checkpoints made before both taps had been read empty",
      labelNames: ["vm"],
      registers,
    });
    this.#divergences = new Counter({
      name: "colo_divergences_total",
      help: "Differences between the outputs of primary and secondary, by class",
      labelNames: ["vm", "class"],
      registers,
    });
  }

  /** Every cause starts at 0: a rate of it can be asked for before the first one. */
  add(vm: string): void {
    for (const cause of CHECKPOINT_CAUSES) this.#completed.inc({ vm, cause }, 0);
  }

  completed(vm: string, { cause, pauseMs, totalMs, inputDrained }: CheckpointReport): void {
    this.#completed.inc({ vm, cause });
    this.#pause.observe({ vm }, pauseMs / 1000);
    this.#duration.observe({ vm }, totalMs / 1000);
    if (!inputDrained) this.#notDrained.inc({ vm });
  }

  /** @param name class of the divergence, or "seen_by_qemu" */
  diverged(vm: string, name: string): void {
    this.#divergences.inc({ vm, class: name });
  }
}
