/** What the failover decisions know, learn and ask for; decide.ts decides. No clocks, no I/O, plain data only. */
import type { VmRecord, VmRecordUpdate } from "./vm_record.ts";

/**
 * starting -> alone | resuming | waiting
 * holder:   alone -> protecting -> protected -> going_alone -> alone
 *           resuming -> protected
 *           protected -> handing_over -> stopped
 * other:    waiting -> incoming -> standby -> taking_over -> alone
 * stopped: this agent does nothing more for the VM; its output is dropped in the kernel.
 */
export type Phase =
  | "starting"
  | "alone"
  | "protecting"
  | "resuming"
  | "protected"
  | "going_alone"
  | "handing_over"
  | "waiting"
  | "incoming"
  | "standby"
  | "taking_over"
  | "stopped";

/** How the VM last ran on a host; kept on disk, because without an arbiter nobody else knows. */
export type LastRun = "never" | "alone" | "with_replica" | "as_replica";

/** What a phase says about the host that is in it. */
interface PhaseTraits {
  /** This host's QEMU is the VM that the network sees. */
  holder: boolean;
  /** The role in status and metrics. */
  role: "primary" | "secondary" | "none";
  /** Nothing is under way that a new agent would have to begin again. */
  settled: boolean;
  /** What this host remembers of the VM; undefined: what it remembered before. */
  lastRun?: LastRun;
}

export const PHASES: Readonly<Record<Phase, PhaseTraits>> = {
  starting: { holder: false, role: "none", settled: true },
  alone: { holder: true, role: "primary", settled: true, lastRun: "alone" },
  protecting: { holder: true, role: "primary", settled: false },
  resuming: { holder: true, role: "primary", settled: false },
  protected: { holder: true, role: "primary", settled: false, lastRun: "with_replica" },
  going_alone: { holder: true, role: "primary", settled: false },
  handing_over: { holder: true, role: "primary", settled: false },
  waiting: { holder: false, role: "secondary", settled: true },
  incoming: { holder: false, role: "secondary", settled: false, lastRun: "as_replica" },
  standby: { holder: false, role: "secondary", settled: false, lastRun: "as_replica" },
  taking_over: { holder: false, role: "secondary", settled: false, lastRun: "alone" },
  stopped: { holder: false, role: "none", settled: true },
};

/** Whether this agent's QEMU is the VM that the network sees. */
export function isHolder({ phase }: Pick<State, "phase">): boolean {
  return PHASES[phase].holder;
}

export interface Settings {
  readonly self: string;
  readonly peer: string;
  /** Counts only while there is no record, or no arbiter. */
  readonly configuredRole: "primary" | "secondary";
  /** false: `none`, so nobody is ever promoted without an administrator. */
  readonly arbiter: boolean;
  /** Silence after which the peer counts as lost. */
  readonly timeoutMs: number;
  /** The kernel drops the holder's output this long after the heartbeat that was last answered had been sent. */
  readonly leaseMs: number;
  /** Added to the lease before a takeover: clocks of different rates, scheduling. */
  readonly marginMs: number;
  /** Pause before the arbiter is asked again. */
  readonly arbiterRetryMs: number;
  /** Pause between attempts to protect. */
  readonly protectRetryMs: number;
  /** An agent whose restart was announced counts as lost only after this time. */
  readonly restartMs: number;
  /** Whether a takeover runs the fence command before the VM, and whether it must succeed. */
  readonly fence: "none" | "try" | "required";
}

/** Networks that carry heartbeats: the replication link, and the one that the VM's clients use. */
export type Path = "control" | "client";

/** What is to stand in the arbiter's record. */
export type Goal =
  /** Nobody holds the VM yet: this agent does, alone. */
  | "first"
  /** The holder has no replica here any more. */
  | "renounce"
  /** This agent goes on alone; the replica is out of date from now on. */
  | "invalid"
  /** The replica of this generation may take over. */
  | "valid"
  /** It still may, in the word of this life of the agent. */
  | "still_valid"
  /** This agent is the holder now. */
  | "take";

export interface State {
  readonly settings: Settings;
  phase: Phase;
  /** What QEMU had when this agent found it. */
  found: QemuHas;
  /** Why this host's QEMU can be no part of a pair, a sentence; undefined if it can. */
  unsuitable: string | undefined;
  /** When the phase began. */
  sinceMs: number;
  /** Why the phase is what it is, where that is not plain. */
  reason: string | undefined;
  /** Holder: the term in which this agent became it. */
  term: number | undefined;
  /** The arbiter's record as last seen. */
  record: VmRecord | undefined;
  /**
   * What prolongs the kernel's lease: each completed round of the agent ("self"), only heartbeats that the secondary has
   * answered ("peer"), or nothing.
   */
  leaseFrom: "none" | "self" | "peer";
  /** Counts attempts to protect, over both hosts; names the replica that an attempt makes. */
  generation: number;
  /** Holder: when the newest heartbeat that was answered had been sent. Other: when a heartbeat was last answered. */
  lastAnswerMs: number;
  /** When something was last heard of the peer's agent, by path. */
  heardMs: Record<Path, number>;
  /** The peer's agent closed the control connection, or its kernel did: the host lives, the agent does not. */
  controlClosed: boolean;
  /** The peer's QEMU waits to become a replica. */
  peerReady: boolean;
  ownUplink: boolean;
  peerUplink: boolean;
  /**
   * Protecting: "copying": the procedure runs; "undoing": it was told to end and undoes itself. Protecting and resuming: "answer":
   * waits for the first answered heartbeat.
   */
  protecting: "copying" | "undoing" | "answer" | undefined;
  /** The peer's agent has said that it restarts: until then nothing of it need be heard. */
  peerBackByMs: number;
  /** Handing over: when the secondary was told that it may take the VM. */
  retiredMs: number | undefined;
  /** The frames of a protection that ends may be held, so that going alone has to release them. */
  goingAlone: "probing" | "recording" | "leaving" | undefined;
  /** The secondary sees the primary as lost. */
  claim: { reason: string; sinceMs: number; fence: "none" | "running" | "done" } | undefined;
  /** The holder has said that its VM is gone and that it lets nothing pass any more. */
  givenUp: boolean;
  /** A write that makes this agent the holder may be on its way: no heartbeat is answered any more. */
  committed: boolean;
  goal: Goal | undefined;
  /** The arbiter is being asked; answers with another number are of no interest. */
  call: number | undefined;
  nextCall: number;
  retryAtMs: number;
  protectAtMs: number;
  /** The administrator wants no protection, until then (CLOCK_BOOTTIME) or, with Infinity, until told otherwise. */
  unprotectedUntilMs: number;
  /** Why the VM ends, when it ends in an orderly way. */
  shutdown: string | undefined;
  /** stopped: somebody has to look at this VM first, its QEMU is not to be replaced. */
  needsAdministrator: boolean;
}

/**
 * What an agent finds in its QEMU: a VM that runs (or ran); one that is the primary of a pair and whose output is still held; nothing
 * yet; a replica that another life of the agent kept; or one that its last life had left in good order, to be back at once.
 */
export type QemuHas = "running" | "protected" | "incoming" | "replica" | "following";

export type ArbiterResult =
  | { kind: "record"; record: VmRecord | undefined }
  | { kind: "swapped"; record: VmRecord }
  | { kind: "conflict"; record: VmRecord | undefined }
  | { kind: "unreachable"; reason: string };

export type Event =
  /** The agent has taken its QEMU and its tap over and keeps them blocked, or as they were ("protected", "following"). */
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
  /** The peer, which holds the VM, asks for its lease to be prolonged. */
  | { type: "heartbeat"; path: Path; generation: number }
  | { type: "heartbeat_answered"; path: Path; sentMs: number; generation: number; accepted: boolean }
  /** What the peer said of itself along with a heartbeat or an answer. */
  | { type: "peer_seen"; path: Path; ready: boolean; uplink: boolean }
  | { type: "control_closed" }
  /** The peer's agent is about to end and to begin again at once. */
  | { type: "peer_restarts"; generation: number }
  | { type: "peer_is_back"; generation: number }
  | { type: "peer_gave_up"; generation: number; reason: string }
  | { type: "replica_lost"; generation: number; reason: string }
  | { type: "abandoned"; generation: number; reason: string }
  /** Results of procedures. */
  | { type: "alone" }
  | { type: "primed"; generation: number }
  | { type: "resumed"; generation: number }
  | { type: "protection_failed"; generation: number; entered: boolean; reason: string }
  | { type: "prepare"; generation: number }
  | { type: "prepare_failed"; reason: string }
  | { type: "follow_failed"; reason: string }
  | { type: "entered"; generation: number }
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
  | { type: "uplink"; up: boolean }
  /** The administrator. */
  | { type: "fail_over_wanted"; reason: string }
  | { type: "unprotect_wanted"; untilMs: number }
  | { type: "protect_wanted" }
  | { type: "promote_wanted" };

export type Action =
  | { type: "read_record"; call: number }
  | { type: "swap_record"; call: number; expectedRevision: number; record: VmRecordUpdate }
  /** Frames may leave until then (CLOCK_BOOTTIME), unless they may for longer already. */
  | { type: "extend_lease"; untilMs: number }
  /** Nothing of the VM leaves or reaches it; the lease ends now. */
  | { type: "block" }
  /** The lease ends now, but input is mirrored a moment longer, until the network sends it to the VM's new host. */
  | { type: "retire" }
  | { type: "answer_heartbeat"; accepted: boolean }
  /** Let everything through, get QEMU out of COLO; ends in `alone`. */
  | { type: "run_alone" }
  /** Ask QEMU for a sign of life, cutting connections it may hang on; ends in `qemu_answers`, `qemu_silent` or `qemu_gone`. */
  | { type: "probe_qemu" }
  | { type: "protect"; generation: number }
  /** One checkpoint with the replica that an earlier life of the agent has made; ends in `resumed` or `pair_broken`. */
  | { type: "resume"; generation: number }
  | { type: "begin_checkpoints" }
  /** The replica's agent is back: a checkpoint, and further ones as before. */
  | { type: "catch_up" }
  /** Ends protection's procedures and checkpoints, whatever they are at. */
  | { type: "end_protection"; reason: string }
  | { type: "hand_over"; generation: number }
  | { type: "prepare_replica"; generation: number }
  | { type: "follow"; generation: number }
  /** Go on following where an earlier life has left off, and tell the primary; may end in `follow_failed`. */
  | { type: "follow_again"; generation: number }
  /** `term`: of the takeover, for the fence command. */
  | { type: "fence"; term: number }
  | { type: "promote"; reason: string }
  | { type: "tell_peer"; what: "give_up" | "replica_lost" | "abandon"; generation: number; reason: string };

export interface Decision {
  state: State;
  actions: Action[];
}

export function initialState(settings: Settings, nowMs: number): State {
  return {
    settings,
    phase: "starting",
    found: "incoming",
    unsuitable: undefined,
    sinceMs: nowMs,
    reason: undefined,
    term: undefined,
    record: undefined,
    leaseFrom: "none",
    generation: 0,
    lastAnswerMs: nowMs,
    heardMs: { control: nowMs, client: Number.NEGATIVE_INFINITY },
    controlClosed: false,
    peerReady: false,
    ownUplink: true,
    peerUplink: true,
    protecting: undefined,
    peerBackByMs: Number.NEGATIVE_INFINITY,
    retiredMs: undefined,
    goingAlone: undefined,
    claim: undefined,
    givenUp: false,
    committed: false,
    goal: undefined,
    call: undefined,
    nextCall: 1,
    retryAtMs: 0,
    protectAtMs: 0,
    unprotectedUntilMs: Number.NEGATIVE_INFINITY,
    shutdown: undefined,
    needsAdministrator: false,
  };
}
