/** HTTP interface of the agent: metrics for Prometheus, status for people and programs. */
import { checkedAs } from "../host/json.ts";
import { type CommandNumbers, commandNumbers } from "./status.ts";

export interface ApiSources {
  metrics(): Promise<string>;
  status(): unknown;
  /** Answers /v1/divergences…; undefined for what is not its own. */
  divergences(url: URL): Response | undefined;
  /**
   * Carries an administrator's command out and returns the VM's state in words; throws an Error that says why
   * not.
   */
  command?(vm: string, command: string, numbers: CommandNumbers): string;
  /**
   * Gets the agent ready to end and to be started again. Returns a sentence, or throws an Error that says why
   * it does not end.
   */
  restart?(): Promise<string>;
}

/** POST /v1/restart and /v1/vm/NAME/COMMAND?NUMBER=N, on the unix socket only, which is root's. */
async function carryOut(url: URL, sources: ApiSources): Promise<Response> {
  const { command, restart } = sources;
  if (restart !== undefined && url.pathname === "/v1/restart") return answer(restart);
  const [, name, word] = /^\/v1\/vm\/([^/]+)\/([^/]+)$/.exec(url.pathname) ?? [];
  if (command === undefined || name === undefined || word === undefined) {
    return Response.json(
      { error: "GET only; commands are taken on the agent's unix socket" },
      { status: 405 },
    );
  }
  let numbers: CommandNumbers;
  try {
    numbers = checkedAs(commandNumbers, Object.fromEntries(url.searchParams), word);
  } catch (error) {
    return Response.json({ error: (error as Error).message }, { status: 400 });
  }
  return answer(() => command(name, word, numbers));
}

/** The VM's or the agent's state in words, after `action`; or why that is not done. */
async function answer(action: () => string | Promise<string>): Promise<Response> {
  try {
    return Response.json({ now: await action() });
  } catch (error) {
    return Response.json({ error: (error as Error).message }, { status: 409 });
  }
}

/** Serves GET /metrics, /v1/status and /v1/divergences, over TCP or on a unix socket. */
export function serveApi(endpoint: { host: string; port: number } | { socket: string }, sources: ApiSources) {
  return Bun.serve({
    ...("socket" in endpoint ? { unix: endpoint.socket } : { hostname: endpoint.host, port: endpoint.port }),
    async fetch(request: Request) {
      const url = new URL(request.url);
      if (request.method === "POST") return carryOut(url, sources);
      if (request.method !== "GET") return new Response("GET only\n", { status: 405 });
      switch (url.pathname) {
        case "/metrics":
          return new Response(await sources.metrics(), {
            headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
          });
        case "/v1/status":
          return Response.json(sources.status());
        default:
          return (
            sources.divergences(url) ??
            new Response("see /metrics, /v1/status and /v1/divergences\n", { status: 404 })
          );
      }
    },
  });
}
