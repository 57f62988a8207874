/** Follows one QEMU's STOP and RESUME: when the VM stood still for a checkpoint, and for how long. */
import { QmpClient } from "../qmp/client.ts";

/** STOP and RESUME of one pause, QEMU's wall clock in nanoseconds. */
interface Pause {
  stopNs: bigint;
  resumeNs: bigint;
}

export class PauseWatch {
  readonly pauses: Pause[] = [];
  #stopNs: bigint | undefined;

  readonly #client: QmpClient;

  private constructor(client: QmpClient) {
    this.#client = client;
    client.on("STOP", ({ timestampNs }) => {
      this.#stopNs = timestampNs;
    });
    client.on("RESUME", ({ timestampNs }) => {
      if (this.#stopNs !== undefined) this.pauses.push({ stopNs: this.#stopNs, resumeNs: timestampNs });
      this.#stopNs = undefined;
    });
  }

  /** `path`: a QMP socket that nobody else is connected to. A pause under way is not counted. */
  static async open(path: string): Promise<PauseWatch> {
    return new PauseWatch(await QmpClient.connect(path));
  }

  /** Forgets the pauses so far. */
  clear(): void {
    this.pauses.length = 0;
  }

  /** Length of each pause in ms. */
  lengthsMs(): number[] {
    return this.pauses.map(({ stopNs, resumeNs }) => Number(resumeNs - stopNs) / 1e6);
  }

  /** Time between each pause and the next in ms. */
  gapsMs(): number[] {
    return this.pauses
      .slice(1)
      .map(({ stopNs }, index) => Number(stopNs - this.pauses[index]!.resumeNs) / 1e6);
  }

  /** Waits for `count` pauses since the last {@link clear}. Throws after `timeoutMs` or when QEMU is gone. */
  async until(count: number, timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (this.pauses.length < count) {
      if (this.#client.closedReason !== undefined) throw this.#client.closedReason;
      if (performance.now() > deadline) {
        throw new Error(`${this.pauses.length} of ${count} checkpoints within ${timeoutMs} ms`);
      }
      await Bun.sleep(20);
    }
  }

  close(): void {
    this.#client.close();
  }
}
