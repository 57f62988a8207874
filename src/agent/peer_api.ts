/** What the two agents ask of each other (control_channel.ts carries it). */
import type { ProxyEntry, ProxyKind } from "../proxy/proxy.ts";
import type { PeerClient } from "./control_channel.ts";

/** What an agent says of itself for one VM, in heartbeats and in their answers. */
export interface About {
  /** Its QEMU waits to become a replica. */
  ready: boolean;
  /** The clients' network is there. */
  uplink: boolean;
}

export interface HeartbeatRequest {
  /** By VM; `generation` where the sender's lease depends on the answer: it names the replica that is asked. */
  vms: Record<string, About & { generation?: number | undefined }>;
}

export interface HeartbeatAnswer {
  /** By VM; `accepted` where a generation was given: the sender's lease goes on. */
  vms: Record<string, About & { accepted?: boolean }>;
}

export interface SecondaryAddresses {
  migrate: { host: string; port: number };
  /**
   * undefined: the VM has no disk. `exports`: the export's name, by the disk's. `replicaOf`: the generation that the images are
   * a complete replica of, apart from what the primary has written since.
   */
  nbd:
    | { host: string; port: number; exports: Record<string, string>; replicaOf?: number | undefined }
    | undefined;
}

/** request type -> [body, answer] */
export interface PeerRequests {
  heartbeat: [HeartbeatRequest, HeartbeatAnswer];
  /** Primary to secondary: get QEMU ready for the incoming migration. */
  prepare_secondary: [
    /** `tls`: the primary's QEMU speaks TLS. */
    { vm: string; generation: number; proxy: ProxyKind; tls: boolean },
    SecondaryAddresses,
  ];
  /** Primary to secondary: from now on your taps take the primary's input only. */
  enter_secondary: [{ vm: string; generation: number; proxy: ProxyEntry }, Record<string, never>];
  /** Primary to secondary: my agent was restarted; which epoch does your VM run in? Answered when no checkpoint is under way there. */
  resume_secondary: [{ vm: string; generation: number }, { epoch: number }];
  /** To the other agent of a protected VM: I end, and begin again at once. Answered when no checkpoint is under way. */
  restarting: [{ vm: string; generation: number }, Record<string, never>];
  /** Secondary to primary: I am there again, and follow. */
  back: [{ vm: string; generation: number }, Record<string, never>];
  /** Primary to secondary: this replica is of no use any more; forget it. */
  abandon: [{ vm: string; generation: number; reason: string }, Record<string, never>];
  /** Primary to secondary: hold what your VM sends from now on, the VM is about to be yours. */
  succeed: [{ vm: string; generation: number }, Record<string, never>];
  /** Primary to secondary: has your VM read everything that was mirrored? */
  drain_input: [{ vm: string; mirroredFrames: number[]; timeoutMs: number }, { drained: boolean }];
  /** Secondary to primary: the checkpoint is loaded, the VM runs in this epoch. */
  loaded: [{ vm: string; epoch: number }, Record<string, never>];
  /** Secondary to primary: this replica is of no use any more. */
  replica_lost: [{ vm: string; generation: number; reason: string }, Record<string, never>];
  /** Secondary to primary: output was lost here, which only a checkpoint makes up for. */
  checkpoint_wanted: [{ vm: string; reason: string }, Record<string, never>];
  /** Primary to secondary: my VM is gone and nothing of it leaves this host any more. */
  give_up: [{ vm: string; generation: number; reason: string }, Record<string, never>];
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
