/** `colo-agent certificates`, and what is said about certificates that do not fit. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { X509Certificate } from "node:crypto";
import { copyFileSync, existsSync, readFileSync, rmSync, statSync } from "node:fs";
import { parseCertificateRequest } from "../../src/certificates/make.ts";
import { checkStreamTls } from "../../src/certificates/qemu_files.ts";
import { readTls } from "../../src/certificates/read.ts";
import { tlsPaths, Workplace } from "../arbiter/servers.ts";

let workplace: Workplace;
beforeEach(() => {
  workplace = new Workplace();
});
afterEach(async () => await workplace[Symbol.asyncDispose]());

function certificates(...words: string[]) {
  const main = new URL("../../src/cli/main.ts", import.meta.url).pathname;
  const directory = workplace.path("certificates");
  const result = Bun.spawnSync([process.execPath, main, "certificates", "--directory", directory, ...words]);
  return { status: result.exitCode, output: result.stdout.toString(), complaint: result.stderr.toString() };
}

const certificate = (name: string) =>
  new X509Certificate(readFileSync(tlsPaths(workplace, name).certificate));

test("one CA, a certificate for each name, keys for their owner only", () => {
  expect(certificates("witness=192.0.2.3,witness.example", "host-a", "host-b").status).toBe(0);
  const ca = certificate("ca");
  expect(ca.ca).toBe(true);
  expect(ca.verify(ca.publicKey)).toBe(true);
  for (const name of ["witness", "host-a", "host-b"]) {
    const made = certificate(name);
    expect(made.subject).toBe(`CN=${name}`);
    expect(made.ca).toBe(false);
    expect(made.checkIssued(ca)).toBe(true);
    expect(made.verify(ca.publicKey)).toBe(true);
    expect(made.checkHost(name)).toBe(name);
    expect(statSync(tlsPaths(workplace, name).key).mode & 0o777).toBe(0o600);
    expect(readTls(tlsPaths(workplace, name), name).tls.cert).toContain("BEGIN CERTIFICATE");
  }
  expect(statSync(tlsPaths(workplace, "ca").key).mode & 0o777).toBe(0o600);
  expect(certificate("witness").checkIP("192.0.2.3")).toBe("192.0.2.3");
  expect(certificate("witness").checkHost("witness.example")).toBe("witness.example");
  expect(certificate("host-a").checkIP("192.0.2.3")).toBeUndefined();
});

test("later ones come from the same CA; nothing is replaced unless told", () => {
  expect(certificates("host-a").status).toBe(0);
  const ca = certificate("ca").fingerprint256;
  const first = certificate("host-a").fingerprint256;
  expect(certificates("host-b", "host-a")).toMatchObject({
    status: 1,
    complaint: expect.stringContaining("--renew replaces it"),
  });
  expect(() => certificate("host-b")).toThrow(); // nothing was begun
  expect(certificates("host-b").status).toBe(0);
  expect(certificates("--renew", "--days", "3", "host-a").status).toBe(0);
  expect(certificate("ca").fingerprint256).toBe(ca);
  expect(certificate("host-a").fingerprint256).not.toBe(first);
  expect(certificate("host-a").checkIssued(certificate("ca"))).toBe(true);
  const days = (Date.parse(certificate("host-a").validTo) - Date.now()) / 86_400_000;
  expect(days).toBeGreaterThan(2.9);
  expect(days).toBeLessThanOrEqual(3);
  rmSync(tlsPaths(workplace, "ca").key);
  expect(certificates("host-c").complaint).toContain("only one of ca.pem and ca.key");
});

test("files that do not fit together are told", () => {
  expect(certificates("host-a", "host-b").status).toBe(0);
  const [a, b] = [tlsPaths(workplace, "host-a"), tlsPaths(workplace, "host-b")];
  expect(() => readTls(a, "host-b")).toThrow(/certificate of "host-a", but this agent is "host-b"/);
  expect(() => readTls({ ...a, key: b.key })).toThrow(/is not the key of/);
  expect(() => readTls({ ...a, ca: b.certificate })).toThrow(/is not signed by/);
  expect(() => readTls({ ...a, certificate: a.key })).toThrow(/holds no certificate/);
  expect(() => readTls({ ...a, key: a.certificate })).toThrow(/holds no private key/);
});

test("folders for QEMU's own TLS, beside certificates that exist", () => {
  expect(certificates("host-a").status).toBe(0);
  const first = certificate("host-a").fingerprint256;
  expect(certificates("--qemu", "witness=192.0.2.3", "host-a", "host-b").status).toBe(0);
  expect(certificate("host-a").fingerprint256).toBe(first);
  const folder = (name: string) => workplace.path(`certificates/${name}-qemu`);
  const inside = (name: string, file: string) => `${folder(name)}/${file}`;
  for (const name of ["host-a", "host-b"]) {
    // Made one after the other: a second may have passed between them.
    const ends = ["server", "client"].map((kind) =>
      Date.parse(new X509Certificate(readFileSync(inside(name, `${kind}-cert.pem`))).validTo),
    );
    expect(checkStreamTls(folder(name), name).expiresMs).toBe(Math.min(...ends));
    for (const kind of ["server", "client"]) {
      expect(statSync(inside(name, `${kind}-key.pem`)).mode & 0o777).toBe(0o600);
      const made = new X509Certificate(readFileSync(inside(name, `${kind}-cert.pem`)));
      expect(made.subject).toBe(`CN=${name}`);
      expect(made.keyUsage).toEqual([`1.3.6.1.5.5.7.3.${kind === "server" ? 1 : 2}`]);
      expect(made.checkIssued(certificate("ca"))).toBe(true);
    }
  }
  expect(existsSync(folder("witness"))).toBe(false);
  expect(certificates("--qemu", "host-a").complaint).toContain("host-a-qemu exists; --renew replaces it");
  expect(certificates("--qemu", "--renew", "--days", "3", "host-a").status).toBe(0);
  expect(certificate("host-a").fingerprint256).not.toBe(first);

  // What the agent says of folders that do not fit.
  expect(() => checkStreamTls(folder("host-a"), "host-b")).toThrow(/does not carry the DNS name "host-b"/);
  copyFileSync(inside("host-b", "client-key.pem"), inside("host-a", "client-key.pem"));
  expect(() => checkStreamTls(folder("host-a"), "host-a")).toThrow(/is not the key of/);
  copyFileSync(inside("host-b", "client-cert.pem"), inside("host-a", "client-cert.pem"));
  expect(() => checkStreamTls(folder("host-a"), "host-a")).toThrow(
    /for the subject "CN=host-b", but the peer accepts only "CN=host-a"/,
  );
  rmSync(inside("host-a", "ca-cert.pem"));
  expect(() => checkStreamTls(folder("host-a"), "host-a")).toThrow(
    /cannot read the CA certificate .*ca-cert\.pem/,
  );
});

test("names that cannot be are told", () => {
  for (const text of ["", "UPPER", "a b", "../x", "ca", "a=", "a=10.0.0.1,", "a=x_y", "=1.2.3.4"]) {
    expect(() => parseCertificateRequest(text), text).toThrow();
  }
  expect(parseCertificateRequest("w=2001:2::1,w.example")).toEqual({
    name: "w",
    addresses: ["2001:2::1", "w.example"],
  });
});
