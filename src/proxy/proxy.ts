/**
 * The data plane of one VM, as the agent uses it: it holds the primary's packets until the secondary has sent
 * the same, and keeps a VM from sending when it must not. Two kinds: the agent's own on BPF (ebpf.ts) and
 * QEMU's (qemu.ts).
 *
 * A VM has one epoch, one lease and one checkpoint for all its network interfaces, so every call is about all
 * of them.
 *
 * What each data plane does is in Gate, PrimarySide and SecondarySide. Three parts are optional: QEMU's proxy
 * compares and releases by itself, has no barrier, and keeps nothing that a new agent could adopt.
 *
 *   alone      passAlone
 *   primary    hold ─▶ replicaEntered, or adoption.resume; then for each checkpoint: divertInput, drainInput,
 *              beginCheckpoint, releaseCheckpoint, replayInput
 *   secondary  discard, follow or adoption.followAgain; then for each checkpoint: drainMirrored, stopped,
 *              loaded; at its end: succeed, takeOver ─▶ takenOver
 */
import type { ProxyKind } from "../config/vm.ts";
import type { DataPathStats } from "../datapath/shared.ts";
import type { ReportedDivergence } from "../divergence/recorder.ts";

export type { ProxyKind };

/** What the primary's data plane tells the secondary's when the VM has stopped for the switch-over; JSON. */
export interface ProxyEntry {
  epoch: number;
  /** In the order of the configuration. Empty where the secondary needs to know nothing. */
  nics: NicEntry[];
}

interface NicEntry {
  /** Frames that the primary's mirror had sent until then. */
  mirroredFrames: number;
  /** base64 of Connections.export(): the connections that are rewritten since an earlier takeover. */
  connections: string;
}

/** What is read of one interface at the time of a scrape. */
export interface NicReading {
  tap: string;
  shared: DataPathStats;
  /** The BPF programs' counters, by name. */
  counters: Readonly<Record<string, number>>;
}

export interface ProxyEvents {
  /** `epoch`: the one in force when the frames were compared. */
  diverged(divergence: ReportedDivergence, epoch: number): void;
  /**
   * The VMs' outputs on `tap` differ, or one is late, as seen by a comparison that tells no more about it.
   */
  differed(tap: string): void;
  /** The two hosts' data planes have lost each other. */
  broken(reason: string): void;
  /** The data plane works no more; nothing is released, and leases run out. */
  failed(message: string): void;
}

/** What leaves this host of the VM, and what reaches it. */
interface Gate {
  /** Nothing of the VM leaves this host any more, and nothing reaches it. */
  block(): void;
  /** Lets frames leave until `untilMs` (CLOCK_BOOTTIME) unless the lease is longer already. */
  extendLease(untilMs: number): void;
  /** Nothing leaves from now on; input is not touched. */
  dropLease(): void;
  /**
   * Releases all frames that are held or diverted, and every later one. Resolves with the number of held
   * frames.
   */
  passAlone(): Promise<number>;
}

/** The VM runs on this host and has a replica on the other one. */
interface PrimarySide {
  /**
   * The VM stands still: from its RESUME on its output is held, in `epoch`. Input is diverted, where there is
   * an {@link InputBarrier}.
   */
  hold(epoch: number): Promise<ProxyEntry>;
  /**
   * The other host follows. Throws if the two data planes are not connected; absent where they need not be.
   */
  replicaEntered?(): Promise<void>;
}

/** The VM's replica is on this host. */
interface SecondarySide {
  /** The primary has stopped for the switch-over: from now on the taps take the primary's input only. */
  follow(entry: ProxyEntry): Promise<void>;
  /**
   * This host is the holder now; QEMU leaves COLO next. `inCheckpoint`: the VM stands still for one, of the
   * newest epoch.
   */
  takeOver(inCheckpoint: boolean): Promise<void>;
  /**
   * QEMU has left COLO. `loaded`: undefined if it was in no checkpoint, else whether the VM has that one's
   * state.
   */
  takenOver(loaded: boolean | undefined): Promise<void>;
}

/** Both VMs have consumed the same input when a checkpoint begins. */
export interface InputBarrier {
  /** On the primary. Input waits from now on. Returns how many frames each interface's mirror has sent. */
  divertInput(): number[];
  /**
   * On the primary. Waits until the VM has read its taps' queues, at most `timeoutMs`; false when the time
   * was up.
   */
  drainInput(timeoutMs: number): Promise<boolean>;
  /** On the primary. Replays diverted input and ends the diversion. Resolves with the number of frames. */
  replayInput(): Promise<number>;
  /**
   * On the secondary. Waits until the VM has read what the mirrors had sent ({@link divertInput}); false if
   * late.
   */
  drainMirrored(mirroredFrames: readonly number[], timeoutMs: number): Promise<boolean>;
}

/** The agent compares the two VMs' output, releases it, and takes the data plane through each checkpoint. */
export interface Comparison {
  /** A checkpoint is about to be asked for: it covers newer frames, which are not compared any more. */
  beginCheckpoint(): Promise<void>;
  /**
   * The secondary runs with the state that the VM had at its STOP, in `epoch`. Releases the frames held until
   * then; resolves with their number.
   *
   * @param stopNs QEMU's wall clock of the STOP event
   */
  releaseCheckpoint(stopNs: bigint, epoch: number): Promise<number>;
  /**
   * For a hand-over: waits until all frames of the secondary are released; resolves with the number that is
   * not.
   */
  settle(): Promise<number>;

  /**
   * On the secondary. Drops the frames that an earlier agent left held or diverted. Resolves with their
   * number.
   */
  discard(): Promise<number>;
  /**
   * On the secondary. The VM has stopped for a checkpoint: its later frames are of `epoch`, and rewriting
   * ends.
   */
  stopped(epoch: number): void;
  /** On the secondary. The VM runs with the checkpoint's state. */
  loaded(epoch: number): void;
  /** On the secondary. From now on the VM's output is held here, until this host has the lease. */
  succeed(): void;
  /**
   * After {@link succeed} and a takeover. The network knows where the VM is: its output is not held any more.
   */
  endSuccession(): void;

  /**
   * Frames lost so far on the way to the comparer or to the secondary, in this role: each needs a checkpoint.
   */
  lostFrames(role: "primary" | "secondary"): number;
  /** Forgets connections that have ended. */
  collectConnections(): void;
  readings(): NicReading[];
}

/** A new agent takes over a protection that an earlier one left. */
export interface Adoption {
  /**
   * The earlier agent's frames are held, or its replica followed, still: as was asked for when this was
   * opened.
   */
  readonly kept: boolean;
  /**
   * On the primary. Everything stays held until the next {@link Comparison.releaseCheckpoint}, input diverted
   * until {@link InputBarrier.replayInput}. `epoch` is the secondary's.
   */
  resume(epoch: number): Promise<void>;
  /** On the secondary. The protection continues with the mirror bases of the earlier agent. */
  followAgain(mirrorBases: readonly number[]): void;
  /** By interface: the primary's count of mirrored frames minus this host's count of delivered ones. */
  readonly mirrorBases: number[];
}

export interface PacketProxy extends Gate, PrimarySide, SecondarySide {
  readonly kind: ProxyKind;
  /**
   * The newest epoch this host's data plane has been in, also under an earlier agent if that is known; else
   * 0.
   */
  readonly epoch: number;
  readonly inputBarrier?: InputBarrier;
  readonly comparison?: Comparison;
  readonly adoption?: Adoption;
  /** Resolves when the data plane lives. */
  ping(): Promise<unknown>;
  /** Ends the agent's part; what holds packets stays, so that nothing unverified leaves without it. */
  close(): Promise<void>;
}

/** @throws Error for a data plane without {@link Adoption} */
export function adoptionOf({ kind, adoption }: PacketProxy): Adoption {
  if (adoption === undefined)
    throw new Error(`the data plane "${kind}" keeps no state that a new agent can adopt`);
  return adoption;
}

/** @throws Error unless the primary's entry has as many interfaces as this host's VM */
export function checkInterfaces(nics: ProxyEntry["nics"], own: number): void {
  if (nics.length === own) return;
  throw new Error(
    `the primary's VM has ${nics.length} network interfaces and this host's ${own}: ` +
      "write the same [[vm.nic]] tables, in the same order, on both hosts",
  );
}

/** Sum of one of the BPF programs' counters over all interfaces. */
export function countersOf(readings: readonly NicReading[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const { counters } of readings) {
    for (const [name, value] of Object.entries(counters)) sum[name] = (sum[name] ?? 0) + value;
  }
  return sum;
}
