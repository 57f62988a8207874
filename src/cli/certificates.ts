/** `colo-agent certificates`: the site's CA and a certificate for each agent and witness. */
import { Command } from "commander";
import { type CertificateOptions, makeCertificates, parseCertificateRequest } from "../certificates/make.ts";
import { wholeNumber } from "./arguments.ts";

export function certificatesCommand(): Command {
  return new Command("certificates")
    .description("make the site's CA, if there is none, and a certificate for each agent and witness")
    .argument("<name...>", "an agent's name, or NAME=ADDRESS,... for a witness at these addresses")
    .requiredOption("--directory <path>", "directory of the certificates and of the CA with its key")
    .option("--days <n>", "validity of the certificates, in days", wholeNumber(1, 36_500, "days"), 3_650)
    .option("--renew", "replace existing certificates")
    .option("--qemu", "also make NAME-qemu/ for each agent, the directory of [tls]")
    .action(async (names: string[], options: Omit<CertificateOptions, "requests">) => {
      const written = await makeCertificates({ ...options, requests: names.map(parseCertificateRequest) });
      for (const path of written) process.stdout.write(`${path}\n`);
    });
}
