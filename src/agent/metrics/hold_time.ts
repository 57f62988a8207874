/** The histogram of hold times, whose buckets the data-path workers fill. */
import type { Histogram, Registry } from "prom-client";
import { HOLD_BUCKETS_SECONDS } from "../../datapath/shared.ts";
import type { Readings } from "./reading.ts";

interface Value {
  labels: Record<string, string | number>;
  value: number;
  metricName: string;
}

/**
 * prom-client cannot fill a Histogram from buckets kept elsewhere; this has the shape that its Registry
 * reads.
 */
class HoldHistogram {
  readonly name = "colo_hold_seconds";
  readonly help = "Time a primary frame was held before it was released";
  readonly type = "histogram";
  readonly aggregator = "sum";
  readonly #readings: Readings;

  constructor(readings: Readings) {
    this.#readings = readings;
  }

  get() {
    const { name, help, type, aggregator } = this;
    return Promise.resolve({ name, help, type, aggregator, values: this.#values() });
  }

  reset(): void {}

  #values(): Value[] {
    const values: Value[] = [];
    for (const [vm, { nics }] of this.#readings.vms()) {
      for (const { tap, shared } of nics) {
        const labels = { vm, tap };
        let frames = 0;
        shared.holdBuckets().forEach((count, index) => {
          frames += count;
          const le = HOLD_BUCKETS_SECONDS[index] ?? "+Inf";
          values.push({ labels: { ...labels, le }, value: frames, metricName: `${this.name}_bucket` });
        });
        values.push({ labels, value: shared.stat("hold_seconds_sum"), metricName: `${this.name}_sum` });
        values.push({ labels, value: frames, metricName: `${this.name}_count` });
      }
    }
    return values;
  }
}

export function addHoldTime(registry: Registry, readings: Readings): void {
  registry.registerMetric(new HoldHistogram(readings) as unknown as Histogram);
}
