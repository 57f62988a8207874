/** HTTP interface of the agent: metrics for Prometheus, status for people and programs. */
export interface ApiSources {
  metrics(): Promise<string>;
  status(): unknown;
  /** Answers /v1/divergences…; undefined for what is not its own. */
  divergences(url: URL): Response | undefined;
}

/** Serves GET /metrics, /v1/status and /v1/divergences, over TCP or on a unix socket. */
export function serveApi(endpoint: { host: string; port: number } | { socket: string }, sources: ApiSources) {
  return Bun.serve({
    ...("socket" in endpoint ? { unix: endpoint.socket } : { hostname: endpoint.host, port: endpoint.port }),
    async fetch(request: Request) {
      if (request.method !== "GET") return new Response("GET only\n", { status: 405 });
      const url = new URL(request.url);
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
