/**
 * The channel between the two agents: requests and answers, one JSON object a line, over TCP on the
 * replication link.
 *
 * Each agent listens for its peer (peer_server.ts) and dials its peer (peer_client.ts). Requests go over the
 * connection that the agent dialled, and answers come back on it. A line is {id, type, body} or
 * {id, ok, body | error}. The first request on a connection is {@link HELLO}, which settles that both sides
 * speak the same protocol and whether the connection is the agent's or a visitor's.
 */
import { z } from "zod";
import { jsonAs } from "../host/json.ts";
import { VERSION } from "../host/version.ts";

/**
 * Number of the wire format: of the requests (peer_api.ts), their lines, and the datagrams of client_path.ts.
 * It grows with every change that an agent of the version before would misread.
 */
export const PROTOCOL = 1;

/** Type of the first request on a connection. */
export const HELLO = "hello";

/** The longest line is the list of rewritten connections: 65 536 of 72 bytes in base64 are 6.3 MB. */
export const LINE_BYTES_MAX = 16 << 20;

/** The peer could not be asked, or did not answer in time. */
export class PeerUnreachableError extends Error {
  override name = "PeerUnreachableError";
}

/** The peer answered that it could not do what was asked. */
export class PeerRefusedError extends Error {
  override name = "PeerRefusedError";
}

/** The peer sent something that this protocol does not know. */
export class PeerMalformedError extends Error {
  override name = "PeerMalformedError";
}

/** Answers a request; an Error is sent to the peer as a refusal with its message. */
export type RequestHandler = (type: string, body: unknown) => unknown;

/** What an agent says of itself. A newer one may say more. */
const spoken = z.object({
  /** Of colo-agent. */
  version: z.string().min(1).max(64),
  protocol: z.number().int().min(0),
});
export type Spoken = z.output<typeof spoken>;

/** What this agent says of itself. */
export const OWN: Spoken = { version: VERSION, protocol: PROTOCOL };

/**
 * The peer's agent ("agent") has one connection, and its newest one counts. A visitor ("visitor", such as
 * `doctor`) learns that an agent is there and which, and can ask for nothing else.
 */
const purpose = z.enum(["agent", "visitor"]);
export type Purpose = z.output<typeof purpose>;

export const helloBody = spoken.extend({ purpose });
export const helloAnswer = spoken;

const id = z.number().int();
export const requestLine = z.object({ id, type: z.string().max(64), body: z.unknown() });
export const answerLine = z.discriminatedUnion("ok", [
  z.object({ id, ok: z.literal(true), body: z.unknown() }),
  z.object({ id, ok: z.literal(false), error: z.string() }),
]);

/** Parses one line. Throws {@link PeerMalformedError}. */
export function parseLine<V>(schema: z.ZodType<V>, line: string): V {
  try {
    return jsonAs(schema, line, "a line of the peer's");
  } catch (error) {
    throw new PeerMalformedError((error as Error).message, { cause: error });
  }
}

/**
 * Throws {@link PeerRefusedError} if `theirs` is another protocol than this agent's. `at`: the two hosts'
 * addresses.
 */
export function checkProtocol(theirs: Spoken, at: { own: string; peer: string }): void {
  if (theirs.protocol === PROTOCOL) return;
  const one = (host: string, { version, protocol }: Spoken) =>
    `colo-agent ${version} on ${host} speaks protocol ${protocol}`;
  throw new PeerRefusedError(
    `${one(at.own, OWN)}, and ${one(at.peer, theirs)}: install the same version on both hosts`,
  );
}
