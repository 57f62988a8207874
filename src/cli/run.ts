/** `colo-agent run`: the agent of this host, until a signal or `colo-agent restart` ends it. */
import { Command } from "commander";
import { HostAgent } from "../agent/agent.ts";
import { openFence } from "../agent/fence.ts";
import { openArbiter } from "../arbiter/index.ts";
import { checkStreamTls } from "../certificates/qemu_files.ts";
import { agentPair } from "../config/config.ts";
import { loadConfig } from "../config/load.ts";
import { bpfObject } from "../host/installed.ts";
import { createLogger } from "../host/log.ts";
import { requireRoot } from "../host/root.ts";

const ANSWER_MS = 50;

export function runCommand(): Command {
  return new Command("run")
    .description("run this host's agent (as root)")
    .option("-c, --config <file>", "configuration file", "/etc/colo-agent.toml")
    .option("--check", "only check the configuration file and its certificates")
    .action(async (options: { config: string; check?: boolean }) => {
      const config = await loadConfig(options.config);
      if (options.check) {
        await openArbiter(config.arbiter, agentPair(config), createLogger("warn"));
        openFence(config.fence);
        if (config.tls !== undefined) checkStreamTls(config.tls.directory, config.agent.name);
        const vms = config.vm.length;
        process.stdout.write(`${options.config}: OK, ${vms} VM${vms === 1 ? "" : "s"}\n`);
        return;
      }
      requireRoot("run the agent");
      const log = createLogger(config.agent.log_level, { agent: config.agent.name });
      const agent = await HostAgent.start(config, log, bpfObject());
      const end = () => void agent.close().finally(() => process.exit(0));
      for (const signal of ["SIGTERM", "SIGINT"] as const) {
        process.once(signal, () => {
          log.info("ending; the VMs' output stays under the kernel's lease", { signal });
          end();
        });
      }
      void agent.failed.then((message) => {
        log.error("ending: a new agent has to adopt the VMs", { message });
        process.exit(1);
      });
      void agent.restartWanted.then(() => {
        log.info("ending for a restart");
        setTimeout(end, ANSWER_MS); // lets the command's answer leave first
      });
    });
}
