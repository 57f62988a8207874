/** The commands of colo-agent, each a file beside this one. */
import { Command } from "commander";
import { VERSION } from "../host/version.ts";
import { benchCommand } from "./bench.ts";
import { certificatesCommand } from "./certificates.ts";
import { compareCommand } from "./compare.ts";
import { demoCommand } from "./demo.ts";
import { divergencesCommand } from "./divergences.ts";
import { doctorCommand } from "./doctor.ts";
import { explainCommand } from "./explain.ts";
import { labCommand } from "./lab.ts";
import { operatorCommands } from "./operate.ts";
import { runCommand } from "./run.ts";
import { statusCommand } from "./status.ts";
import { witnessCommand } from "./witness.ts";

/** The command line as a whole, not parsed yet. */
export function commandLine(): Command {
  const program = new Command("colo-agent")
    .description("Keeps QEMU virtual machines running through the loss of their host (COLO)")
    .version(VERSION)
    .option("--verbose", "print the causes and the stack of an error")
    .showHelpAfterError("(colo-agent --help lists the commands)");

  const groups: [heading: string, commands: Command[]][] = [
    ["The agent:", [runCommand(), doctorCommand(), statusCommand()]],
    ["A VM's protection:", operatorCommands()],
    ["Divergences:", [divergencesCommand(), explainCommand(), compareCommand()]],
    ["The arbiter:", [witnessCommand(), certificatesCommand()]],
    ["On one machine:", [labCommand(), demoCommand(), benchCommand()]],
  ];
  for (const [heading, commands] of groups) {
    for (const command of commands) program.addCommand(command.helpGroup(heading));
  }

  return program;
}
