/** `colo-agent certificates`: the site's CA and a certificate for each agent and witness. */
import { Command, InvalidArgumentError } from "commander";
import { type CertificateOptions, makeCertificates, parseCertificateRequest } from "../certificates/make.ts";

function days(text: string): number {
  const number = Number(text);
  if (!Number.isInteger(number) || number < 1 || number > 36_500) {
    throw new InvalidArgumentError("give whole days from 1 to 36500");
  }
  return number;
}

export function certificatesCommand(): Command {
  return new Command("certificates")
    .description("make the site's CA (once) and a certificate for each agent and witness")
    .argument("<name...>", "an agent's name, or NAME=ADDRESS,... for a witness that is reached there")
    .requiredOption("--directory <path>", "where the files are, and the CA with its key")
    .option("--days <n>", "validity of the certificates", days, 3_650)
    .option("--renew", "replace certificates that exist")
    .option("--qemu", "also NAME-qemu/ for each agent: what [tls] needs")
    .action(async (names: string[], options: Omit<CertificateOptions, "requests">) => {
      const written = await makeCertificates({ ...options, requests: names.map(parseCertificateRequest) });
      for (const path of written) process.stdout.write(`${path}\n`);
    });
}
