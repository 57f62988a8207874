/** The agents' side of the embedded witness (witness_server.ts). */

import type { TlsFiles } from "../certificates/read.ts";
import type { VmRecord, VmRecordUpdate } from "../failover/vm_record.ts";
import {
  type AgentPair,
  type Arbiter,
  ArbiterRefusedError,
  ArbiterUnreachableError,
  foreignRecord,
  type SwapResult,
  samePair,
} from "./arbiter.ts";
import { exchange, parseJson } from "./http.ts";
import { type CasRequest, refusal, type StoredRecord, storedRecord } from "./witness_protocol.ts";

interface WitnessClientOptions {
  /** Base address, https:// (or http://, see config.ts). */
  url: string;
  agents: AgentPair;
  tls: TlsFiles | undefined;
  /** Longest time of one read or compareAndSwap. */
  timeoutMs: number;
}

export class WitnessClient implements Arbiter {
  readonly configured = true;
  readonly description: string;

  constructor(private readonly options: WitnessClientOptions) {
    this.description = `witness ${options.url}`;
  }

  async read(vm: string): Promise<VmRecord | undefined> {
    const { status, json } = await this.#request("GET", vm);
    if (status === 404) return undefined;
    if (status !== 200) throw this.#unexpected(status, json);
    return this.#own(vm, this.#stored(json));
  }

  async compareAndSwap(vm: string, expectedRevision: number, record: VmRecordUpdate): Promise<SwapResult> {
    const agents: [string, string] = [...this.options.agents];
    const request: CasRequest = { expectedRevision, record, agents, write: crypto.randomUUID() };
    const { status, json } = await this.#request("PUT", vm, JSON.stringify(request));
    if (status === 200) return { swapped: true, record: this.#own(vm, this.#stored(json)) };
    if (status !== 409) throw this.#unexpected(status, json);
    return { swapped: false, current: json === null ? undefined : this.#own(vm, this.#stored(json)) };
  }

  /**
   * Asks a second time when a connection breaks: one that was kept open may have been closed by the other end
   * (a witness that restarted). That is no risk for a write, which the witness executes only one time.
   */
  async #request(
    method: "GET" | "PUT",
    vm: string,
    body?: string,
  ): Promise<{ status: number; json: unknown }> {
    const url = new URL(`/v1/vm/${vm}`, this.options.url);
    const deadline = performance.now() + this.options.timeoutMs;
    for (let attempt = 1; ; attempt++) {
      try {
        const { status, text } = await exchange(url, {
          method,
          ...(body === undefined ? {} : { body }),
          tls: this.options.tls,
          timeoutMs: Math.max(1, deadline - performance.now()),
        });
        return { status, json: parseJson(url, text) };
      } catch (error) {
        if (attempt === 2 || performance.now() >= deadline) throw error;
      }
    }
  }

  #stored(json: unknown): StoredRecord {
    const parsed = storedRecord.safeParse(json);
    if (parsed.success) return parsed.data;
    throw new ArbiterUnreachableError(
      `${this.description} answered no record that this agent understands: ${JSON.stringify(json)}`,
    );
  }

  #own(vm: string, { record, agents }: StoredRecord): VmRecord {
    if (samePair(agents, this.options.agents)) return record;
    throw new ArbiterRefusedError(foreignRecord(vm, agents, this.options.agents));
  }

  #unexpected(status: number, json: unknown): Error {
    const said = refusal.safeParse(json);
    const message = `${this.description}: ${said.success ? said.data.error : JSON.stringify(json)}`;
    // The witness's own refusals; anything else (a proxy's answer, a full disk) tells nothing about the
    // record.
    if (status === 400 || status === 403) return new ArbiterRefusedError(message);
    return new ArbiterUnreachableError(`${message} (HTTP ${status})`);
  }
}
