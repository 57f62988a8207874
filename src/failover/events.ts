/**
 * What the failover decisions learn. Events that carry a request get exactly one `answer` action, at once or
 * later.
 */
import type { Path, QemuHas } from "./state.ts";
import type { VmRecord } from "./vm_record.ts";

export type ArbiterResult =
  | { kind: "record"; record: VmRecord | undefined }
  | { kind: "swapped"; record: VmRecord }
  | { kind: "conflict"; record: VmRecord | undefined }
  | { kind: "unreachable"; reason: string };

export type Event =
  | (Request & { request: number })
  /**
   * The agent has taken its QEMU and its tap over and keeps them blocked, or as they were ("protected",
   * "following").
   */
  | {
      type: "started";
      vm: QemuHas;
      /** "following": of which generation the replica is. */
      generation?: number | undefined;
      unsuitable?: string | undefined;
    }
  /** A round of the agent's main loop is complete: all its parts have answered. */
  | { type: "round" }
  /** The moment that nextDeadlineMs() named has come, between two rounds. */
  | { type: "deadline" }
  | { type: "arbiter"; call: number; result: ArbiterResult }
  | { type: "heartbeat_answered"; path: Path; sentMs: number; generation: number; accepted: boolean }
  /** What the peer said of itself along with a heartbeat or an answer. */
  | { type: "peer_seen"; path: Path; ready: boolean; uplink: boolean }
  | { type: "control_closed" }
  | { type: "peer_gave_up"; generation: number; reason: string }
  | { type: "replica_lost"; generation: number; reason: string }
  | { type: "abandoned"; generation: number; reason: string }
  /** Results of procedures. */
  | { type: "alone" }
  /** No checkpoint is under way, and none begins. `whose` agent is about to restart. */
  | { type: "checkpoints_paused"; request: number; whose: "own" | "peer"; generation: number }
  /**
   * The peer has been asked to wait for this agent's restart, and does (`refusal` undefined) or does not.
   * `atRest`: the replica here, if there is one, is in no checkpoint.
   */
  | { type: "peer_waits"; request: number; refusal: string | undefined; atRest: boolean }
  /** This agent does not restart after all. */
  | { type: "restart_cancelled" }
  | { type: "primed"; generation: number }
  | { type: "resumed"; generation: number }
  | { type: "protection_failed"; generation: number; entered: boolean; reason: string }
  | { type: "prepare_failed"; reason: string }
  | { type: "follow_failed"; reason: string }
  | { type: "promoted" }
  | { type: "promotion_failed"; reason: string }
  | { type: "fenced"; ok: boolean; output: string }
  | { type: "handed_over" }
  | { type: "hand_over_failed"; reason: string }
  /** This host's QEMU. */
  | { type: "qemu_answers" }
  | { type: "qemu_gone"; reason: string }
  /** Nothing of QEMU answers, but its process is there. */
  | { type: "qemu_silent"; reason: string }
  /** Its main loop does not answer, its out-of-band monitor does. */
  | { type: "qemu_slow"; reason: string }
  | { type: "shutdown"; reason: string }
  | { type: "pair_broken"; reason: string }
  | { type: "disk_error"; disk: "own" | "replica"; reason: string }
  /** A replica's overlays cannot take what the VM writes until the next checkpoint. */
  | { type: "overlays_full"; reason: string }
  | { type: "uplink"; up: boolean };

/** What the peer or the administrator asks for; the answer is yes, or a sentence that says why not. */
export type Request =
  /** The peer, which holds the VM, asks for its lease to be prolonged. */
  | { type: "heartbeat"; path: Path; generation: number }
  /**
   * The primary wants a replica made here. Accepted: the asker prepares QEMU and tells `prepare_failed` if
   * that fails.
   */
  | { type: "prepare"; generation: number }
  /** The primary has stopped its VM for the switch-over. Accepted: the asker follows it from here. */
  | { type: "entered"; generation: number }
  /**
   * The primary is about to hand the VM over. Accepted: the asker holds the replica's output from here on.
   */
  | { type: "succeed"; generation: number }
  /** The primary's agent was restarted and wants to continue with this replica. */
  | { type: "resume_wanted"; generation: number }
  /**
   * The peer's agent is about to end and to begin again at once. Accepted when no checkpoint is under way.
   */
  | { type: "peer_restarts"; generation: number }
  /** The secondary's agent was restarted and follows again. */
  | { type: "peer_is_back"; generation: number }
  /** The administrator. */
  | { type: "restart_wanted" }
  | { type: "fail_over_wanted"; reason: string }
  | { type: "unprotect_wanted"; untilMs: number }
  | { type: "protect_wanted" }
  | { type: "promote_wanted" }
  /** The peer does not take over; the VM is to boot from this host's disks. */
  | { type: "boot_wanted" };
