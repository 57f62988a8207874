/** `colo-agent status`: the VMs of an agent, as a table and in sentences. */
import Table from "cli-table3";
import { Command } from "commander";
import type { VmStatus } from "../api/status.ts";
import type { ResyncReading } from "../storage/resync_progress.ts";
import { API_DEFAULT, JSON_HELP } from "./arguments.ts";

interface AgentStatus {
  agent: string;
  version: string;
  peer: { name: string; connected: boolean };
  vms: VmStatus[];
}

export function statusCommand(): Command {
  return new Command("status")
    .description("show the VMs of an agent: who runs each, since when, why, and who would take over")
    .option("--api <url>", "the agent's HTTP interface, http://ADDRESS:PORT", API_DEFAULT)
    .option("--json", JSON_HELP)
    .action(async (options: { api: string; json?: boolean }) => {
      let status: AgentStatus;
      try {
        const response = await fetch(new URL("/v1/status", options.api), {
          signal: AbortSignal.timeout(5_000),
        });
        status = (await response.json()) as AgentStatus;
      } catch (error) {
        throw new Error(
          `no agent answers at ${options.api}: ${(error as Error).message}; give the address of agent.api with --api`,
          { cause: error },
        );
      }
      if (options.json) {
        process.stdout.write(`${JSON.stringify(status, undefined, 2)}\n`);
        return;
      }
      const table = new Table({
        head: ["vm", "role", "phase", "protected", "epoch", "held"],
        style: { head: [], border: [] },
      });
      for (const vm of status.vms) {
        table.push([vm.name, vm.role, vm.phase, vm.protected ? "yes" : "no", vm.epoch, vm.framesHeld]);
      }
      const sentences = status.vms.map(
        ({ name, words, resync }) =>
          `${name}: ${words.now}.\n${resync === undefined ? "" : `  ${resyncInWords(resync)}\n`}  If this host died now: ${words.ifThisHostDies}.\n  If the peer's died: ${words.ifPeerDies}.\n`,
      );
      const link = status.peer.connected ? "connected to" : "NOT connected to";
      process.stdout.write(
        `${status.agent} ${link} ${status.peer.name}\n${table.toString()}\n${sentences.join("")}`,
      );
    });
}

function resyncInWords({
  copiedBytes,
  totalBytes,
  bytesPerSecond,
  remainingSeconds,
  disks,
}: ResyncReading): string {
  const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(0);
  const left = remainingSeconds === undefined ? "" : `, ${Math.ceil(remainingSeconds)} s left`;
  const each = disks.map(
    ({ disk, ...one }) => `${disk} ${mib(one.copiedBytes)} of ${mib(one.totalBytes)} MiB`,
  );
  return `Copying disks: ${mib(copiedBytes)} of ${mib(totalBytes)} MiB, ${mib(bytesPerSecond)} MiB/s${left} (${each.join(", ")}).`;
}
