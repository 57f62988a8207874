/** What an agent says of a VM over HTTP, and the commands it takes: the contract with the command line, the lab and other programs. */

import type { ProxyKind } from "../config/vm.ts";
import type { VmInWords } from "../failover/describe.ts";
import type { Phase } from "../failover/state.ts";
import type { ResyncReading } from "../storage/resync_progress.ts";

/** What an administrator can change of a VM while the agent runs. */
export interface TuningValues {
  /** Longest time between two checkpoints. */
  periodMs: number;
  /** Of the copies of all disks together; 0: no limit. */
  resyncBytesPerSecond: number;
}

export interface VmStatus {
  name: string;
  phase: Phase;
  role: string;
  protected: boolean;
  reason: string | undefined;
  /** Sentences for people: who is primary, since when, why, and what would happen if either side died now. */
  words: VmInWords;
  epoch: number;
  term: number | undefined;
  generation: number;
  proxy: ProxyKind;
  taps: string[];
  qmp: string;
  /** The VM is off on this host and stays so, and nothing of it is under way any more. */
  off: boolean;
  /** Of a QEMU that the agent has started. */
  qemuPid?: number | undefined;
  heartbeatAgeMs: number | undefined;
  /** The disks are being copied to the replica. */
  resync: ResyncReading | undefined;
  tuning: TuningValues;
  framesHeld: number;
  counters: Record<string, number>;
}

const OPERATOR_COMMANDS = ["failover", "unprotect", "pause", "protect", "promote"] as const;
export type OperatorCommand = (typeof OPERATOR_COMMANDS)[number];

export function isOperatorCommand(word: string): word is OperatorCommand {
  return (OPERATOR_COMMANDS as readonly string[]).includes(word);
}
