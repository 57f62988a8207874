/** Rules that concern several values of the configuration at once. */
import { parseRules } from "../compare/rules.ts";
import type { Config, VmConfig } from "./config.ts";
import { type Timing, timingMistakes } from "./timing.ts";

/** A sentence for each rule that `config` breaks, without the name of the file. Empty: it breaks none. */
export function mistakesOf(config: Config): string[] {
  const { agent, peer, vm: vms } = config;
  const nics = vms.flatMap((vm) => vm.nic);
  return [
    ...timingMistakes(timingOf(config)),
    ...(agent.name === peer.name
      ? [`agent.name and peer.name are both "${agent.name}"; they must differ`]
      : []),
    ...vms.flatMap(ruleMistakes),
    ...(["name", "qmp", "migrate_port"] as const).flatMap((key) => repeated(vms, key, "VMs")),
    ...repeated(
      vms.filter((vm) => vm.disk.length > 0),
      "nbd_port",
      "VMs with disks",
    ),
    ...(["tap", "tunnel_id", "tunnel_port", "proxy_port"] as const).flatMap((key) =>
      repeated(nics, key, "network interfaces ([[vm.nic]])"),
    ),
  ];
}

function timingOf({ heartbeat, arbiter, watchdog }: Config): Timing {
  return {
    heartbeat,
    ...(arbiter.type === "none"
      ? {}
      : {
          arbiter: {
            timeout_ms: arbiter.timeout_ms,
            endpoints: arbiter.type === "etcd" ? arbiter.endpoints.length : 1,
          },
        }),
    ...(watchdog === undefined ? {} : { watchdog }),
  };
}

function ruleMistakes(vm: VmConfig): string[] {
  try {
    parseRules(vm);
    return [];
  } catch (error) {
    return [`vm ${vm.name}: ${(error as Error).message}`];
  }
}

function repeated<K extends string>(items: readonly Record<K, unknown>[], key: K, what: string): string[] {
  const seen = new Set<unknown>();
  const twice = new Set<unknown>();
  for (const { [key]: value } of items) (seen.has(value) ? twice : seen).add(value);
  return [...twice].map((value) => `two ${what} have the same ${key} (${value}); it must be unique`);
}
