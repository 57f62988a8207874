/** The certificates that QEMUs show each other: their files, checked before they are needed. */
import { X509Certificate } from "node:crypto";
import { join } from "node:path";
import { commonName, readPair } from "./read.ts";

/** What tls-creds-x509 looks for in its directory (crypto/tlscredsx509.c). */
export const CREDENTIAL_FILES = {
  ca: "ca-cert.pem",
  server: { certificate: "server-cert.pem", key: "server-key.pem" },
  client: { certificate: "client-cert.pem", key: "client-key.pem" },
} as const;

/**
 * Reads the five files as this host's. Throws an Error that names the wrong one. An expired one is no error:
 * a VM can still run alone, and the doctor reports it.
 * @returns when the first of them expires, as Date.now() counts
 */
export function checkStreamTls(directory: string, owner: string): { expiresMs: number } {
  const file = (name: string) => join(directory, name);
  const ends: number[] = [];
  for (const kind of ["server", "client"] as const) {
    const { certificate: name, key } = CREDENTIAL_FILES[kind];
    const path = file(name);
    const { tls, certificate } = readPair({
      ca: file(CREDENTIAL_FILES.ca),
      certificate: path,
      key: file(key),
    });
    ends.push(Date.parse(certificate.validTo), Date.parse(new X509Certificate(tls.ca).validTo));
    if (kind === "server" && certificate.checkHost(owner) === undefined) {
      throw new Error(
        `${path} does not carry the DNS name "${owner}" (${certificate.subjectAltName ?? "it has none"}): ` +
          "the certificate must be made for this agent's name",
      );
    }
    if (kind === "client" && (commonName(certificate) !== owner || certificate.subject.includes("\n"))) {
      throw new Error(
        `${path} is for the subject "${certificate.subject.replaceAll("\n", ",")}", but the peer accepts ` +
          `only "CN=${owner}": ` +
          "the certificate must be made for this agent's name",
      );
    }
  }
  return { expiresMs: Math.min(...ends) };
}
