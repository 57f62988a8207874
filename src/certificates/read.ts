/** Certificates and keys from files, checked when they are read, so that a mistake is found at start. */

import { createPrivateKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { Problem } from "../errors/problem.ts";

/** PEM texts, in the form that both Bun's fetch and node:tls take. */
export interface TlsFiles {
  /** The site's certificate authority: nobody else is trusted. */
  ca: string;
  cert?: string;
  key?: string;
}

interface TlsPaths {
  ca: string;
  certificate: string;
  key: string;
}

function readPem(path: string, what: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new Error(`cannot read the ${what} ${path}: ${(error as Error).message}`, { cause: error });
  }
}

function parse<T>(path: string, what: string, parser: () => T): T {
  try {
    return parser();
  } catch (error) {
    throw new Error(`${path} holds no ${what} in PEM form`, { cause: error });
  }
}

/** Common name of a certificate's subject, undefined when it has none. */
export function commonName(certificate: X509Certificate): string | undefined {
  return /^CN=(.+)$/m.exec(certificate.subject)?.[1];
}

/** Reads the CA alone: to check a server without showing a certificate of one's own. */
export function readAuthority(path: string): string {
  const ca = readPem(path, "CA certificate");
  parse(path, "certificate", () => new X509Certificate(ca));
  return ca;
}

/**
 * Reads three files that belong together, whether they still count or not. Throws an Error that says which is
 * wrong.
 */
export function readPair(paths: TlsPaths): { tls: Required<TlsFiles>; certificate: X509Certificate } {
  const ca = readAuthority(paths.ca);
  const cert = readPem(paths.certificate, "certificate");
  const key = readPem(paths.key, "key");
  const certificate = parse(paths.certificate, "certificate", () => new X509Certificate(cert));
  const privateKey = parse(paths.key, "private key", () => createPrivateKey(key));
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new Problem(
      `${paths.key} is not the key of ${paths.certificate}`,
      "give the two that were made together",
    );
  }
  if (!certificate.verify(new X509Certificate(ca).publicKey)) {
    throw new Problem(
      `${paths.certificate} is not signed by ${paths.ca}`,
      "give certificates of one CA, the site's",
    );
  }
  return { tls: { ca, cert, key }, certificate };
}

/**
 * As {@link readPair}, for a certificate that counts now. `owner`: whom the certificate must name.
 */
export function readTls(paths: TlsPaths, owner?: string): { tls: Required<TlsFiles>; expiresMs: number } {
  const { tls, certificate } = readPair(paths);
  const expiresMs = Date.parse(certificate.validTo);
  if (expiresMs <= Date.now()) {
    throw new Problem(
      `${paths.certificate} expired on ${certificate.validTo}`,
      "make a new one (colo-agent certificates --renew)",
    );
  }
  const name = commonName(certificate);
  if (owner !== undefined && name !== owner) {
    throw new Problem(
      `${paths.certificate} is the certificate of "${name}", but this agent is "${owner}"`,
      "give the certificate that was made for the agent's name",
    );
  }
  return { tls, expiresMs };
}
