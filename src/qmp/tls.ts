/**
 * QEMU's own TLS for what two QEMUs send each other: the migration stream and the disks' NBD connections.
 *
 * The secondary's QEMU is the server of both, the primary's the client; each shows a certificate. The
 * server's has to carry the peer's name as a DNS name, the client's as its subject, "CN=NAME". All that is
 * made here is named below and removed again, so that a QEMU can change its side any number of times.
 */
import type { QmpClient } from "./client.ts";
import { QmpError } from "./errors.ts";
import { qomEntries, query } from "./query.ts";
import { messageOf } from "./vm.ts";

export interface StreamTls {
  /**
   * The five files of src/certificates/qemu_files.ts, readable for QEMU; QEMU reads them at each protection.
   */
  directory: string;
  /** GnuTLS's priority string; left out: QEMU's default. */
  priority?: string | undefined;
  /** Whom the other side's certificate has to name. */
  peerName: string;
}

export const TLS_CREDENTIALS = "colo-tls";
export const TLS_PEER = "colo-tls-peer";

/**
 * Makes the credentials of this side and lets the next migration use them; what an earlier protection has
 * left is removed first. Without `tls` it is only that.
 */
export async function setTls(
  client: QmpClient,
  endpoint: "server" | "client",
  tls: StreamTls | undefined,
): Promise<void> {
  await removeTls(client);
  if (tls === undefined) return;
  const { directory, priority, peerName } = tls;
  await client.execute("object-add", {
    "qom-type": "tls-creds-x509",
    id: TLS_CREDENTIALS,
    dir: directory,
    endpoint,
    "verify-peer": true,
    ...(priority === undefined ? {} : { priority }),
  });
  if (endpoint === "server") {
    // The subject as GnuTLS writes it (RFC 4514); an agent's name needs no escapes.
    await client.execute("object-add", {
      "qom-type": "authz-simple",
      id: TLS_PEER,
      identity: `CN=${peerName}`,
    });
  }
  await client.execute("migrate-set-parameters", {
    "tls-creds": TLS_CREDENTIALS,
    "tls-hostname": endpoint === "client" ? peerName : "",
    "tls-authz": endpoint === "server" ? TLS_PEER : "",
  });
}

/**
 * QEMU's errors for a connection that the peer has closed. Which one it reports depends on what it was doing:
 * it waited, it wrote, it had begun to save RAM, or it was in GnuTLS.
 */
const CLOSED = new RegExp(
  [
    "non-properly terminated",
    "handshake failed",
    String.raw`\(starttls\)`,
    "reset by peer",
    "Broken pipe",
    "(Channel error|failed): Input/output error",
  ].join("|"),
  "i",
);

/**
 * A server that refuses a client's certificate or its lack of TLS, or that has no TLS itself, only closes the
 * connection. Adds these reasons to such an error; others are returned as they are.
 */
export function explainClosed(error: unknown, withTls: boolean): unknown {
  const message = messageOf(error);
  if (!CLOSED.test(message)) return error;
  const reason = withTls
    ? "With TLS this may mean that the secondary does not accept this host's client certificate, or has " +
      "no TLS"
    : "Without TLS this may mean that the secondary expects TLS";
  return new QmpError(`${message}. The secondary closed the connection; its QEMU's log says why. ${reason}`, {
    cause: error,
  });
}

/** Removes what {@link setTls} has made, if it is there. Connections that are open keep what they have. */
export async function removeTls(client: QmpClient, timeoutMs?: number): Promise<void> {
  const options = timeoutMs === undefined ? {} : { timeoutMs };
  const objects = await query(client, qomEntries, "qom-list", { path: "/objects" }, options);
  const present = [TLS_PEER, TLS_CREDENTIALS].filter((id) => objects.some(({ name }) => name === id));
  if (present.length === 0) return;
  const off = { "tls-creds": "", "tls-hostname": "", "tls-authz": "" };
  await client.execute("migrate-set-parameters", off, options);
  for (const id of present) await client.execute("object-del", { id }, options);
}
