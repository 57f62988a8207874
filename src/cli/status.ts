/** `colo-agent status`: the VMs of an agent, as a table and in sentences. */
import Table from "cli-table3";
import { Command } from "commander";
import { readStatus } from "../api/client.ts";
import type { VmStatus } from "../api/status.ts";
import { API_DEFAULT, API_HELP, JSON_HELP } from "./arguments.ts";

const STATUS_TIMEOUT_MS = 5_000;

export function statusCommand(): Command {
  return new Command("status")
    .description("show the VMs of an agent: who runs each, since when, why, and who would take over")
    .option("--api <url>", API_HELP, API_DEFAULT)
    .option("--json", JSON_HELP)
    .action(async (options: { api: string; json?: boolean }) => {
      const status = await readStatus(options.api, STATUS_TIMEOUT_MS);
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
          `${name}: ${words.now}.\n${resync === undefined ? "" : `  ${resyncInWords(resync)}\n`}  If this ` +
          `host died now: ${words.ifThisHostDies}.\n  If the peer died: ${words.ifPeerDies}.\n`,
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
}: NonNullable<VmStatus["resync"]>): string {
  const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(0);
  const left = remainingSeconds === undefined ? "" : `, ${Math.ceil(remainingSeconds)} s left`;
  const each = disks.map(
    ({ disk, ...one }) => `${disk} ${mib(one.copiedBytes)} of ${mib(one.totalBytes)} MiB`,
  );
  return (
    `Copying disks: ${mib(copiedBytes)} of ${mib(totalBytes)} MiB, ${mib(bytesPerSecond)} ` +
    `MiB/s${left} (${each.join(", ")}).`
  );
}
