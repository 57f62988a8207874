/**
 * What an administrator can change of a VM while the agent runs (`colo-agent tune`); it begins as configured,
 * and ends with the agent.
 */
import type { TuningValues } from "../api/status.ts";
import type { VmConfig } from "../config/config.ts";

const LIMITS = {
  periodMs: { name: "the period", min: 100, max: 3_600_000, unit: "ms" },
  resyncBytesPerSecond: { name: "the limit of a resync", min: 0, max: 1e12, unit: "bytes per second" },
} as const satisfies Record<keyof TuningValues, object>;

export class Tuning {
  #values: TuningValues;
  readonly #listeners = new Set<() => void>();

  constructor(config: Pick<VmConfig, "checkpoint" | "resync">) {
    this.#values = {
      periodMs: config.checkpoint.period_ms,
      resyncBytesPerSecond: config.resync.bytes_per_second,
    };
  }

  get values(): TuningValues {
    return { ...this.#values };
  }

  get periodMs(): number {
    return this.#values.periodMs;
  }

  get resyncBytesPerSecond(): number {
    return this.#values.resyncBytesPerSecond;
  }

  /** Throws an Error that says what is wrong; then nothing has been changed. */
  change(wanted: Partial<TuningValues>): void {
    const given = (Object.keys(LIMITS) as (keyof TuningValues)[]).flatMap((key) => {
      const value = wanted[key];
      return value === undefined ? [] : [[key, value] as const];
    });
    if (given.length === 0)
      throw new Error("no setting to change: give --period-ms or --resync-bytes-per-second");
    for (const [key, value] of given) {
      const { name, min, max, unit } = LIMITS[key];
      if (!(Number.isInteger(value) && value >= min && value <= max)) {
        throw new Error(`${name} must be a whole number from ${min} to ${max} ${unit}`);
      }
    }
    for (const [key, value] of given) this.#values[key] = value;
    for (const listener of this.#listeners) listener();
  }

  /** Returns what ends the listening. */
  onChange(listener: () => void): () => void {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }
}
