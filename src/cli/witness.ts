/** `colo-agent witness`: the arbiter on a third host. */
import { Command } from "commander";
import { createLogger } from "../agent/log.ts";
import { serveWitness } from "../witness/server.ts";

export function witnessCommand(): Command {
  return new Command("witness")
    .description("run the witness that decides who may send (on a third host)")
    .option("--listen <address:port>", "where to listen", "0.0.0.0:7300")
    .option("--directory <path>", "where the records are kept", "/var/lib/colo-agent/witness")
    .action((options: { listen: string; directory: string }) => {
      const match = /^(.+):(\d{1,5})$/.exec(options.listen);
      const port = Number(match?.[2]);
      if (match === null || port > 65535) throw new Error(`--listen ${options.listen}: must be ADDRESS:PORT`);
      const host = match[1]!.replace(/^\[(.*)\]$/, "$1");
      const server = serveWitness({ host, port, directory: options.directory });
      createLogger("info").info("witness", {
        listen: `${server.hostname}:${server.port}`,
        directory: options.directory,
      });
    });
}
