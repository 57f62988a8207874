/** The certificates that the configuration names. */
import { X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { CREDENTIAL_FILES, checkStreamTls } from "../certificates/qemu_files.ts";
import { readAuthority, readTls } from "../certificates/read.ts";
import { explained } from "../errors/problem.ts";
import {
  type Check,
  configOf,
  type DoctorContext,
  type Finding,
  fail,
  type Group,
  ok,
  warn,
} from "./check.ts";

const EXPIRY_WARNING_DAYS = 30;
const DAY_MS = 86_400_000;
const RENEW = "Make new ones: colo-agent certificates --renew.";

/** `read` checks the files and throws an Error that names the wrong one. */
function judge(what: string, read: () => { expiresMs: number }, renew = RENEW): Finding {
  let expiresMs: number;
  try {
    ({ expiresMs } = read());
  } catch (error) {
    return fail(explained(error).problem, renew);
  }
  const days = Math.floor((expiresMs - Date.now()) / DAY_MS);
  const words = `${what}: valid for ${days} days`;
  return days < EXPIRY_WARNING_DAYS ? warn(words, renew) : ok(words);
}

function ofArbiter(context: DoctorContext): Finding {
  const { arbiter, agent } = configOf(context);
  if (arbiter.type === "none" || arbiter.ca === undefined)
    return ok("the arbiter is used without certificates");
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

function ofStreams(context: DoctorContext): Finding {
  const { tls, agent } = configOf(context);
  if (tls === undefined) return ok("QEMU's streams to the peer are not encrypted by QEMU (no [tls])");
  const { directory } = tls;
  for (const { key } of [CREDENTIAL_FILES.server, CREDENTIAL_FILES.client]) {
    const path = join(directory, key);
    const mode = statSync(path, { throwIfNoEntry: false })?.mode ?? 0;
    if ((mode & 0o007) !== 0) return fail(`every user of this host can read ${path}`, `chmod o= ${path}`);
  }
  const renew = `Make new ones: colo-agent certificates --qemu --renew ${agent.name}.`;
  return judge(
    directory,
    () => {
      const { expiresMs } = checkStreamTls(directory, agent.name);
      if (expiresMs <= Date.now()) {
        throw new Error(
          `a certificate in ${directory} expired on ${new Date(expiresMs).toUTCString()}: the VM cannot ` +
            "be protected again",
        );
      }
      return { expiresMs };
    },
    renew,
  );
}

const checks: Check[] = [
  { id: "arbiter", title: "Certificate for the arbiter", needsConfig: true, run: ofArbiter },
  { id: "streams", title: "Certificates of QEMU's streams", needsConfig: true, run: ofStreams },
];

export const certificatesGroup: Group = { name: "certificates", title: "Certificates", checks };
