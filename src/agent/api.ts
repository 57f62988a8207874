/** HTTP interface of the agent: metrics for Prometheus, status for people and programs. */
export interface ApiSources {
  metrics(): Promise<string>;
  status(): unknown;
  /** Answers /v1/divergences…; undefined for what is not its own. */
  divergences(url: URL): Response | undefined;
  /** Carries an administrator's command out and returns the VM's state in words; throws an Error that says why not. */
  command?(vm: string, command: string, forMs: number | undefined): string;
}

/** POST /v1/vm/NAME/COMMAND?for_ms=N, on the unix socket only, which is root's. */
function command(url: URL, sources: ApiSources): Response {
  const [, name, word] = /^\/v1\/vm\/([^/]+)\/([^/]+)$/.exec(url.pathname) ?? [];
  if (sources.command === undefined || name === undefined || word === undefined) {
    return Response.json(
      { error: "GET only; commands are taken on the agent's unix socket" },
      { status: 405 },
    );
  }
  const forMs = url.searchParams.get("for_ms");
  try {
    return Response.json({ now: sources.command(name, word, forMs === null ? undefined : Number(forMs)) });
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
      if (request.method === "POST") return command(url, sources);
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
