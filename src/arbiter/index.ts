/** The arbiter that the configuration names. */
import { readFileSync } from "node:fs";
import { readAuthority, readTls, type TlsFiles } from "../certificates/read.ts";
import type { ArbiterConfig, EtcdConfig } from "../config/arbiter.ts";
import type { Logger } from "../host/log.ts";
import type { Arbiter } from "./arbiter.ts";
import { EtcdArbiter } from "./etcd.ts";
import { NoArbiter } from "./no_arbiter.ts";
import { WitnessClient } from "./witness_client.ts";

export type { VmRecord, VmRecordUpdate } from "../failover/vm_record.ts";
export { type Arbiter, ArbiterRefusedError, ArbiterUnreachableError, type SwapResult } from "./arbiter.ts";

const EXPIRY_WARNING_MS = 30 * 86_400_000;

/**
 * Opens the arbiter, without asking it anything yet. Throws an Error when certificates do not fit.
 */
export async function openArbiter(
  arbiter: ArbiterConfig,
  { name, peer }: { name: string; peer: string },
  log: Logger,
): Promise<Arbiter> {
  if (arbiter.type === "none") {
    log.warn(
      'there is no arbiter ([arbiter] type = "none"): NO AUTOMATIC PROMOTION. When the primary is lost, ' +
        "this host does not take its VMs over",
    );
    return new NoArbiter();
  }
  const agents = [name, peer] as const;
  const owner = arbiter.type === "witness" ? name : undefined;
  const tls = tlsOf(arbiter, owner, log);
  if (tls === undefined) {
    log.warn("the arbiter is used over plain HTTP: anybody who reaches it can take the VMs over", {
      arbiter: arbiter.type,
    });
  }
  const timeoutMs = arbiter.timeout_ms;
  if (arbiter.type === "witness") return new WitnessClient({ url: arbiter.url, agents, tls, timeoutMs });
  const { endpoints, prefix } = arbiter;
  return new EtcdArbiter({ endpoints, prefix, agents, tls, credentials: credentialsOf(arbiter), timeoutMs });
}

function tlsOf(
  arbiter: Exclude<ArbiterConfig, { type: "none" }>,
  owner: string | undefined,
  log: Logger,
): TlsFiles | undefined {
  const { ca, certificate, key } = arbiter;
  if (ca === undefined) return undefined;
  if (certificate === undefined || key === undefined) return { ca: readAuthority(ca) };
  const files = readTls({ ca, certificate, key }, owner);
  if (files.expiresMs < Date.now() + EXPIRY_WARNING_MS) {
    log.warn(
      "the certificate for the arbiter expires soon: make a new one (colo-agent certificates --renew)",
      {
        certificate,
        expires: new Date(files.expiresMs).toISOString(),
      },
    );
  }
  return files.tls;
}

function credentialsOf({ user, password_file }: EtcdConfig): { user: string; password: string } | undefined {
  if (user === undefined || password_file === undefined) return undefined;
  try {
    const [password = ""] = readFileSync(password_file, "utf8").split("\n", 1);
    return { user, password: password.trimEnd() };
  } catch (error) {
    throw new Error(`cannot read arbiter.password_file: ${(error as Error).message}`, { cause: error });
  }
}
