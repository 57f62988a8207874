/** `colo-agent failover | unprotect | pause | protect | promote | start | stop | tune | restart`: what an administrator can ask of a running agent. */
import { Command, InvalidArgumentError } from "commander";
import type { OperatorCommand, VmStatus } from "../api/status.ts";

const SOCKET = "/run/colo-agent.sock";
const SOCKET_HELP = "the agent's socket (agent.socket in its configuration)";
const TIMEOUT_MS = 10_000;
const POLL_MS = 200;

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
    operator("start", "start a VM that was shut down, or that the other host does not take over"),
    operator("stop", "shut the VM down on both hosts; it stays off until `start`").option(
      "--timeout <seconds>",
      "what the guest gets to shut itself down; then its QEMU is ended",
      seconds,
      60,
    ),
    tune(),
    restart(),
  ];
}

function restart(): Command {
  return new Command("restart")
    .description("end this host's agent, for its service manager to start it again; protection goes on")
    .option("--socket <path>", SOCKET_HELP, SOCKET)
    .action(async ({ socket }: { socket: string }) => {
      process.stdout.write(`${await post(socket, "/v1/restart")}\n`);
    });
}

function tune(): Command {
  return new Command("tune")
    .description("change what may be changed while a VM runs, until the agent's end")
    .argument("<vm>", "the VM's name in the configuration")
    .option("--period-ms <n>", "longest time between two checkpoints", wholeNumber)
    .option(
      "--resync-bytes-per-second <n>",
      "limit of the copy of the disks to a replica; 0: none",
      wholeNumber,
    )
    .option("--socket <path>", SOCKET_HELP, SOCKET)
    .action(
      async (vm: string, options: { socket: string; periodMs?: number; resyncBytesPerSecond?: number }) => {
        const query = new URLSearchParams();
        if (options.periodMs !== undefined) query.set("period_ms", String(options.periodMs));
        if (options.resyncBytesPerSecond !== undefined)
          query.set("resync_bytes_per_second", String(options.resyncBytesPerSecond));
        process.stdout.write(`${await post(options.socket, `/v1/vm/${vm}/tune?${query}`)}\n`);
      },
    );
}

type Word = OperatorCommand | "start" | "stop";

function operator(name: Word, description: string): Command {
  return new Command(name)
    .description(description)
    .argument("<vm>", "the VM's name in the configuration")
    .option("--socket <path>", SOCKET_HELP, SOCKET)
    .action(
      async (vm: string, options: { socket: string; for?: number; peerIsDown?: true; timeout?: number }) => {
        if (name === "promote" && options.peerIsDown !== true) {
          throw new Error(
            "two hosts that run the same VM ruin its disk and its connections: make sure that the other one is off, then add --peer-is-down",
          );
        }
        const { socket, timeout } = options;
        const forMs =
          timeout !== undefined
            ? timeout * 1000
            : options.for === undefined
              ? undefined
              : options.for * 60_000;
        const query = forMs === undefined ? "" : `?for_ms=${forMs}`;
        const now = await post(socket, `/v1/vm/${vm}/${name}${query}`);
        process.stdout.write(`${name === "stop" ? await untilOff(socket, vm, forMs ?? 0) : now}\n`);
      },
    );
}

/** Waits until the VM is off. Returns what the agent says then; throws if it still runs. */
async function untilOff(socket: string, vm: string, limitMs: number): Promise<string> {
  const deadline = performance.now() + limitMs + TIMEOUT_MS;
  for (;;) {
    const response = await fetch("http://localhost/v1/status", {
      unix: socket,
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const { vms } = (await response.json()) as { vms: VmStatus[] };
    const status = vms.find(({ name }) => name === vm);
    if (status?.off) return status.words.now;
    if (performance.now() > deadline) throw new Error(`VM ${vm} is not off: ${status?.words.now}`);
    await Bun.sleep(POLL_MS);
  }
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

function seconds(text: string): number {
  const value = Number(text);
  if (!(value >= 0 && value <= 24 * 3600)) {
    throw new InvalidArgumentError("must be a number of seconds, at most a day");
  }
  return value;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isInteger(value) || value < 0) throw new InvalidArgumentError("must be a whole number");
  return value;
}
