/** `colo-agent failover | unprotect | pause | protect | promote`: what an administrator can ask of a running agent. */
import { Command, InvalidArgumentError } from "commander";
import type { OperatorCommand } from "../agent/vm.ts";

const TIMEOUT_MS = 10_000;

export function operatorCommands(): Command[] {
  return [
    operator("failover", "hand the VM over to the other host, with nothing lost"),
    operator("unprotect", "end the VM's protection in an orderly way, until `protect`"),
    operator("pause", "end the VM's protection for a while").option(
      "--for <minutes>",
      "how long; without it until `protect`",
      minutes,
    ),
    operator("protect", "protect the VM again after `unprotect` or `pause`"),
    operator("promote", "without an arbiter: make this host's replica the VM").option(
      "--peer-is-down",
      "you have seen to it that the other host does not run the VM any more",
    ),
  ];
}

function operator(name: OperatorCommand, description: string): Command {
  return new Command(name)
    .description(description)
    .argument("<vm>", "the VM's name in the configuration")
    .option(
      "--socket <path>",
      "the agent's socket (agent.socket in its configuration)",
      "/run/colo-agent.sock",
    )
    .action(async (vm: string, options: { socket: string; for?: number; peerIsDown?: true }) => {
      if (name === "promote" && options.peerIsDown !== true) {
        throw new Error(
          "two hosts that run the same VM ruin its disk and its connections: make sure that the other one is off, then add --peer-is-down",
        );
      }
      const query = options.for === undefined ? "" : `?for_ms=${options.for * 60_000}`;
      process.stdout.write(`${await post(options.socket, `/v1/vm/${vm}/${name}${query}`)}\n`);
    });
}

async function post(socket: string, path: string): Promise<string> {
  let response: Response;
  let body: { error?: string; now?: string };
  try {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    response = await fetch(`http://localhost${path}`, { method: "POST", unix: socket, signal });
    body = (await response.json()) as typeof body;
  } catch (error) {
    throw new Error(
      `no agent answers on ${socket}: ${(error as Error).message}; give its socket with --socket, and run this as root on its host`,
      { cause: error },
    );
  }
  if (!response.ok) throw new Error(body.error ?? `the agent answered ${response.status}`);
  return body.now ?? "done";
}

function minutes(text: string): number {
  const value = Number(text);
  if (!(value > 0 && value <= 7 * 24 * 60)) {
    throw new InvalidArgumentError("must be a number of minutes, at most a week");
  }
  return value;
}
