/**
 * What the failover decisions know. events.ts is what they learn, actions.ts what they ask for; decide.ts
 * decides. No clocks, no I/O, plain data only.
 */
import type { VmRecord } from "./vm_record.ts";

/**
 *   starting -> alone | resuming | waiting
 *   holder:     alone -> protecting -> protected -> going_alone -> alone
 *               resuming -> protected
 *               protected -> handing_over -> stopped
 *   other:      waiting -> incoming -> standby -> taking_over -> alone
 *
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

/** The record calls this host the holder, whose VM is gone, and the peer's replica the last copy of it. */
export function awaitsTakeover(s: State): boolean {
  return s.phase === "waiting" && s.record?.holder === s.settings.self;
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
  /**
   * The kernel drops the holder's output this long after the heartbeat that was last answered had been sent.
   */
  readonly leaseMs: number;
  /** Added to the lease before a takeover: clocks of different rates, scheduling. */
  readonly marginMs: number;
  /** Pause before the arbiter is asked again. */
  readonly arbiterRetryMs: number;
  /** Pause between attempts to protect. */
  readonly protectRetryMs: number;
  /** An agent whose restart was announced counts as lost only after this time. */
  readonly restartMs: number;
  /** A peer that is to take the VM over has done so by then, or needs somebody's help. */
  readonly takeoverPatienceMs: number;
  /**
   * The data plane can be adopted by the next agent as this one leaves it, so that a protection outlives a
   * restart of the agent.
   */
  readonly adoptable: boolean;
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
  /** This agent continues alone; the replica is out of date from now on. */
  | "invalid"
  /** The replica of this generation may take over. */
  | "valid"
  /** As `valid`, confirmed by this process: written again at a new revision. */
  | "still_valid"
  /** This agent is the holder now. */
  | "take"
  /**
   * The replica that is to take this host's VM over is out of date: the administrator has the VM booted from
   * its disks here.
   */
  | "boot";

export interface State {
  readonly settings: Settings;
  phase: Phase;
  /** What QEMU had when this agent found it; undefined: it has not looked yet. */
  found: QemuHas | undefined;
  /** Why this host's QEMU can be no part of a pair, a sentence; undefined if it can. */
  unsuitable: string | undefined;
  /** When the phase began. */
  sinceMs: number;
  /** The reason for the phase, where there is one to tell. */
  reason: string | undefined;
  /** Holder: the term in which this agent became it. */
  term: number | undefined;
  /** The arbiter's record as last seen. */
  record: VmRecord | undefined;
  /**
   * What prolongs the kernel's lease: each completed round of the agent ("self"), only heartbeats that the
   * secondary has answered ("peer"), or nothing.
   */
  leaseFrom: "none" | "self" | "peer";
  /** Counts attempts to protect, over both hosts; names the replica that an attempt makes. */
  generation: number;
  /**
   * Holder: when the newest heartbeat that was answered had been sent. Other: when a heartbeat was last
   * answered.
   */
  lastAnswerMs: number;
  /** When something was last heard of the peer's agent, by path. */
  heardMs: Record<Path, number>;
  /**
   * The peer's agent closed the control connection, or its kernel did: the host lives, the agent does not.
   */
  controlClosed: boolean;
  /** The peer's QEMU waits to become a replica. */
  peerReady: boolean;
  ownUplink: boolean;
  peerUplink: boolean;
  /**
   * Protecting: "copying": the procedure runs; "undoing": it was told to end and undoes itself. Protecting
   * and resuming: "answer": waits for the first answered heartbeat.
   */
  protecting: "copying" | "undoing" | "answer" | undefined;
  /** The peer's agent has announced its restart: until then its silence means nothing. */
  peerBackByMs: number;
  /** This agent is about to end and to begin again; the peer has been asked, or is about to be. */
  restarting: boolean;
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
  /** The replica's output waits for this host to be the VM's: the primary hands the VM over. */
  succeeding: boolean;
  /** After a hand-over: when the network has learnt from the VM's own frames where it is now. */
  succeededAtMs: number | undefined;
  goal: Goal | undefined;
  /** The arbiter is being asked; answers with another number are of no interest. */
  call: number | undefined;
  nextCall: number;
  retryAtMs: number;
  protectAtMs: number;
  /**
   * The administrator wants no protection, until then (CLOCK_BOOTTIME) or, with Infinity, until told
   * otherwise.
   */
  unprotectedUntilMs: number;
  /** Why the VM ends, when it ends in an orderly way. */
  shutdown: string | undefined;
  /** stopped: somebody has to look at this VM first, its QEMU is not to be replaced. */
  needsAdministrator: boolean;
  /**
   * stopped: the record allows this host to boot the VM from its disks, as the administrator has asked for.
   */
  bootsNext: boolean;
}

/**
 * What an agent finds in its QEMU. "running": a VM that runs, or ran. "protected": one that is the primary of
 * a pair and whose output is still held. "incoming": nothing yet. "replica": a replica that an earlier agent
 * kept. "following": a replica that the last agent left in good order when it announced its restart.
 */
export type QemuHas = "running" | "protected" | "incoming" | "replica" | "following";

export function initialState(settings: Settings, nowMs: number): State {
  return {
    settings,
    phase: "starting",
    found: undefined,
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
    restarting: false,
    retiredMs: undefined,
    goingAlone: undefined,
    claim: undefined,
    givenUp: false,
    committed: false,
    succeeding: false,
    succeededAtMs: undefined,
    goal: undefined,
    call: undefined,
    nextCall: 1,
    retryAtMs: 0,
    protectAtMs: 0,
    unprotectedUntilMs: Number.NEGATIVE_INFINITY,
    shutdown: undefined,
    needsAdministrator: false,
    bootsNext: false,
  };
}
