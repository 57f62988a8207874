/**
 * The HTTP interface to divergences, to be asked for each GET:
 *
 *     GET /v1/divergences?vm=NAME&limit=N&since=MS&frames=1   newest first; frames in base64 if asked for
 *     GET /v1/divergences/top?by=port|protocol|flow&vm=NAME&limit=N
 *     GET /v1/divergences/ID
 *     GET /v1/divergences/ID.pcapng
 *     GET /v1/divergences.pcapng?vm=NAME&limit=N&since=MS
 *
 * `redact=1` hides payload in all of them. A wrong question is answered with 400 or 404 and {"error":
 * sentence}.
 */
import { recordToJson } from "./json.ts";
import { writePcapng } from "./pcapng.ts";
import {
  type DivergenceRecord,
  type DivergenceSource,
  LIST_LIMIT_MAX,
  type ListOptions,
  TOP_BY,
  type TopBy,
  type TopOptions,
} from "./record.ts";
import { redact } from "./redact.ts";

interface RouteOptions {
  /**
   * false: payload is hidden in every answer. For an interface that others than the administrator reach.
   */
  payload?: boolean;
}

class BadRequestError extends Error {
  constructor(
    readonly status: 400 | 404,
    message: string,
  ) {
    super(message);
  }
}

const PREFIX = "/v1/divergences";

/** A handler that answers what is its own and leaves everything else (undefined) to others. */
export function divergenceRoutes(
  source: DivergenceSource,
  { payload = true }: RouteOptions = {},
): (url: URL) => Response | undefined {
  return (url) => {
    const { pathname, searchParams } = url;
    if (pathname !== PREFIX && !pathname.startsWith(`${PREFIX}/`) && pathname !== `${PREFIX}.pcapng`) {
      return undefined;
    }
    try {
      const hidden = !payload || flag(searchParams, "redact");
      const shown = hidden ? redact : (record: DivergenceRecord) => record;
      return answer(source, pathname, searchParams, shown);
    } catch (error) {
      if (!(error instanceof BadRequestError)) throw error;
      return Response.json({ error: error.message }, { status: error.status });
    }
  };
}

function answer(
  source: DivergenceSource,
  path: string,
  parameters: URLSearchParams,
  shown: (record: DivergenceRecord) => DivergenceRecord,
): Response {
  if (path === PREFIX) {
    const frames = flag(parameters, "frames");
    const divergences = source
      .list(listOptions(parameters))
      .map((record) => recordToJson(shown(record), { frames }));
    return Response.json({ divergences });
  }
  if (path === `${PREFIX}.pcapng`) {
    return pcapng("divergences.pcapng", source.list(listOptions(parameters)).reverse().map(shown));
  }
  if (path === `${PREFIX}/top`) return Response.json({ top: source.top(topOptions(parameters)) });
  const match = /^(\d{1,15})(\.pcapng)?$/.exec(path.slice(PREFIX.length + 1));
  if (match === null) {
    throw new BadRequestError(404, `there is no ${path}; see ${PREFIX}, ${PREFIX}/top and ${PREFIX}/ID`);
  }
  const id = Number(match[1]);
  const record = source.get(id);
  if (record === undefined) {
    throw new BadRequestError(
      404,
      `divergence ${id} is not stored: it never was, or newer ones have replaced it`,
    );
  }
  if (match[2] !== undefined) return pcapng(`divergence-${id}.pcapng`, [shown(record)]);
  return Response.json(recordToJson(shown(record), { frames: true }));
}

function pcapng(name: string, records: DivergenceRecord[]): Response {
  return new Response(writePcapng(records), {
    headers: {
      "content-type": "application/x-pcapng",
      "content-disposition": `attachment; filename="${name}"`,
    },
  });
}

function listOptions(parameters: URLSearchParams): ListOptions {
  const options: ListOptions = {};
  const vm = parameters.get("vm");
  if (vm !== null) options.vm = vm;
  const limit = number(parameters, "limit", 1, LIST_LIMIT_MAX);
  if (limit !== undefined) options.limit = limit;
  const since = number(parameters, "since", 0, Number.MAX_SAFE_INTEGER);
  if (since !== undefined) options.since = since;
  return options;
}

function topOptions(parameters: URLSearchParams): TopOptions {
  const by = parameters.get("by") ?? "port";
  if (!TOP_BY.includes(by as TopBy)) throw new BadRequestError(400, `by must be one of ${TOP_BY.join(", ")}`);
  const { vm, limit } = listOptions(parameters);
  return { by: by as TopBy, ...(vm === undefined ? {} : { vm }), ...(limit === undefined ? {} : { limit }) };
}

function number(parameters: URLSearchParams, name: string, min: number, max: number): number | undefined {
  const text = parameters.get(name);
  if (text === null) return undefined;
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < min || value > max) {
    throw new BadRequestError(400, `${name} must be a whole number from ${min} to ${max}`);
  }
  return value;
}

function flag(parameters: URLSearchParams, name: string): boolean {
  const text = parameters.get(name);
  if (text === null || text === "0") return false;
  if (text === "1") return true;
  throw new BadRequestError(400, `${name} must be 0 or 1`);
}
