/**
 * An agent's part for a VM that leaves the configuration; see child.ts. CONFIG is the text of a configuration
 * file.
 *
 *   open VM ID TAP   opens the data plane of an interface and closes it again: gate, pins and devices stay
 *   start CONFIG     what an agent does with leftovers at its start; answers the messages that it logs
 *   doctor CONFIG    the findings of the doctor's check
 */
import { join } from "node:path";
import { removeUnconfigured } from "../../src/agent/open_proxy.ts";
import type { Config } from "../../src/config/config.ts";
import { parseConfig } from "../../src/config/load.ts";
import { runChecks } from "../../src/doctor/check.ts";
import { leftoversCheck } from "../../src/doctor/leftovers.ts";
import type { Logger } from "../../src/host/log.ts";
import { PIN_ROOT } from "../../src/host/pin_root.ts";
import { EbpfNic } from "../../src/proxy/ebpf_nic.ts";

const [objectPath, agent, peerAddress] = process.argv.slice(2) as [string, string, string];

async function open(vm: string, tunnelId: number, tap: string): Promise<string> {
  const nic = await EbpfNic.open(
    {
      tap,
      tunnelId,
      tunnelPort: 4700 + tunnelId,
      peerAddress,
      objectPath,
      pinDirectory: join(PIN_ROOT, agent, vm),
      ringBytes: 1 << 16,
      connectionsMax: 64,
      workers: 1,
      keep: undefined,
      comparing: {
        maxWaitMs: 60_000,
        rules: { passthrough: [], ignore: [] },
        limits: { heldFramesMax: 64, heldFramesPerFlowMax: 64, flowsMax: 64 },
      },
    },
    { diverged: () => undefined, failed: () => undefined },
  );
  await nic.close();
  return "opened";
}

async function start(config: Config): Promise<string[]> {
  const lines: string[] = [];
  const note = (message: string, fields: object = {}) =>
    void lines.push(`${message} ${JSON.stringify(fields)}`);
  const log: Logger = { error: note, warn: note, info: note, debug: note, child: () => log };
  await removeUnconfigured(config, log);
  return lines;
}

function doctor(config: Config) {
  const unused = () => {
    throw new Error("this check asks for nothing but the configuration");
  };
  const context = { config, objectPath: unused, qemu: unused, namespace: unused, directory: unused };
  return runChecks([{ name: "vms", title: "VMs", checks: [leftoversCheck] }], context);
}

process.stdout.write("started\n");
for await (const line of console) {
  const { command, words } = JSON.parse(line) as { command: string; words: string[] };
  try {
    const [first = "", second = "", third = ""] = words;
    const answer =
      command === "open"
        ? await open(first, Number(second), third)
        : await (command === "start" ? start : doctor)(parseConfig(first, "agent.toml"));
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  } catch (error) {
    process.stdout.write(`${JSON.stringify((error as Error).stack)}\n`);
  }
}
