/** From a VM's configuration to its data plane. */
import type { Config, VmConfig } from "../agent/config.ts";
import { EbpfProxy } from "./ebpf.ts";
import type { PacketProxy, ProxyEvents } from "./proxy.ts";

const PIN_ROOT = "/sys/fs/bpf/colo-agent";

/**
 * Opens the data plane of a VM, closed for everything, whatever an earlier agent has left.
 *
 * @param objectPath the compiled BPF programs
 * @throws Error whose message says what to do
 */
export function openProxy(
  config: VmConfig,
  agent: Config,
  objectPath: string,
  events: ProxyEvents,
): Promise<PacketProxy> {
  const pinDirectory = `${PIN_ROOT}/${agent.agent.name}/${config.name}`;
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
