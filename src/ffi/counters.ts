/** The frames that the programs have counted (enum colo_counter), over all CPUs. */
import { BpfMap } from "./bpf_map.ts";
import { COUNTER_NAMES, type CounterName } from "./layout.ts";

const VALUE_BYTES = 8;
const INDEX = Object.fromEntries(COUNTER_NAMES.map((name, index) => [name, index])) as Record<
  CounterName,
  number
>;

export class Counters {
  readonly #map: BpfMap;

  /** @param fd of the map `counters`; stays the caller's */
  constructor(fd: number) {
    this.#map = new BpfMap(fd, "the counters", { batch: COUNTER_NAMES.length });
  }

  /** One of them, without allocating. */
  of(name: CounterName): number {
    const map = this.#map;
    map.view.setUint32(map.key, INDEX[name], true);
    map.lookup();
    return this.#sum(map.value);
  }

  /** All of them, read in one system call. */
  all(): Record<CounterName, number> {
    const result = {} as Record<CounterName, number>;
    const { view } = this.#map;
    this.#map.forEach((key, value) => {
      result[COUNTER_NAMES[view.getUint32(key, true)]] = this.#sum(value);
    });
    return result;
  }

  close(): void {
    this.#map.close();
  }

  #sum(value: number): number {
    const { view, valueBytes } = this.#map;
    let sum = 0;
    for (let at = value; at < value + valueBytes; at += VALUE_BYTES) {
      sum += view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
    }
    return sum;
  }
}
