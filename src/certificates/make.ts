/**
 * The site's own certificate authority, and a certificate for each agent and witness: ECDSA P-256, PEM files.
 *
 *   ca.pem ca.key        the authority; only new certificates need its key: keep it off the hosts
 *   NAME.pem NAME.key    for NAME, which is the subject's common name and a DNS name in the certificate
 *   NAME-qemu/           what the QEMUs of agent NAME need for TLS between them (src/qmp/tls.ts)
 */
import { createPrivateKey, webcrypto } from "node:crypto";
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { isIP } from "node:net";
import { join } from "node:path";
import { identifier } from "../failover/vm_record.ts";
import { CREDENTIAL_FILES } from "./qemu_files.ts";

interface CertificateRequest {
  name: string;
  /** Addresses or host names under which it is reached, besides its name: a server needs them. */
  addresses: string[];
}

export interface CertificateOptions {
  directory: string;
  requests: CertificateRequest[];
  days: number;
  /** Replace certificates that exist; the authority stays. */
  renew?: boolean;
  /**
   * For names without addresses a folder for QEMU too. A certificate NAME.pem that exists is then no mistake,
   * and stays.
   */
  qemu?: boolean;
}

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const AUTHORITY_DAYS = 36_500;
const DAY_MS = 86_400_000;
/** Clocks of a site differ; a certificate made now must count at once. */
const BACKDATE_MS = 3_600_000;
const SERVER_AUTHENTICATION = "1.3.6.1.5.5.7.3.1";
const CLIENT_AUTHENTICATION = "1.3.6.1.5.5.7.3.2";

/** NAME or NAME=ADDRESS,ADDRESS. Throws an Error that says what is wrong. */
export function parseCertificateRequest(text: string): CertificateRequest {
  const [name = "", list] = text.split("=", 2);
  const checked = identifier.safeParse(name);
  if (!checked.success || name === "ca") {
    throw new Error(
      `"${text}": the name ${checked.success ? "is reserved" : checked.error.issues[0]?.message}`,
    );
  }
  const addresses = list === undefined ? [] : list.split(",");
  for (const address of addresses) {
    if (isIP(address) === 0 && !/^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$/.test(address)) {
      throw new Error(`"${text}": "${address}" is neither an IP address nor a host name`);
    }
  }
  return { name, addresses };
}

/** Makes what is asked for; the authority too if it is not there. Returns the paths written. */
export async function makeCertificates(options: CertificateOptions): Promise<string[]> {
  // Loaded here and not with the module: few runs of the program need it.
  await import("reflect-metadata"); // @peculiar/x509 asks for it
  const x509 = await import("@peculiar/x509");
  const { directory, requests } = options;
  const file = (name: string) => join(directory, name);
  mkdirSync(directory, { recursive: true, mode: 0o700 });
  const has = (name: string) => existsSync(file(`${name}.pem`)) || existsSync(file(`${name}.key`));
  const forQemu = requests.filter(({ addresses }) => options.qemu && addresses.length === 0);
  const forAgents = requests.filter((one) => options.renew || !forQemu.includes(one) || !has(one.name));
  if (!options.renew) {
    const taken = forAgents.find(({ name }) => has(name));
    if (taken !== undefined) throw new Error(`${file(taken.name)}.pem or .key exists; --renew replaces it`);
    const folder = forQemu.find(({ name }) => existsSync(file(`${name}-qemu`)));
    if (folder !== undefined) throw new Error(`${file(folder.name)}-qemu exists; --renew replaces it`);
  }
  if (existsSync(file("ca.pem")) !== existsSync(file("ca.key"))) {
    throw new Error(
      `${directory} holds only one of ca.pem and ca.key; both are needed to make further certificates`,
    );
  }
  const written: string[] = [];
  const write = (name: string, text: string, mode: number) => {
    written.push(file(name));
    writeDurably(file(name), text, mode);
  };
  const newKeys = () => webcrypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const keyPem = async (key: webcrypto.CryptoKey) =>
    x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY");
  const validity = (days: number) => ({
    notBefore: new Date(Date.now() - BACKDATE_MS),
    notAfter: new Date(Date.now() + days * DAY_MS),
  });

  if (!existsSync(file("ca.pem"))) {
    const keys = await newKeys();
    const authority = await x509.X509CertificateGenerator.createSelfSigned({
      name: `CN=colo-agent site ${crypto.randomUUID().slice(0, 8)}`,
      keys,
      signingAlgorithm: ALGORITHM,
      ...validity(AUTHORITY_DAYS),
      extensions: [
        new x509.BasicConstraintsExtension(true, 0, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    write("ca.key", await keyPem(keys.privateKey), 0o600);
    write("ca.pem", `${authority.toString("pem")}\n`, 0o644);
  }
  const authority = new x509.X509Certificate(readFileSync(file("ca.pem"), "utf8"));
  const pkcs8 = createPrivateKey(readFileSync(file("ca.key"), "utf8")).export({
    type: "pkcs8",
    format: "der",
  });
  const signingKey = await webcrypto.subtle.importKey("pkcs8", pkcs8, ALGORITHM, false, ["sign"]);

  const issue = async (
    { name, addresses }: CertificateRequest,
    usages: string[],
    paths: { certificate: string; key: string },
  ) => {
    const keys = await newKeys();
    const names = [name, ...addresses].map((value) => ({
      type: isIP(value) === 0 ? ("dns" as const) : ("ip" as const),
      value,
    }));
    const certificate = await x509.X509CertificateGenerator.create({
      subject: `CN=${name}`,
      issuer: authority.subject,
      publicKey: keys.publicKey,
      signingKey,
      signingAlgorithm: ALGORITHM,
      ...validity(options.days),
      extensions: [
        new x509.BasicConstraintsExtension(false, undefined, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
        new x509.ExtendedKeyUsageExtension(usages),
        new x509.SubjectAlternativeNameExtension(names),
        await x509.AuthorityKeyIdentifierExtension.create(authority),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    write(paths.key, await keyPem(keys.privateKey), 0o600);
    write(paths.certificate, `${certificate.toString("pem")}\n`, 0o644);
  };
  for (const request of forAgents) {
    const { name } = request;
    const paths = { certificate: `${name}.pem`, key: `${name}.key` };
    await issue(request, [SERVER_AUTHENTICATION, CLIENT_AUTHENTICATION], paths);
  }
  for (const request of forQemu) {
    const folder = `${request.name}-qemu`;
    const inside = (name: string) => join(folder, name);
    mkdirSync(file(folder), { recursive: true, mode: 0o700 });
    write(inside(CREDENTIAL_FILES.ca), readFileSync(file("ca.pem"), "utf8"), 0o644);
    for (const [kind, usage] of [
      ["server", SERVER_AUTHENTICATION],
      ["client", CLIENT_AUTHENTICATION],
    ] as const) {
      const { certificate, key } = CREDENTIAL_FILES[kind];
      await issue(request, [usage], { certificate: inside(certificate), key: inside(key) });
    }
  }
  return written;
}

function writeDurably(path: string, text: string, mode: number): void {
  const fd = openSync(path, "w", mode);
  try {
    writeSync(fd, text);
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
