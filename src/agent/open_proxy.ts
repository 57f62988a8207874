/** From a VM's configuration to its data plane. */
import { dirname, join } from "node:path";
import type { Config, VmConfig } from "../config/config.ts";
import { checkTap } from "../host/links.ts";
import type { Logger } from "../host/log.ts";
import { PIN_ROOT } from "../host/pin_root.ts";
import { EbpfProxy } from "../proxy/ebpf.ts";
import type { EbpfNicOptions } from "../proxy/ebpf_nic.ts";
import { type ConfiguredVm, removeDataPlane, removeLeftovers } from "../proxy/leftovers.ts";
import type { PacketProxy, ProxyEvents } from "../proxy/proxy.ts";
import { QemuProxy } from "../proxy/qemu.ts";
import { TapGate } from "../proxy/tap_gate.ts";
import type { QmpClient } from "../qmp/client.ts";

/** The VMs of a configuration, with the tunnel ids that are in use. */
export function configuredVms(config: Config): ConfiguredVm[] {
  return config.vm.map(({ name, proxy, nic }) => ({
    vm: name,
    tunnelIds: proxy === "ebpf" ? nic.map(({ tunnel_id }) => tunnel_id) : undefined,
  }));
}

/**
 * Removes the data planes of VMs that are no longer configured. An error is logged: other VMs do not wait for
 * it.
 */
export async function removeUnconfigured(config: Config, log: Logger): Promise<void> {
  try {
    await removeLeftovers(join(PIN_ROOT, config.agent.name), configuredVms(config), log);
  } catch (error) {
    log.error("the data plane of a VM that is not in the configuration could not be removed", { error });
  }
}

/**
 * Opens the data plane of a VM, closed for everything, whatever an earlier agent has left; or as that has
 * left it (`keep`), where it can be kept.
 *
 * @param parts.objectPath the compiled BPF programs
 * @throws Error whose message says what to do
 */
export async function openProxy(
  config: VmConfig,
  agent: Config,
  parts: { objectPath: string; qmp: () => QmpClient; log: Logger; keep: EbpfNicOptions["keep"] },
  events: ProxyEvents,
): Promise<PacketProxy> {
  const agentPins = join(PIN_ROOT, agent.agent.name);
  const table = `colo-${agent.agent.name}-${config.name}`;
  // What the other kind has left at the taps would go on dropping: it is taken away when this one is closed.
  if (config.proxy === "qemu") {
    const taps = await Promise.all(config.nic.map(({ tap }) => checkTap(tap)));
    const proxy = await openQemuProxy(config, agent, table, parts, events);
    await removeDataPlane(
      agentPins,
      config.name,
      taps.map(({ ifindex }) => ifindex),
    );
    return proxy;
  }
  const proxy = await openEbpfProxy(config, agent, join(agentPins, config.name), parts, events);
  await TapGate.remove(table);
  return proxy;
}

function openQemuProxy(
  config: VmConfig,
  agent: Config,
  table: string,
  { qmp, log }: { qmp: () => QmpClient; log: Logger },
  events: ProxyEvents,
): Promise<QemuProxy> {
  return QemuProxy.open(
    {
      qmp,
      nics: config.nic.map(({ tap, netdev, proxy_port }, index) => ({
        index,
        tap,
        netdev,
        port: proxy_port,
      })),
      address: agent.agent.control.host,
      peerAddress: agent.peer.control.host,
      // Where QEMU has made its QMP socket it can make others.
      directory: dirname(config.qmp),
      table,
      limits: {
        maxWaitMs: config.checkpoint.max_wait_ms,
        queuedFramesMax: config.limits.held_frames_per_flow_max,
      },
      log,
    },
    events,
  );
}

function openEbpfProxy(
  config: VmConfig,
  agent: Config,
  pinDirectory: string,
  { objectPath, keep }: Pick<EbpfNicOptions, "objectPath" | "keep">,
  events: ProxyEvents,
): Promise<EbpfProxy> {
  const nics = config.nic.map((nic) => ({
    tap: nic.tap,
    tunnelId: nic.tunnel_id,
    tunnelPort: nic.tunnel_port,
    peerAddress: agent.peer.control.host,
    objectPath,
    pinDirectory,
    workers: config.workers,
    ringBytes: config.ring_bytes,
    connectionsMax: config.connections_max,
    keep,
    comparing: {
      maxWaitMs: config.checkpoint.max_wait_ms,
      rules: { passthrough: config.passthrough, ignore: config.ignore },
      limits: {
        heldFramesMax: config.limits.held_frames_max,
        heldFramesPerFlowMax: config.limits.held_frames_per_flow_max,
        flowsMax: config.limits.flows_max,
      },
    },
  }));
  return EbpfProxy.open(nics, events);
}
