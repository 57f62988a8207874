/** JSON over HTTP from an agent: at http://ADDRESS:PORT, or on its unix socket as unix:/PATH. */
import { Problem } from "../errors/problem.ts";
import { MalformedError } from "./json.ts";

/** No answer, or none of an agent's. */
export class AgentUnreachableError extends Problem {
  override name = "AgentUnreachableError";
}

interface AgentAnswer {
  status: number;
  /** Parsed, unchecked; undefined if the answer is not declared as JSON. */
  json: unknown;
}

/** What the options of fetch that a request needs are made of. */
interface Target {
  url: URL;
  unix?: string;
}

/** Throws an Error if `api` is neither of the two forms. */
function targetOf(api: string, pathAndQuery: string): Target {
  const unix = /^unix:(\/.+)$/.exec(api)?.[1];
  if (unix !== undefined) return { url: new URL(pathAndQuery, "http://localhost"), unix };
  if (!URL.canParse(api) || !/^https?:$/.test(new URL(api).protocol))
    throw new Error(`--api ${api}: must be http://ADDRESS:PORT or unix:/PATH of the agent's socket`);
  return { url: new URL(pathAndQuery, api) };
}

/**
 * Asks the agent at `api`. Throws {@link AgentUnreachableError}, or an Error if `api` is no address.
 * @param options.timeoutMs from now to the last byte of the answer
 * @param options.advice what to do if no agent answers
 */
export async function askAgent(
  api: string,
  pathAndQuery: string,
  {
    method = "GET",
    timeoutMs,
    advice = "give the address of agent.api with --api",
  }: { method?: "GET" | "POST"; timeoutMs: number; advice?: string },
): Promise<AgentAnswer> {
  const { url, unix } = targetOf(api, pathAndQuery);
  try {
    const signal = AbortSignal.timeout(timeoutMs);
    const response = await fetch(url, { method, signal, ...(unix === undefined ? {} : { unix }) });
    const text = await response.text();
    const isJson = response.headers.get("content-type")?.startsWith("application/json") === true;
    return { status: response.status, json: isJson ? parsed(text, api) : undefined };
  } catch (error) {
    throw new AgentUnreachableError(`no agent answers at ${api}: ${(error as Error).message}`, advice, {
      cause: error,
    });
  }
}

function parsed(text: string, api: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new MalformedError(`${api} sent an answer that is not JSON`, { cause: error });
  }
}
