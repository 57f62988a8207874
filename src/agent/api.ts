/** HTTP interface of the agent: metrics for Prometheus, status for people and programs. */
export interface ApiSources {
  metrics(): Promise<string>;
  status(): unknown;
}

/** Serves GET /metrics and GET /v1/status, over TCP or on a unix socket. */
export function serveApi(endpoint: { host: string; port: number } | { socket: string }, sources: ApiSources) {
  return Bun.serve({
    ...("socket" in endpoint ? { unix: endpoint.socket } : { hostname: endpoint.host, port: endpoint.port }),
    async fetch(request: Request) {
      if (request.method !== "GET") return new Response("GET only\n", { status: 405 });
      switch (new URL(request.url).pathname) {
        case "/metrics":
          return new Response(await sources.metrics(), {
            headers: { "content-type": "text/plain; version=0.0.4; charset=utf-8" },
          });
        case "/v1/status":
          return Response.json(sources.status());
        default:
          return new Response("see /metrics and /v1/status\n", { status: 404 });
      }
    },
  });
}
