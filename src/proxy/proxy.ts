/**
 * The data plane of one VM, as the agent uses it: what holds the primary's packets until the secondary has sent the same, and
 * what keeps a VM from sending when it must not. Two kinds: the agent's own on BPF (ebpf.ts) and QEMU's (qemu.ts).
 *
 * A VM has one epoch, one lease and one checkpoint for all its network interfaces, so everything here is about all of them.
 *
 *   alone      passAlone
 *   primary    hold ─▶ replicaEntered, or resume; then for each checkpoint: divertInput, drainInput, beginCheckpoint, releaseCheckpoint, replayInput
 *   secondary  discard, follow, then for each checkpoint: drainMirrored, stopped, loaded; succeed; takeOver ─▶ takenOver
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

export interface NicEntry {
  /** Frames that the primary's mirror had sent until then. */
  mirroredFrames: number;
  /** base64 of DataPlane.exportConnections(): those that need rewriting because the VM once took over. */
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
  /** The VMs' outputs on `tap` differ, or one is late, as seen by a comparison that tells no more about it. */
  differed(tap: string): void;
  /** The two hosts' data planes have lost each other. */
  broken(reason: string): void;
  /** The data plane works no more; nothing is released, and leases run out. */
  failed(message: string): void;
}

export interface PacketProxy {
  readonly kind: ProxyKind;
  /** The newest epoch this host's data plane has been in, also under an earlier agent if that is known; else 0. */
  readonly epoch: number;

  /** Nothing of the VM leaves this host any more, and nothing reaches it. */
  block(): void;
  /** Lets frames leave until `untilMs` (CLOCK_BOOTTIME) unless the lease is longer already. */
  extendLease(untilMs: number): void;
  /** Nothing leaves from now on; input is not touched. */
  dropLease(): void;

  /** Lets everything through that is held or diverted, and from now on everything. Resolves with the frames that had been held. */
  passAlone(): Promise<number>;

  /** The VM stands still: from its RESUME on its output is held, in `epoch`. Input is diverted until {@link replayInput}. */
  hold(epoch: number): Promise<ProxyEntry>;
  /** The other host follows. Throws if the two data planes do not work together. */
  replicaEntered(): Promise<void>;
  /** What an earlier agent held or followed here is held or followed still, as was asked for when this was opened. */
  readonly kept: boolean;
  /**
   * Goes on where an earlier agent has left: everything stays held until the next {@link releaseCheckpoint}. Input is diverted
   * until {@link replayInput}. `epoch` is the secondary's.
   */
  resume(epoch: number): Promise<void>;
  /** Input waits from now on. Returns how many frames each interface's mirror has sent. */
  divertInput(): number[];
  /** Waits until the VM has read what was put into its taps, at most `timeoutMs`; false when the time was up. */
  drainInput(timeoutMs: number): Promise<boolean>;
  /** A checkpoint is about to be asked for: newer frames are covered by it and not compared any more. */
  beginCheckpoint(): Promise<void>;
  /**
   * The secondary runs with the state that the VM had at its STOP, in `epoch`. Releases what was held until then; resolves
   * with the number of frames.
   *
   * @param stopNs QEMU's wall clock of the STOP event
   */
  releaseCheckpoint(stopNs: bigint, epoch: number): Promise<number>;
  /** Puts diverted input back. Resolves with the number of frames. */
  replayInput(): Promise<number>;
  /** For a hand-over: waits until what the secondary had sent is released; resolves with the frames that were not. */
  settle(): Promise<number>;

  /** Drops what an earlier life of the VM on this host left held or diverted. Resolves with the number of frames. */
  discard(): Promise<number>;
  /** The primary has stopped for the switch-over: from now on the taps take the primary's input only. */
  follow(entry: ProxyEntry): Promise<void>;
  /** By interface: what the primary's count of mirrored frames is ahead of this host's count of delivered ones. */
  readonly mirrorBases: number[];
  /** Goes on following where an earlier agent has left. */
  followAgain(mirrorBases: readonly number[]): void;
  /** Waits until the VM has read what the primary's mirrors had sent ({@link divertInput}); false when the time was up. */
  drainMirrored(mirroredFrames: readonly number[], timeoutMs: number): Promise<boolean>;
  /** The VM has stopped for a checkpoint: what it sends afterwards is of `epoch`, and no rewriting holds any more. */
  stopped(epoch: number): void;
  /** The VM runs with the checkpoint's state. */
  loaded(epoch: number): void;
  /** From now on the VM's output waits here, for this host to be the one that lets it out. */
  succeed(): void;
  /** This host is the VM's now; QEMU is about to be told. `inCheckpoint`: the VM stands still for one, of the newest epoch. */
  takeOver(inCheckpoint: boolean): Promise<void>;
  /** QEMU has left COLO. `loaded`: undefined if it was in no checkpoint, else whether the VM goes on from that one's state. */
  takenOver(loaded: boolean | undefined): Promise<void>;

  /** Frames lost so far on the way to the comparison or to the secondary, as seen in this role: each needs a checkpoint. */
  lostFrames(role: "primary" | "secondary"): number;
  /** Forgets connections that have ended. */
  collectConnections(): void;
  /** Empty for a data plane that does not count. */
  readings(): NicReading[];
  /** Resolves when the data plane lives. */
  ping(): Promise<unknown>;
  /** Ends the agent's part; what holds packets stays, so that nothing unverified leaves without it. */
  close(): Promise<void>;
}

/** Sum of one of the BPF programs' counters over all interfaces. */
export function countersOf(readings: readonly NicReading[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const { counters } of readings) {
    for (const [name, value] of Object.entries(counters)) sum[name] = (sum[name] ?? 0) + value;
  }
  return sum;
}
