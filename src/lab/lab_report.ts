/** What `colo-agent lab status` says of a lab. */
import type { VmStatus } from "../api/status.ts";
import { findQemu } from "../qemu/instance.ts";
import { isAlive, type ProcessIdentity } from "../qemu/process.ts";
import { type LabState, LETTERS } from "./lab_state.ts";
import { GUEST_IPV4, GUEST_IPV6, GUEST_MAC, HOST_ADDRESSES, type HostLetter, TAP } from "./network.ts";
import { LAB_PORTS } from "./ports.ts";

interface LabHost {
  name: string;
  netns: string;
  tap: string;
  /** "primary", "secondary" or "none". */
  role: string;
  agent_pid: number | null;
  qemu_pid: number | null;
  /** A QMP socket for people; the agent has another. */
  qmp: string | null;
  /** Reachable from the client's namespace. */
  api: string | null;
}

export interface LabReport {
  client: { netns: string };
  guest: { ipv4: string | null; ipv6: string | null; mac: string };
  protected: boolean;
  hosts: LabHost[];
}

/** @param agentStatus of a host; undefined if its agent does not answer */
export async function labReport(
  state: LabState,
  agentStatus: (letter: HostLetter) => Promise<VmStatus | undefined>,
): Promise<LabReport> {
  const hosts: LabHost[] = [];
  let isProtected = false;
  for (const letter of LETTERS) {
    const host = state.hosts[letter];
    const status = host.agent === undefined ? undefined : await agentStatus(letter);
    if (status?.protected) isProtected = true;
    const qemu = findQemu(host);
    const alive = (identity: ProcessIdentity | undefined) =>
      identity !== undefined && isAlive(identity) ? identity.pid : null;
    hosts.push({
      name: `${state.name}-${letter}`,
      netns: host.netns,
      tap: TAP,
      role: status?.role ?? (state.options.proxy === "none" && letter === "a" ? "primary" : "none"),
      agent_pid: alive(host.agent),
      qemu_pid: qemu?.pid ?? null,
      qmp: qemu === undefined ? null : host.qmp,
      api: alive(host.agent) === null ? null : `http://${HOST_ADDRESSES[letter].lan}:${LAB_PORTS.api}`,
    });
  }
  const { ownGuest, namespaces } = state;
  return {
    client: { netns: namespaces.client },
    guest: { ipv4: ownGuest ? GUEST_IPV4 : null, ipv6: ownGuest ? GUEST_IPV6 : null, mac: GUEST_MAC },
    protected: isProtected,
    hosts,
  };
}
