/** The agents' side of the witness (server.ts). */
import { type VmRecord, type VmRecordUpdate, vmRecord } from "./record.ts";

/** The witness could not be asked; nothing is known about what is written there. */
export class WitnessUnreachableError extends Error {
  override name = "WitnessUnreachableError";
}

export type SwapResult =
  | { swapped: true; record: VmRecord }
  | { swapped: false; current: VmRecord | undefined };

export interface Arbiter {
  read(vm: string): Promise<VmRecord | undefined>;
  compareAndSwap(vm: string, expectedRevision: number, record: VmRecordUpdate): Promise<SwapResult>;
}

export class WitnessClient implements Arbiter {
  constructor(
    private readonly url: string,
    private readonly timeoutMs = 2_000,
  ) {}

  /** The record of `vm`, undefined when there is none. Throws {@link WitnessUnreachableError}. */
  async read(vm: string): Promise<VmRecord | undefined> {
    const response = await this.#request("GET", vm);
    if (response.status === 404) return undefined;
    if (response.status !== 200) throw await this.#unexpected(response);
    return vmRecord.parse(await response.json());
  }

  /**
   * Writes `record` if the stored revision is still `expectedRevision` (0: none). Throws
   * {@link WitnessUnreachableError} when the answer does not arrive: the write may then have happened or not, and the
   * caller has to read again.
   */
  async compareAndSwap(vm: string, expectedRevision: number, record: VmRecordUpdate): Promise<SwapResult> {
    const response = await this.#request("PUT", vm, JSON.stringify({ expectedRevision, record }));
    if (response.status === 200) return { swapped: true, record: vmRecord.parse(await response.json()) };
    if (response.status !== 409) throw await this.#unexpected(response);
    const current = await response.json();
    return { swapped: false, current: current === null ? undefined : vmRecord.parse(current) };
  }

  async #request(method: string, vm: string, body?: string): Promise<Response> {
    try {
      return await fetch(new URL(`/v1/vm/${vm}`, this.url), {
        method,
        ...(body === undefined ? {} : { body }),
        signal: AbortSignal.timeout(this.timeoutMs),
        keepalive: false,
      });
    } catch (error) {
      throw new WitnessUnreachableError(
        `the witness at ${this.url} does not answer: ${(error as Error).message}`,
        { cause: error },
      );
    }
  }

  async #unexpected(response: Response): Promise<Error> {
    return new WitnessUnreachableError(
      `the witness at ${this.url} answered ${response.status}: ${await response.text()}`,
    );
  }
}
