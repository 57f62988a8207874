/** The VMs of the configuration: their taps and their QEMUs. */
import { existsSync } from "node:fs";
import { checkQemu, QEMU_THAT_WORKS } from "../colo/check.ts";
import type { VmConfig } from "../config/config.ts";
import { checkTap } from "../host/links.ts";
import { QmpClient } from "../qmp/client.ts";
import {
  type Check,
  configOf,
  type DoctorContext,
  type Finding,
  fail,
  failed,
  type Group,
  ok,
  warn,
} from "./check.ts";
import { leftoversCheck } from "./leftovers.ts";

const QMP_LIMIT_MS = 1_500;

async function taps({ nic }: VmConfig): Promise<Finding[]> {
  return Promise.all(
    nic.map(({ tap }) => oneTap(tap).catch((error: Error) => failed(error, "See docs/configuration.md."))),
  );
}

async function oneTap(name: string): Promise<Finding> {
  const facts = await checkTap(name);
  if (facts.linkinfo?.info_data?.vnet_hdr === false)
    return fail(
      `${name} was made without vnet_hdr`,
      `Make it again: ip tuntap add dev ${name} mode tap vnet_hdr.`,
    );
  if (facts.master === undefined)
    return warn(
      `${name} is not in a bridge`,
      `Add it to the bridge of the clients: ip link set ${name} master BRIDGE.`,
    );
  return ok(`${name}, port of ${facts.master}`);
}

async function runningQemu({ qmp }: VmConfig): Promise<Finding[]> {
  if (!existsSync(qmp)) {
    return [
      warn(
        `there is no QMP socket at ${qmp}`,
        `Start its QEMU with -qmp unix:${qmp},server=on,wait=off (docs/qemu.md).`,
      ),
    ];
  }
  let client: QmpClient;
  try {
    client = await QmpClient.connect(qmp, { connectTimeoutMs: QMP_LIMIT_MS });
  } catch {
    // QEMU serves one client per socket.
    return [ok(`${qmp} is in use, normally by the agent: see colo-agent status`)];
  }
  try {
    const { verdict, warnings, version, runState } = await checkQemu(client);
    const name = `QEMU ${version.major}.${version.minor}.${version.micro}, ${runState}`;
    const first = verdict.verdict === "works" ? ok(name) : warn(verdict.sentence, `Use ${QEMU_THAT_WORKS}.`);
    return [first, ...warnings.map((one) => warn(one, "Change its command line, on both hosts."))];
  } catch (error) {
    return [failed(error, `Use ${QEMU_THAT_WORKS}.`)];
  } finally {
    client.close();
  }
}

function forEachVm(look: (vm: VmConfig) => Promise<Finding | Finding[]>): Check["run"] {
  return async (context: DoctorContext) => {
    const findings: Finding[] = [];
    for (const vm of configOf(context).vm) {
      const found = await look(vm).catch((error: Error) => failed(error, "See docs/configuration.md."));
      for (const one of Array.isArray(found) ? found : [found]) findings.push({ ...one, subject: vm.name });
    }
    return findings;
  };
}

const checks: Check[] = [
  { id: "tap", title: "VM's taps", needsConfig: true, run: forEachVm(taps) },
  { id: "qemu", title: "VM's QEMU", needsConfig: true, run: forEachVm(runningQemu) },
  leftoversCheck,
];

export const vmsGroup: Group = { name: "vms", title: "VMs", checks };
