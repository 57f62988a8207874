/** `colo-agent lab up|down|status`: the two-host lab, by hand. */
import Table from "cli-table3";
import { Command, InvalidArgumentError } from "commander";
import pc from "picocolors";
import { requireRoot } from "../host/root.ts";
import { Lab, type LabReport } from "../lab/lab.ts";

interface UpOptions {
  name: string;
  json?: boolean;
  kernel?: string;
  initrd?: string;
  append?: string;
  memory: number;
  proxy: string;
}

function memory(text: string): number {
  const mib = Number(text);
  if (!Number.isInteger(mib) || mib < 64 || mib > 65536) {
    throw new InvalidArgumentError("give whole MiB from 64 to 65536");
  }
  return mib;
}

export function labCommand(): Command {
  const lab = new Command("lab").description("the two-host lab on this machine, in network namespaces");
  lab
    .command("up")
    .description("start it; returns when the VM is protected")
    .option("--name <name>", "several labs can be up side by side", "lab")
    .option("--kernel <file>", "another guest's kernel")
    .option("--initrd <file>", "its initramfs")
    .option("--append <args>", "its kernel command line (added to, for the lab's own guest)")
    .option("--memory <MiB>", "memory of the guest", memory, 256)
    .option("--proxy <kind>", "agent, or none for one unprotected VM", "agent")
    .option("--json", "for machines")
    .action(async (options: UpOptions) => {
      requireRoot("start the lab");
      const { proxy } = options;
      if (proxy !== "agent" && proxy !== "none") throw new Error(`--proxy ${proxy}: must be agent or none`);
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
    .description("show it as it stands now")
    .option("--name <name>", "which lab", "lab")
    .option("--json", "for machines")
    .action(async (options: { name: string; json?: boolean }) => {
      print(await Lab.open(options.name).report(), options.json);
    });
  lab
    .command("down")
    .description("take it down, also what a crash left behind")
    .option("--name <name>", "which lab", "lab")
    .action(async (options: { name: string }) => {
      requireRoot("take the lab down");
      const found = await Lab.down(options.name);
      process.stdout.write(found ? "the lab is down\n" : "there was no lab\n");
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
  process.stdout.write(`
  ${inClient} ping ${report.guest.ipv4 ?? "ADDRESS"}          talk to the guest
  kill -9 ${report.hosts[0]?.qemu_pid ?? "QEMU"} ${report.hosts[0]?.agent_pid ?? ""}          lose the primary host
  colo-agent lab status --name ${name}          see who is in charge
  colo-agent lab down --name ${name}
`);
}
