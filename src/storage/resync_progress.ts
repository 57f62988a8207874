/** How far the copy of a VM's disks to its replica has come, for people and for Prometheus. */
import type { DiskProgress } from "./mirror.ts";

export interface ResyncReading {
  /** Of all disks: sent so far, and what there is to send. What the VM writes meanwhile is added to both. */
  copiedBytes: number;
  totalBytes: number;
  /** Over the last seconds. */
  bytesPerSecond: number;
  /** At that rate; undefined while nothing moves. */
  remainingSeconds: number | undefined;
  disks: { disk: string; copiedBytes: number; totalBytes: number; follows: boolean }[];
}

/** The rate is the mean of about this time. */
const RATE_MS = 2_000;

interface Sample {
  atMs: number;
  copiedBytes: number;
}

export class ResyncProgress {
  #progress: readonly DiskProgress[] = [];
  readonly #samples: Sample[] = [];

  constructor(
    /** The disk's name by its quorum node. */
    private readonly names: ReadonlyMap<string, string>,
    private readonly now: () => number = () => performance.now(),
  ) {}

  update(progress: readonly DiskProgress[]): void {
    this.#progress = progress;
    const atMs = this.now();
    this.#samples.push({ atMs, copiedBytes: sum(progress, "copiedBytes") });
    const isOld = (at: number) => (this.#samples[at]?.atMs ?? atMs) < atMs - RATE_MS;
    while (this.#samples.length > 2 && isOld(1)) this.#samples.shift();
  }

  get reading(): ResyncReading {
    const [copiedBytes, totalBytes] = [sum(this.#progress, "copiedBytes"), sum(this.#progress, "totalBytes")];
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    const bytesPerSecond = first === undefined || last === undefined ? 0 : rateOf(first, last);
    const disks = this.#progress.map(({ quorumNode, ...rest }) => ({
      disk: this.names.get(quorumNode) ?? quorumNode,
      ...rest,
    }));
    const remainingSeconds =
      bytesPerSecond > 0 ? Math.max(0, totalBytes - copiedBytes) / bytesPerSecond : undefined;
    return { copiedBytes, totalBytes, bytesPerSecond, remainingSeconds, disks };
  }
}

/** Bytes per second between two samples. */
function rateOf(first: Sample, last: Sample): number {
  const elapsedMs = last.atMs - first.atMs;
  return elapsedMs === 0 ? 0 : ((last.copiedBytes - first.copiedBytes) / elapsedMs) * 1000;
}

function sum(progress: readonly DiskProgress[], key: "copiedBytes" | "totalBytes"): number {
  return progress.reduce((total, one) => total + one[key], 0);
}
