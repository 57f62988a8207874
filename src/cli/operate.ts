/**
 * `colo-agent failover | unprotect | pause | protect | promote | start | stop | tune | restart`: commands to
 * a running agent.
 */
import { Command } from "commander";
import { carryOut, readStatus } from "../api/client.ts";
import type { OperatorCommand } from "../api/status.ts";
import { decimal, wholeNumber } from "./arguments.ts";

const SOCKET = "/run/colo-agent.sock";
const SOCKET_HELP = "the agent's unix socket, agent.socket of its configuration";
const VM_HELP = "name of the VM in the configuration";
const TIMEOUT_MS = 10_000;
const POLL_MS = 200;
const WEEK_MINUTES = 7 * 24 * 60;
const DAY_SECONDS = 24 * 3600;

export function operatorCommands(): Command[] {
  return [
    operator("failover", "hand the VM over to the other host without losing a frame"),
    operator("unprotect", "end the VM's protection until `protect`"),
    operator("pause", "end the VM's protection for a time").option(
      "--for <minutes>",
      "minutes, at most a week (default: until `protect`)",
      decimal(0.01, WEEK_MINUTES, "minutes"),
    ),
    operator("protect", "protect the VM again after `unprotect` or `pause`"),
    operator("promote", "without an arbiter: run the VM from this host's replica").option(
      "--peer-is-down",
      "confirm that the other host no longer runs the VM",
    ),
    operator("start", "boot a VM that is off, or that the other host does not take over"),
    operator("stop", "shut the VM down on both hosts; it stays off until `start`").option(
      "--timeout <seconds>",
      "seconds for the guest's own shutdown; then its QEMU is ended",
      decimal(0, DAY_SECONDS, "seconds"),
      60,
    ),
    tune(),
    restart(),
  ];
}

function restart(): Command {
  return new Command("restart")
    .description("end this host's agent so that its service manager starts it again; protection continues")
    .option("--socket <path>", SOCKET_HELP, SOCKET)
    .action(async ({ socket }: { socket: string }) => {
      process.stdout.write(`${await carryOut(socket, "/v1/restart", TIMEOUT_MS)}\n`);
    });
}

function tune(): Command {
  return new Command("tune")
    .description("change settings of a running VM until the agent ends")
    .argument("<vm>", VM_HELP)
    .option("--period-ms <n>", "longest time between two checkpoints, 100 to 3600000 ms", anyNumber)
    .option(
      "--resync-bytes-per-second <n>",
      "limit of the copy of the disks to a replica, in bytes/s; 0: no limit",
      anyNumber,
    )
    .option("--socket <path>", SOCKET_HELP, SOCKET)
    .action(
      async (vm: string, options: { socket: string; periodMs?: number; resyncBytesPerSecond?: number }) => {
        const query = new URLSearchParams();
        if (options.periodMs !== undefined) query.set("period_ms", String(options.periodMs));
        if (options.resyncBytesPerSecond !== undefined)
          query.set("resync_bytes_per_second", String(options.resyncBytesPerSecond));
        process.stdout.write(`${await carryOut(options.socket, `/v1/vm/${vm}/tune?${query}`, TIMEOUT_MS)}\n`);
      },
    );
}

/** The agent knows the range. */
const anyNumber = wholeNumber(0, Number.MAX_SAFE_INTEGER);

type Word = OperatorCommand | "start" | "stop";

function operator(name: Word, description: string): Command {
  return new Command(name)
    .description(description)
    .argument("<vm>", VM_HELP)
    .option("--socket <path>", SOCKET_HELP, SOCKET)
    .action(
      async (vm: string, options: { socket: string; for?: number; peerIsDown?: true; timeout?: number }) => {
        if (name === "promote" && options.peerIsDown !== true) {
          throw new Error(
            "two hosts that run the same VM destroy its disk and its connections: make sure that the " +
              "other host is off, then add --peer-is-down",
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
        const now = await carryOut(socket, `/v1/vm/${vm}/${name}${query}`, TIMEOUT_MS);
        process.stdout.write(`${name === "stop" ? await untilOff(socket, vm, forMs ?? 0) : now}\n`);
      },
    );
}

/** Waits until the VM is off. Returns what the agent says then; throws if it still runs. */
async function untilOff(socket: string, vm: string, limitMs: number): Promise<string> {
  const deadline = performance.now() + limitMs + TIMEOUT_MS;
  for (;;) {
    const { vms } = await readStatus(`unix:${socket}`, TIMEOUT_MS);
    const status = vms.find(({ name }) => name === vm);
    if (status?.off) return status.words.now;
    if (performance.now() > deadline) throw new Error(`VM ${vm} is still running: ${status?.words.now}`);
    await Bun.sleep(POLL_MS);
  }
}
