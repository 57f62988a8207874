/** `colo-agent lab up|down|status`: the lab of two hosts on this machine. */
import Table from "cli-table3";
import { Command, Option } from "commander";
import pc from "picocolors";
import { requireRoot } from "../host/root.ts";
import { Lab } from "../lab/lab.ts";
import type { LabReport } from "../lab/lab_report.ts";
import { JSON_HELP, wholeNumber } from "./arguments.ts";

interface UpOptions {
  name: string;
  json?: boolean;
  kernel?: string;
  initrd?: string;
  append?: string;
  memory: number;
  proxy: "agent" | "none";
}

export function labCommand(): Command {
  const lab = new Command("lab").description("run a lab of two hosts in network namespaces of this machine");
  lab
    .command("up")
    .description("start the lab and wait until its VM is protected (as root)")
    .option("--name <name>", "name of the lab; several labs can run at the same time", "lab")
    .option("--kernel <file>", "kernel of another guest")
    .option("--initrd <file>", "initramfs of that guest")
    .option("--append <args>", "kernel command line; the lab's own guest gets it in addition")
    .option("--memory <MiB>", "memory of the guest, in MiB", wholeNumber(64, 65_536, "MiB"), 256)
    .addOption(
      new Option("--proxy <kind>", "agent: a protected VM; none: one unprotected VM")
        .choices(["agent", "none"])
        .default("agent"),
    )
    .option("--json", JSON_HELP)
    .action(async (options: UpOptions) => {
      requireRoot("start the lab");
      const { proxy } = options;

      if (options.initrd !== undefined && options.kernel === undefined)
        throw new Error("--initrd needs --kernel");
      const started = performance.now();
      const progress = (step: string) => {
        const at = ((performance.now() - started) / 1000).toFixed(1).padStart(5);
        process.stderr.write(`${pc.dim(`${at} s`)}  ${step}\n`);
      };
      const up = await Lab.up(
        {
          name: options.name,
          memoryMib: options.memory,
          proxy,
          ...(options.kernel === undefined ? {} : { kernel: options.kernel }),
          ...(options.initrd === undefined ? {} : { initrd: options.initrd }),
          ...(options.append === undefined ? {} : { append: options.append }),
        },
        options.json ? undefined : progress,
      );
      print(await up.report(), options.json);
      if (!options.json) hints(await up.report(), options.name);
    });
  lab
    .command("status")
    .description("show the lab's processes and whether its VM is protected")
    .option("--name <name>", "name of the lab", "lab")
    .option("--json", JSON_HELP)
    .action(async (options: { name: string; json?: boolean }) => {
      print(await Lab.open(options.name).report(), options.json);
    });
  lab
    .command("down")
    .description("remove the lab, also the remains of a crashed one (as root)")
    .option("--name <name>", "name of the lab", "lab")
    .action(async (options: { name: string }) => {
      requireRoot("remove the lab");
      const found = await Lab.down(options.name);
      process.stdout.write(found ? `lab ${options.name} is down\n` : `there is no lab ${options.name}\n`);
    });
  return lab;
}

function print(report: LabReport, json: boolean | undefined): void {
  if (json) {
    process.stdout.write(`${JSON.stringify(report, undefined, 2)}\n`);
    return;
  }
  const table = new Table({
    head: ["host", "role", "netns", "agent", "qemu", "api"],
    style: { head: [], border: [] },
  });
  for (const host of report.hosts) {
    table.push([
      host.name,
      host.role,
      host.netns,
      host.agent_pid ?? "-",
      host.qemu_pid ?? "-",
      host.api ?? "-",
    ]);
  }
  const state = report.protected ? pc.green("protected") : pc.yellow("not protected");
  process.stdout.write(
    `${table.toString()}\nthe VM is ${state}; guest ${report.guest.ipv4 ?? "(its own addresses)"}\n`,
  );
}

function hints(report: LabReport, name: string): void {
  const inClient = `ip netns exec ${report.client.netns}`;
  const { qemu_pid: qemu, agent_pid: agent } = report.hosts[0] ?? {};
  process.stdout.write(`
  ${inClient} ping ${report.guest.ipv4 ?? "ADDRESS"}          reach the guest
  kill -9 ${qemu ?? "QEMU"} ${agent ?? ""}          lose the primary host
  colo-agent lab status --name ${name}          see who runs the VM
  colo-agent lab down --name ${name}
`);
}
