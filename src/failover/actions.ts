/**
 * What the failover decisions ask for. Each action carries all that it needs, so it can be logged, replayed
 * and tested as a value.
 */
import type { State } from "./state.ts";
import type { VmRecordUpdate } from "./vm_record.ts";

export type Action =
  | { type: "read_record"; call: number }
  | { type: "swap_record"; call: number; expectedRevision: number; record: VmRecordUpdate }
  /** Frames may leave until then (CLOCK_BOOTTIME), unless they may for longer already. */
  | { type: "extend_lease"; untilMs: number }
  /**
   * Nothing of the VM leaves or reaches it; the lease ends now. `reason`: what becomes of the frames that are
   * held.
   */
  | { type: "block"; reason: string }
  /** The lease ends now; input is still mirrored, until the network sends it to the VM's new host. */
  | { type: "retire" }
  /** The answer to a request; `refusal` undefined: yes. */
  | { type: "answer"; request: number; refusal: string | undefined }
  /** Let everything through, get QEMU out of COLO; ends in `alone`. */
  | { type: "run_alone" }
  /**
   * Probe QEMU, cutting connections it may hang on; ends in `qemu_answers`, `qemu_silent` or
   * `qemu_gone`.
   */
  | { type: "probe_qemu" }
  | { type: "protect"; generation: number }
  /**
   * One checkpoint with the replica that this host's agent made before it was restarted; ends in `resumed` or
   * `pair_broken`.
   */
  | { type: "resume"; generation: number }
  | { type: "begin_checkpoints" }
  /** The replica's agent is back: a checkpoint, and further ones as before. */
  | { type: "catch_up" }
  /** Ends protection's procedures and checkpoints, whatever they are at. */
  | { type: "end_protection"; reason: string }
  | { type: "hand_over"; generation: number }
  /**
   * Follow from where the agent stopped for its restart, and tell the primary; may end in `follow_failed`.
   */
  | { type: "follow_again"; generation: number }
  /** `term`: of the takeover, for the fence command. */
  | { type: "fence"; term: number }
  | { type: "promote"; reason: string }
  /** A hand-over is over: what the VM sends is not held any more. */
  | { type: "end_succession" }
  /**
   * No further checkpoint, and none under way: one of the two agents restarts. Ends in `checkpoints_paused`.
   */
  | { type: "pause_checkpoints"; request: number; whose: "own" | "peer"; generation: number }
  /** Ask the peer to wait for this agent's restart. Ends in `peer_waits`. */
  | { type: "ask_peer_to_wait"; request: number; generation: number }
  | {
      type: "tell_peer";
      what: "give_up" | "replica_lost" | "abandon" | "back";
      generation: number;
      reason: string;
    };

export interface Decision {
  state: State;
  actions: Action[];
}
