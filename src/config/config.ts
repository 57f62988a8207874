/**
 * The agent's configuration as the rest of the program sees it: read, checked, with every default filled in.
 */
import type { QemuSettings } from "../qemu/settings.ts";
import type { ConfigTables } from "./schema.ts";

/**
 * `qmp`: path of QEMU's QMP socket. `managed`: how the agent starts QEMU; undefined if somebody else starts
 * it.
 */
export type VmConfig = Omit<ConfigTables["vm"][number], "qmp" | "qemu"> & {
  qmp: string;
  managed: (QemuSettings & { restart: boolean }) | undefined;
};

export type Config = Omit<ConfigTables, "vm"> & { vm: VmConfig[] };

/** The names of this agent and its peer, which share the records of their VMs. */
export function agentPair({ agent, peer }: Pick<Config, "agent" | "peer">): { name: string; peer: string } {
  return { name: agent.name, peer: peer.name };
}
