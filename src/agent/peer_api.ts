/**
 * The requests that the two agents make of each other, and their answers. Every value that arrives from the
 * peer is checked against these schemas before anything uses it. control_channel.ts says how they travel.
 */
import { z } from "zod";
import { port } from "../config/values.ts";
import { PROXY_KINDS } from "../config/vm.ts";
import { identifier } from "../failover/vm_record.ts";
import { checkedAs } from "../host/json.ts";
import type { ProxyEntry } from "../proxy/proxy.ts";
import { PeerMalformedError, type RequestHandler } from "./control_channel.ts";

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER);
/** The longest wait that one agent may ask of the other, in milliseconds. */
const WAIT_MS_MAX = 600_000;

/** Limit for a request that the peer answers from what it knows, in ms. */
export const TELL_TIMEOUT_MS = 1_000;

/** What an agent says of itself for one VM, in heartbeats and in their answers. */
const about = z.object({
  /** Its QEMU waits to become a replica. */
  ready: z.boolean(),
  /** The clients' network has a carrier. */
  uplink: z.boolean(),
});

/** By VM. `generation` names the replica that is asked, where the sender's lease depends on the answer. */
export const heartbeatRequest = z.object({
  vms: z.record(identifier, about.extend({ generation: count.optional() })),
});
export type HeartbeatRequest = z.output<typeof heartbeatRequest>;

/** By VM. `accepted` answers a generation: the sender may extend its lease. */
export const heartbeatAnswer = z.object({
  vms: z.record(identifier, about.extend({ accepted: z.boolean().optional() })),
});
export type HeartbeatAnswer = z.output<typeof heartbeatAnswer>;

const address = { host: z.ipv4(), port };

const secondaryAddresses = z.object({
  migrate: z.object(address),
  /**
   * undefined: the VM has no disk. `exports`: the export's name, by the disk's. `replicaOf`: the generation
   * that the images are a complete replica of, apart from what the primary has written since.
   */
  nbd: z
    .object({ ...address, exports: z.record(z.string(), z.string().min(1)), replicaOf: count.optional() })
    .optional(),
});
export type SecondaryAddresses = z.output<typeof secondaryAddresses>;

/** Characters of base64. The data plane checks the size of what they encode. */
const base64 = z.string().regex(/^[A-Za-z0-9+/]*={0,2}$/, "is not base64");

const proxyEntry: z.ZodType<ProxyEntry> = z.object({
  epoch: count,
  nics: z.array(z.object({ mirroredFrames: count, connections: base64 })),
});

const ofVm = z.object({ vm: identifier });
const ofReplica = ofVm.extend({ generation: count });
const withReason = ofReplica.extend({ reason: z.string() });
const nothing = z.object({});

/** Request type -> schemas of its body and its answer. */
const PEER_REQUESTS = {
  heartbeat: { body: heartbeatRequest, answer: heartbeatAnswer },
  /**
   * Primary to secondary: get QEMU ready for the incoming migration. `tls`: the primary's QEMU speaks TLS.
   */
  prepare_secondary: {
    body: ofReplica.extend({ proxy: z.enum(PROXY_KINDS), tls: z.boolean() }),
    answer: secondaryAddresses,
  },
  /** Primary to secondary: from now on your taps take the primary's input only. */
  enter_secondary: { body: ofReplica.extend({ proxy: proxyEntry }), answer: nothing },
  /**
   * Primary to secondary: my agent was restarted; which epoch does your VM run in? Answered when no
   * checkpoint is under way there.
   */
  resume_secondary: { body: ofReplica, answer: z.object({ epoch: count }) },
  /**
   * To the other agent of a protected VM: I end and start again at once. Answered when no checkpoint is under
   * way.
   */
  restarting: { body: ofReplica, answer: nothing },
  /** Secondary to primary: I have started again, and follow. */
  back: { body: ofReplica, answer: nothing },
  /** Primary to secondary: this replica is no longer valid; forget it. */
  abandon: { body: withReason, answer: nothing },
  /** Primary to secondary: hold what your VM sends from now on, the VM is about to be yours. */
  succeed: { body: ofReplica, answer: nothing },
  /** Primary to secondary: has your VM read all mirrored frames, counted by network interface? */
  drain_input: {
    body: ofVm.extend({
      mirroredFrames: z.array(count),
      timeoutMs: z.number().min(0).max(WAIT_MS_MAX),
    }),
    answer: z.object({ drained: z.boolean() }),
  },
  /** Secondary to primary: the checkpoint is loaded, and the VM runs in this epoch. */
  loaded: { body: ofVm.extend({ epoch: count }), answer: nothing },
  /** Secondary to primary: this replica is no longer valid. */
  replica_lost: { body: withReason, answer: nothing },
  /** Secondary to primary: output was lost here; only a checkpoint makes up for it. */
  checkpoint_wanted: { body: ofVm.extend({ reason: z.string() }), answer: nothing },
  /** Primary to secondary: my VM is gone, and no output of it leaves this host any more. */
  give_up: { body: withReason, answer: nothing },
} as const satisfies Record<string, { body: z.ZodType; answer: z.ZodType }>;

export type PeerRequestType = keyof typeof PEER_REQUESTS;

/** Request type -> [body, answer]. */
export type PeerRequests = {
  [T in PeerRequestType]: [
    z.output<(typeof PEER_REQUESTS)[T]["body"]>,
    z.output<(typeof PEER_REQUESTS)[T]["answer"]>,
  ];
};

const SCHEMAS: {
  [T in PeerRequestType]: { body: z.ZodType<PeerRequests[T][0]>; answer: z.ZodType<PeerRequests[T][1]> };
} = PEER_REQUESTS;

/** How this agent answers each type of request. An Error is a refusal with its message. */
export type PeerHandlers = {
  [T in PeerRequestType]: (body: PeerRequests[T][0]) => PeerRequests[T][1] | Promise<PeerRequests[T][1]>;
};

/** Hands each request to its handler once its body has passed the schema. */
export function checkedRequests(handlers: PeerHandlers): RequestHandler {
  return (type, body) => {
    if (!isRequestType(type)) {
      throw new PeerMalformedError(`there is no request "${type}" in this protocol`);
    }
    return dispatch(handlers, type, body);
  };
}

function isRequestType(type: string): type is PeerRequestType {
  return Object.hasOwn(PEER_REQUESTS, type);
}

function dispatch<T extends PeerRequestType>(handlers: PeerHandlers, type: T, body: unknown): unknown {
  return handlers[type](checked(SCHEMAS[type].body, body, `request "${type}"`));
}

function checked<V>(schema: z.ZodType<V>, value: unknown, what: string): V {
  try {
    return checkedAs(schema, value, `the peer agent's ${what}`);
  } catch (error) {
    throw new PeerMalformedError((error as Error).message, { cause: error });
  }
}

/** What carries requests: the control channel's client. */
interface Requests {
  readonly connected: boolean;
  request(type: string, body: unknown, timeoutMs: number): Promise<unknown>;
}

/** Typed requests to the peer. */
export class Peer {
  constructor(private readonly channel: Requests) {}

  get connected(): boolean {
    return this.channel.connected;
  }

  /**
   * Throws as PeerClient.request does, and {@link PeerMalformedError} for an answer that its schema refuses.
   */
  async ask<T extends PeerRequestType>(
    type: T,
    body: PeerRequests[T][0],
    timeoutMs: number,
  ): Promise<PeerRequests[T][1]> {
    const answer = await this.channel.request(type, body, timeoutMs);
    return checked(SCHEMAS[type].answer, answer, `answer to "${type}"`);
  }
}
