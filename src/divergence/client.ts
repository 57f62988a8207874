/**
 * Records from a running agent, over its HTTP interface, or from the database file. One interface for both.
 */
import { askAgent } from "../host/agent_http.ts";
import { recordFromJson, recordsFromJson, topFromJson } from "./json.ts";
import { DivergenceReader } from "./reader.ts";
import type { DivergenceRecord, ListOptions, TopEntry, TopOptions } from "./record.ts";
import { redact } from "./redact.ts";

const TIMEOUT_MS = 10_000;

/** What the commands read. Errors are sentences for people. */
export interface Divergences {
  /** `frames`: with the frames, which a list is quicker without. */
  list(options: ListOptions & { frames: boolean }): Promise<DivergenceRecord[]>;
  /** Throws when there is no such record. */
  get(id: number): Promise<DivergenceRecord>;
  top(options: TopOptions): Promise<TopEntry[]>;
  close(): void;
}

/** Reads a database file. `redacted`: payload is hidden in everything that is given out. */
export function divergencesOfDatabase(path: string, redacted: boolean): Divergences {
  const reader = DivergenceReader.open(path);
  const shown = redacted ? redact : (record: DivergenceRecord) => record;
  return {
    list: async (options) => reader.list(options).map(shown),
    get: async (id) => {
      const record = reader.get(id);
      if (record === undefined) throw new Error(`divergence ${id} is not in ${path}`);
      return shown(record);
    },
    top: async (options) => reader.top(options),
    close: () => reader.close(),
  };
}

/**
 * Asks an agent. `api`: http://ADDRESS:PORT, or unix:/PATH for the socket of its configuration. With
 * `redacted` payload does not even leave the agent.
 */
export function divergencesOfAgent(api: string, redacted: boolean): Divergences {
  const ask = async <T>(path: string, parameters: Record<string, unknown>, parse: (json: unknown) => T) => {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) {
      if (value !== undefined) query.set(name, String(value));
    }
    if (redacted) query.set("redact", "1");
    return parse(await getJson(api, `/v1/divergences${path}?${query}`));
  };
  return {
    list: ({ vm, limit, since, frames }) =>
      ask("", { vm, limit, since, frames: frames ? 1 : undefined }, recordsFromJson),
    get: (id) => ask(`/${id}`, {}, recordFromJson),
    top: ({ by, vm, limit }) => ask("/top", { by, vm, limit }, topFromJson),
    close: () => undefined,
  };
}

async function getJson(api: string, pathAndQuery: string): Promise<unknown> {
  const { status, json } = await askAgent(api, pathAndQuery, { timeoutMs: TIMEOUT_MS });
  const ok = status >= 200 && status < 300;
  if (ok && json !== undefined) return json;
  const message = (json as { error?: unknown } | null | undefined)?.error;
  if (typeof message === "string") throw new Error(message);
  throw new Error(
    `what answers at ${api} keeps no divergences (status ${status}): it is no agent, or one of an older ` +
      "version",
  );
}
