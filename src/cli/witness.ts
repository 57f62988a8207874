/** `colo-agent witness`: the arbiter on a third host. */
import { Command } from "commander";
import { loadWitnessSettings, type WitnessFlags } from "../arbiter/witness_config.ts";
import { serveWitness } from "../arbiter/witness_server.ts";
import { readTls } from "../certificates/read.ts";
import { createLogger } from "../host/log.ts";

export function witnessCommand(): Command {
  return new Command("witness")
    .description("run the witness that decides who may send (on a third host)")
    .option("-c, --config <file>", "TOML file with the same settings; the command line counts more")
    .option("--listen <address:port>", "where to listen [0.0.0.0:7300]")
    .option("--directory <path>", "where the records are kept [/var/lib/colo-agent/witness]")
    .option("--tls-ca <file>", "CA of the site")
    .option("--tls-certificate <file>", "this witness's certificate")
    .option("--tls-key <file>", "its key")
    .option("--insecure", "plain HTTP to other machines: whoever reaches it can take VMs over")
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
        log.warn("NO TLS: whoever reaches this address can take the VMs over", { listen: witness.host });
      }
      for (const signal of ["SIGTERM", "SIGINT"] as const) {
        process.once(signal, () => void witness.close().finally(() => process.exit(0)));
      }
    });
}
