/** The certificates that the configuration names. */
import { X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { readAuthority, readTls } from "../arbiter/tls.ts";
import { type Check, type DoctorContext, type Finding, fail, type Group, ok, warn } from "./check.ts";

const EXPIRY_WARNING_DAYS = 30;
const DAY_MS = 86_400_000;
const RENEW = "Make new ones: colo-agent certificates --renew.";

/** `read` checks the files and throws an Error that names the wrong one. */
function judge(what: string, read: () => { expiresMs: number }): Finding {
  let expiresMs: number;
  try {
    ({ expiresMs } = read());
  } catch (error) {
    return fail((error as Error).message, RENEW);
  }
  const days = Math.floor((expiresMs - Date.now()) / DAY_MS);
  const words = `${what}: good for ${days} days`;
  return days < EXPIRY_WARNING_DAYS ? warn(words, RENEW) : ok(words);
}

function ofArbiter({ config }: DoctorContext): Finding {
  const { arbiter, agent } = config!;
  if (arbiter.type === "none" || arbiter.ca === undefined)
    return ok("the arbiter is asked without certificates");
  const { ca, certificate, key } = arbiter;
  if (certificate === undefined || key === undefined) {
    return judge(ca, () => {
      readAuthority(ca);
      return { expiresMs: Date.parse(new X509Certificate(readFileSync(ca)).validTo) };
    });
  }
  const owner = arbiter.type === "witness" ? agent.name : undefined;
  return judge(certificate, () => readTls({ ca, certificate, key }, owner));
}

const checks: Check[] = [
  { id: "arbiter", title: "Certificate for the arbiter", needsConfig: true, run: ofArbiter },
];

export const certificatesGroup: Group = { name: "certificates", title: "Certificates", checks };
