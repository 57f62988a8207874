/**
 * What an agent says of its VMs over HTTP, and the commands it takes: the contract with the command line, the
 * lab and other programs. Who reads it checks it against these schemas.
 */
import { z } from "zod";
import { PROXY_KINDS } from "../config/vm.ts";
import type { VmInWords } from "../failover/describe.ts";
import { PHASES, type Phase } from "../failover/state.ts";

/** What an administrator can change of a VM while the agent runs. */
export interface TuningValues {
  /** Longest time between two checkpoints, in ms. */
  periodMs: number;
  /** Limit of the copies of all disks together, in bytes/s; 0: no limit. */
  resyncBytesPerSecond: number;
}

const count = z.number().int().min(0);
const phase = z.enum(Object.keys(PHASES) as [Phase, ...Phase[]]);

const words: z.ZodType<VmInWords> = z.object({
  now: z.string(),
  ifThisHostDies: z.string(),
  ifPeerDies: z.string(),
});

const progress = { copiedBytes: z.number(), totalBytes: z.number() };
const resync = z.object({
  ...progress,
  bytesPerSecond: z.number(),
  remainingSeconds: z.number().optional(),
  disks: z.array(z.object({ disk: z.string(), ...progress, follows: z.boolean() })),
});

const vmStatus = z.object({
  name: z.string(),
  phase,
  role: z.string(),
  protected: z.boolean(),
  reason: z.string().optional(),
  /** Sentences for people: who is primary, since when, why, and what would happen if either side died now. */
  words,
  epoch: count,
  term: count.optional(),
  generation: count,
  proxy: z.enum(PROXY_KINDS),
  taps: z.array(z.string()),
  /** Path of QEMU's QMP socket. */
  qmp: z.string(),
  /** The VM is off on this host and stays so, and no work of the agent's on it is under way. */
  off: z.boolean(),
  /** Process id of a QEMU that the agent has started. */
  qemuPid: count.optional(),
  heartbeatAgeMs: z.number().optional(),
  /** Present while the disks are copied to the replica. */
  resync: resync.optional(),
  tuning: z.object({
    periodMs: z.number(),
    resyncBytesPerSecond: z.number(),
  }) satisfies z.ZodType<TuningValues>,
  framesHeld: count,
  counters: z.record(z.string(), z.number()),
});

export type VmStatus = z.output<typeof vmStatus>;

export const agentStatus = z.object({
  agent: z.string(),
  version: z.string(),
  pid: count,
  peer: z.object({ name: z.string(), connected: z.boolean() }),
  vms: z.array(vmStatus),
});
export type AgentStatus = z.output<typeof agentStatus>;

const OPERATOR_COMMANDS = ["failover", "unprotect", "pause", "protect", "promote"] as const;
export type OperatorCommand = (typeof OPERATOR_COMMANDS)[number];

export function isOperatorCommand(word: string): word is OperatorCommand {
  return (OPERATOR_COMMANDS as readonly string[]).includes(word);
}

/** A number of a query, in decimal digits. */
const queryNumber = (max: number) =>
  z
    .string()
    .regex(/^\d+(\.\d+)?$/, "must be a number")
    .transform(Number)
    .pipe(z.number().max(max));
const milliseconds = queryNumber(1e12);

/** The query of a command: `for_ms` of pause and stop, the others of tune. */
export const commandNumbers = z.strictObject({
  for_ms: milliseconds.optional(),
  period_ms: milliseconds.optional(),
  resync_bytes_per_second: queryNumber(1e15).optional(),
});
export type CommandNumbers = z.output<typeof commandNumbers>;

/**
 * The answer to a command: the VM's or the agent's state in words, or why the command was not carried out.
 */
export const commandAnswer = z.union([z.object({ now: z.string() }), z.object({ error: z.string() })]);
