/** `colo-agent witness`: the arbiter on a third host. */
import { Command } from "commander";
import { loadWitnessSettings, type WitnessFlags } from "../arbiter/witness_config.ts";
import { serveWitness } from "../arbiter/witness_server.ts";
import { readTls } from "../certificates/read.ts";
import { createLogger } from "../host/log.ts";

export function witnessCommand(): Command {
  return new Command("witness")
    .description("run the witness, the arbiter on a third host that decides who may send")
    .option("-c, --config <file>", "TOML file with the same settings; the command line has priority")
    .option("--listen <address:port>", "address to listen on (default: 0.0.0.0:7300)")
    .option("--directory <path>", "directory of the records (default: /var/lib/colo-agent/witness)")
    .option("--tls-ca <file>", "PEM file of the site's CA")
    .option("--tls-certificate <file>", "PEM file of the witness's certificate")
    .option("--tls-key <file>", "PEM file of the certificate's key")
    .option(
      "--insecure",
      "allow plain HTTP to other machines: anybody who reaches the address can take VMs over",
    )
    .action(async (flags: WitnessFlags) => {
      const settings = await loadWitnessSettings(flags);
      const log = createLogger(settings.log_level);
      const { ca, certificate, key } = settings;
      const tls = ca && certificate && key ? readTls({ ca, certificate, key }).tls : undefined;
      const { host, port } = settings.listen;
      const witness = await serveWitness({ host, port, directory: settings.directory, tls, log });
      log.info("witness", {
        listen: `${witness.host}:${witness.port}`,
        directory: settings.directory,
        tls: tls !== undefined,
      });
      if (tls === undefined) {
        log.warn("NO TLS: anybody who reaches this address can take the VMs over", { listen: witness.host });
      }
      for (const signal of ["SIGTERM", "SIGINT"] as const) {
        process.once(signal, () => void witness.close().finally(() => process.exit(0)));
      }
    });
}
