/**
 * etcd as the arbiter, through the HTTP/JSON gateway of its v3 API (etcd 3.4 or later): a key per VM, read
 * linearizably, written by a transaction that compares the key's mod_revision, which is the record's
 * revision.
 *
 * A request that gets no answer is sent again to the next endpoint. That is no risk for a write: each carries
 * an identity that is stored with it, and the comparison lets only one of its copies happen.
 *
 * Source: etcd api/etcdserverpb/rpc.proto. The gateway leaves out fields that are false, 0 or empty, writes
 * 64-bit numbers as strings and bytes in base64.
 */
import { z } from "zod";
import type { TlsFiles } from "../certificates/read.ts";
import { identifier, type VmRecord, type VmRecordUpdate, vmRecordUpdate } from "../failover/vm_record.ts";
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

export interface EtcdOptions {
  endpoints: readonly string[];
  /** Keys are this and the VM's name. */
  prefix: string;
  agents: AgentPair;
  tls: TlsFiles | undefined;
  credentials: { user: string; password: string } | undefined;
  /** Longest time of one read or compareAndSwap; each endpoint gets its share of it. */
  timeoutMs: number;
}

const number64 = z
  .string()
  .regex(/^\d+$/)
  .transform(Number)
  .pipe(z.number().int().max(Number.MAX_SAFE_INTEGER));
const rangeAnswer = z.object({
  kvs: z.array(z.object({ mod_revision: number64, value: z.string() })).default([]),
});
const txnAnswer = z.object({
  header: z.object({ revision: number64 }),
  succeeded: z.boolean().default(false),
  responses: z.array(z.object({ response_range: rangeAnswer.optional() })).default([]),
});
const authenticateAnswer = z.object({ token: z.string().min(1) });
const failure = z.object({
  code: z.number().optional(),
  error: z.string().optional(),
  message: z.string().optional(),
});

/** What stands under a key. */
const value = vmRecordUpdate.extend({ agents: z.tuple([identifier, identifier]), write: z.uuid() });

/** gRPC status codes (google.rpc.Code) after which the same request would fail again. */
const LASTING_CODES = new Set([3 /* invalid argument */, 7 /* permission denied */, 12 /* unimplemented */]);
const UNAUTHENTICATED = 16;
/** Out of disk quota: reads work, every write is refused until an administrator frees space. */
const NO_SPACE = /database space exceeded/;
/** The token is older than the last change of users or roles. */
const OLD_TOKEN = /revision of auth store is old|invalid auth token/;

class TokenRefusedError extends Error {}

export class EtcdArbiter implements Arbiter {
  readonly configured = true;
  readonly description: string;
  #preferred = 0;
  #token: string | undefined;

  constructor(private readonly options: EtcdOptions) {
    this.description = `etcd ${options.endpoints.join(", ")}`;
  }

  async read(vm: string): Promise<VmRecord | undefined> {
    const answer = await this.#ask("/v3/kv/range", { key: this.#key(vm) }, rangeAnswer);
    return this.#stored(vm, answer)?.record;
  }

  async compareAndSwap(vm: string, expectedRevision: number, record: VmRecordUpdate): Promise<SwapResult> {
    const key = this.#key(vm);
    const write = crypto.randomUUID();
    const next: z.output<typeof value> = {
      ...vmRecordUpdate.parse(record),
      agents: [...this.options.agents],
      write,
    };
    const answer = await this.#ask(
      "/v3/kv/txn",
      {
        // A key that does not exist has mod_revision 0.
        compare: [{ key, target: "MOD", result: "EQUAL", mod_revision: String(expectedRevision) }],
        success: [{ request_put: { key, value: base64(JSON.stringify(next)) } }],
        failure: [{ request_range: { key } }],
      },
      txnAnswer,
    );
    if (answer.succeeded) return { swapped: true, record: { ...record, revision: answer.header.revision } };
    const current = this.#stored(vm, answer.responses[0]?.response_range ?? { kvs: [] });
    if (current?.write === write) return { swapped: true, record: current.record };
    return { swapped: false, current: current?.record };
  }

  #key(vm: string): string {
    return base64(`${this.options.prefix}${identifier.parse(vm)}`);
  }

  #stored(vm: string, answer: z.output<typeof rangeAnswer>): { record: VmRecord; write: string } | undefined {
    const stored = answer.kvs[0];
    if (stored === undefined) return undefined;
    const text = Buffer.from(stored.value, "base64").toString("utf8");
    let parsed: z.output<typeof value>;
    try {
      parsed = value.parse(JSON.parse(text));
    } catch (error) {
      throw new ArbiterRefusedError(
        `${this.description}: the key ${this.options.prefix}${vm} holds a value that this colo-agent did ` +
          `not write (${text.slice(0, 200)}): use another prefix, or the newer version that wrote it`,
        { cause: error },
      );
    }
    const { agents, write, ...record } = parsed;
    if (!samePair(agents, this.options.agents)) {
      throw new ArbiterRefusedError(foreignRecord(vm, agents, this.options.agents));
    }
    return { record: { ...record, revision: stored.mod_revision }, write };
  }

  /** Asks the endpoints one after the other, first the one with the latest answer. */
  async #ask<T extends z.ZodType>(path: string, body: unknown, schema: T): Promise<z.output<T>> {
    const { endpoints, timeoutMs } = this.options;
    const share = timeoutMs / endpoints.length;
    const first = this.#preferred;
    const complaints: string[] = [];
    const inTurn = [...endpoints.slice(first), ...endpoints.slice(0, first)];
    for (const [turn, endpoint] of inTurn.entries()) {
      try {
        const answer = await this.#askEndpoint(endpoint, path, body, schema, share);
        this.#preferred = (first + turn) % endpoints.length;
        return answer;
      } catch (error) {
        if (!(error instanceof ArbiterUnreachableError)) throw error;
        complaints.push(error.message);
      }
    }
    throw new ArbiterUnreachableError(`etcd: ${complaints.join("; ")}`);
  }

  async #askEndpoint<T extends z.ZodType>(
    endpoint: string,
    path: string,
    body: unknown,
    schema: T,
    timeoutMs: number,
  ): Promise<z.output<T>> {
    const deadline = performance.now() + timeoutMs;
    const left = () => Math.max(1, deadline - performance.now());
    for (let attempt = 1; ; attempt++) {
      try {
        const { credentials } = this.options;
        if (credentials !== undefined && this.#token === undefined) {
          const { user, password } = credentials;
          const asked = { name: user, password };
          this.#token = (
            await this.#post(endpoint, "/v3/auth/authenticate", asked, authenticateAnswer, left())
          ).token;
        }
        return await this.#post(endpoint, path, body, schema, left(), this.#token);
      } catch (error) {
        if (!(error instanceof TokenRefusedError)) throw error;
        this.#token = undefined;
        if (attempt === 2) throw new ArbiterRefusedError(error.message, { cause: error });
      }
    }
  }

  async #post<T extends z.ZodType>(
    endpoint: string,
    path: string,
    body: unknown,
    schema: T,
    timeoutMs: number,
    token?: string,
  ): Promise<z.output<T>> {
    const url = new URL(path, endpoint);
    const { status, text } = await exchange(url, {
      method: "POST", // Bun's fetch does not repeat a POST by itself
      body: JSON.stringify(body),
      headers: {
        "content-type": "application/json",
        ...(token === undefined ? {} : { authorization: token }),
      },
      tls: this.options.tls,
      timeoutMs,
    });
    if (status === 404) {
      throw new ArbiterRefusedError(`${url.href} does not exist: is that an etcd of version 3.4 or later?`);
    }
    const json = parseJson(url, text);
    if (status !== 200) throw refusalOf(url, status, json, token !== undefined);
    const parsed = schema.safeParse(json);
    if (parsed.success) return parsed.data;
    throw new ArbiterUnreachableError(
      `${url.href} answered with text that is not etcd's: ${text.slice(0, 200)}`,
    );
  }
}

function refusalOf(url: URL, status: number, json: unknown, withToken: boolean): Error {
  const { code, error, message } = failure.safeParse(json).data ?? {};
  const said = error ?? message ?? JSON.stringify(json);
  const text = `${url.origin}: ${said}`;
  if (withToken && (code === UNAUTHENTICATED || OLD_TOKEN.test(said))) return new TokenRefusedError(text);
  if (code === UNAUTHENTICATED || (code !== undefined && LASTING_CODES.has(code)) || NO_SPACE.test(said)) {
    return new ArbiterRefusedError(text);
  }
  return new ArbiterUnreachableError(`${text} (HTTP ${status})`);
}

function base64(text: string): string {
  return Buffer.from(text, "utf8").toString("base64");
}
