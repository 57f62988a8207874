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

/** The rate is that of about so long. */
const RATE_MS = 2_000;

export class ResyncProgress {
  #progress: readonly DiskProgress[] = [];
  readonly #samples: { atMs: number; copiedBytes: number }[] = [];

  constructor(
    /** The disk's name by its quorum node. */
    private readonly names: ReadonlyMap<string, string>,
    private readonly now: () => number = () => performance.now(),
  ) {}

  update(progress: readonly DiskProgress[]): void {
    this.#progress = progress;
    const atMs = this.now();
    this.#samples.push({ atMs, copiedBytes: sum(progress, "copiedBytes") });
    while (this.#samples.length > 2 && this.#samples[1]!.atMs < atMs - RATE_MS) this.#samples.shift();
  }

  get reading(): ResyncReading {
    const [copiedBytes, totalBytes] = [sum(this.#progress, "copiedBytes"), sum(this.#progress, "totalBytes")];
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    const elapsedMs = first === undefined || last === undefined ? 0 : last.atMs - first.atMs;
    const bytesPerSecond =
      elapsedMs === 0 ? 0 : ((last!.copiedBytes - first!.copiedBytes) / elapsedMs) * 1000;
    const disks = this.#progress.map(({ quorumNode, ...rest }) => ({
      disk: this.names.get(quorumNode) ?? quorumNode,
      ...rest,
    }));
    const remainingSeconds =
      bytesPerSecond > 0 ? Math.max(0, totalBytes - copiedBytes) / bytesPerSecond : undefined;
    return { copiedBytes, totalBytes, bytesPerSecond, remainingSeconds, disks };
  }
}

function sum(progress: readonly DiskProgress[], key: "copiedBytes" | "totalBytes"): number {
  return progress.reduce((total, one) => total + one[key], 0);
}
