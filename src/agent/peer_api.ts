/** What the two agents ask of each other (control_channel.ts carries it). */
import type { PeerClient } from "./control_channel.ts";

export interface HeartbeatRequest {
  /** VMs that the sender holds and whose replica is valid, with the record's term. */
  vms: { name: string; term: number }[];
}

export interface HeartbeatAnswer {
  /** Per VM of the receiver: whether the sender's lease goes on, and whether the receiver could be its secondary. */
  vms: Record<string, { accepted: boolean; ready: boolean; phase: string }>;
}

export interface SecondaryAddresses {
  migrate: { host: string; port: number };
  /** undefined: the VM has no disk. */
  nbd: { host: string; port: number; exportName: string } | undefined;
}

/** request type -> [body, answer] */
export interface PeerRequests {
  heartbeat: [HeartbeatRequest, HeartbeatAnswer];
  /** Primary to secondary: get QEMU ready for the incoming migration. */
  prepare_secondary: [{ vm: string }, SecondaryAddresses];
  /**
   * Primary to secondary: from now on your tap takes mirrored frames only. `connections` (base64 of
   * DataPlane.exportConnections) are those that need rewriting because the VM once took over.
   */
  enter_secondary: [
    { vm: string; epoch: number; mirroredFrames: number; connections: string },
    Record<string, never>,
  ];
  /** Primary to secondary: protecting failed; forget it. */
  abandon: [{ vm: string; reason: string }, Record<string, never>];
  /** Primary to secondary: has your VM read everything that was mirrored? */
  drain_input: [{ vm: string; mirroredFrames: number; timeoutMs: number }, { drained: boolean }];
  /** Secondary to primary: the checkpoint is loaded, the VM runs in this epoch. */
  loaded: [{ vm: string; epoch: number }, Record<string, never>];
  /** Secondary to primary: this replica is of no use any more. */
  replica_lost: [{ vm: string; reason: string }, Record<string, never>];
  /** Secondary to primary: output was lost here, which only a checkpoint makes up for. */
  checkpoint_wanted: [{ vm: string; reason: string }, Record<string, never>];
  /** Primary to secondary: my VM is gone and nothing of it leaves this host any more. */
  give_up: [{ vm: string; reason: string }, Record<string, never>];
}

export type PeerRequestType = keyof PeerRequests;

/** Typed requests to the peer; throws as {@link PeerClient.request} does. */
export class Peer {
  constructor(private readonly client: PeerClient) {}

  get connected(): boolean {
    return this.client.connected;
  }

  ask<T extends PeerRequestType>(
    type: T,
    body: PeerRequests[T][0],
    timeoutMs: number,
  ): Promise<PeerRequests[T][1]> {
    return this.client.request<PeerRequests[T][1]>(type, body, timeoutMs);
  }
}
