/**
 * Prometheus metrics of one agent (prom-client), a file for each collector. docs/metrics.md lists them; to
 * add one, see CONTRIBUTING.md.
 */
import { Registry } from "prom-client";
import type { CheckpointReport } from "../checkpoint.ts";
import { addProcessMetrics } from "./agent_process.ts";
import { CheckpointMetrics } from "./checkpoints.ts";
import { addFrameMetrics } from "./frames.ts";
import { addHoldTime } from "./hold_time.ts";
import { ProtectionMetrics } from "./protection.ts";
import { Readings, type VmReading } from "./reading.ts";

/** The events of one VM that the control plane counts itself. */
export interface VmMetrics {
  checkpointCompleted(report: CheckpointReport): void;
  /** @param name class of the divergence, or "seen_by_qemu" */
  diverged(name: string): void;
  /** @param survivor this host's role before; `seconds` from the detection of the loss */
  failedOver(survivor: "primary" | "secondary", seconds: number): void;
}

export class AgentMetrics {
  readonly #registry = new Registry();
  readonly #readings = new Readings();
  readonly #checkpoints: CheckpointMetrics;
  readonly #protection: ProtectionMetrics;
  #scrape: Promise<string> = Promise.resolve("");

  constructor(version: string) {
    addProcessMetrics(this.#registry, version);
    this.#checkpoints = new CheckpointMetrics(this.#registry);
    this.#protection = new ProtectionMetrics(this.#registry, this.#readings);
    addFrameMetrics(this.#registry, this.#readings);
    addHoldTime(this.#registry, this.#readings);
  }

  /** Adds a VM; `read` is called once at each scrape. */
  vm(name: string, read: () => VmReading): VmMetrics {
    this.#readings.add(name, read);
    this.#checkpoints.add(name);
    return {
      checkpointCompleted: (report) => this.#checkpoints.completed(name, report),
      diverged: (divergence) => this.#checkpoints.diverged(name, divergence),
      failedOver: (survivor, seconds) => this.#protection.failedOver(name, survivor, seconds),
    };
  }

  /** A VM without a QEMU has nothing to be read; its counters stay. */
  forget(name: string): void {
    this.#readings.remove(name);
  }

  /**
   * The text of a scrape (Prometheus exposition format 0.0.4). Scrapes do not overlap: each has readings of
   * its own.
   */
  text(): Promise<string> {
    const scrape = () => {
      this.#readings.take();
      return this.#registry.metrics();
    };
    this.#scrape = this.#scrape.then(scrape, scrape);
    return this.#scrape;
  }
}
