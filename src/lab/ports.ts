/** Ports of the lab's own programs. The guest's are in guest_ports.ts. */
export const LAB_PORTS = {
  witness: 7300,
  /** Between the agents, over the replication link. */
  control: 7400,
  /** The agents' HTTP. */
  api: 7401,
  /** The agents' heartbeats over the clients' network. */
  clientPath: 7402,
} as const;
