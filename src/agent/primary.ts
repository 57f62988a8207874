/**
 * The duties of the agent that holds a VM: let it run alone, protect it, make its checkpoints, go on alone when the
 * replica is lost.
 */

import type { ReportedDivergence } from "../divergence/recorder.ts";
import { ROLE } from "../ffi/layout.ts";
import { type PrimaryDisk, primaryFailover, startProtection } from "../qmp/colo.ts";
import { AuthorityLostError } from "./authority.ts";
import { type CheckpointCause, Checkpoints } from "./checkpoint.ts";
import { bootMs } from "./clock.ts";
import { leaseDeadlineMs } from "./decision.ts";
import { TapQueue } from "./input_barrier.ts";
import { LOSSES_ON_PRIMARY, lostFrames } from "./losses.ts";
import { dropLease, extendLease, extendOwnLease, isIn, type Machine, setPhase } from "./machine.ts";
import type { SecondaryAddresses } from "./peer_api.ts";

const PREPARE_TIMEOUT_MS = 20_000;
const ENTER_TIMEOUT_MS = 5_000;
const TELL_TIMEOUT_MS = 1_000;
/** The first checkpoints copy all memory with both VMs stopped; before they are done the replica cannot take over. */
const PRIMING_CHECKPOINTS = 2;
const QEMU_ANSWER_TIMEOUT_MS = 2_000;
const SHUTDOWN_RECORD_TIMEOUT_MS = 10_000;

/** For steps that only remove the disk's nodes. */
const NO_EXPORT = { host: "", port: 0, exportName: "" };

type LeaseSource = "self" | "peer" | "none";

export class PrimaryDuty {
  readonly #machine: Machine;
  readonly #abort = new AbortController();
  /** Ends the attempt to protect that is under way: it must not write "replica valid" any more. */
  #protection = new AbortController();
  readonly #tapQueue: TapQueue;
  #lease: LeaseSource = "none";
  #checkpoints: Checkpoints | undefined;
  #epoch: number;
  #lastAnswerMs = 0;
  /** The data plane is set to hold and mirror. */
  #entered = false;
  #answered: (() => void) | undefined;
  /** Of {@link LOSSES_ON_PRIMARY}, as last seen. */
  #lostFrames = 0;
  #unlisten: (() => void) | undefined;
  /** Why the VM ends, when it ends in an orderly way. */
  #shutdown: string | undefined;

  constructor(machine: Machine, epoch: number) {
    this.#machine = machine;
    this.#epoch = epoch;
    const { dataPlane } = machine;
    this.#lostFrames = lostFrames(dataPlane.counters(), LOSSES_ON_PRIMARY);
    this.#tapQueue = new TapQueue(machine.config.tap, () => {
      const counters = dataPlane.counters();
      return counters.mirrored + counters.mirror_failed + counters.input_solo;
    });
  }

  get epoch(): number {
    return this.#checkpoints?.epoch ?? this.#epoch;
  }

  /** Milliseconds since the secondary last answered a heartbeat; undefined while it does not matter. */
  heartbeatAgeMs(): number | undefined {
    return this.#lease === "peer" ? bootMs() - this.#lastAnswerMs : undefined;
  }

  /** Whether heartbeats are to be sent for this VM. */
  get wantsHeartbeat(): boolean {
    return this.#lease === "peer";
  }

  /** The VM runs alone, with nobody to take over. The record must say so already. */
  async runAlone(): Promise<void> {
    this.#lease = "self";
    extendOwnLease(this.#machine);
    await this.#passAlone(); // an earlier agent may have left held and diverted frames behind
    setPhase(this.#machine, "alone");
  }

  /**
   * Adopts a VM whose earlier agent died: a QEMU that is still in COLO leaves it, since nobody knows any more what was
   * compared. The record must say already that the VM runs alone.
   */
  async adopt(migrationStatus: string): Promise<void> {
    if (migrationStatus === "colo") {
      this.#machine.log.warn("QEMU is in COLO with nobody in charge; the VM goes on alone");
      await primaryFailover(this.#machine.qmp, this.#diskOption(NO_EXPORT));
    }
    await this.runAlone();
  }

  /** Called every heartbeat interval. */
  tick(): void {
    this.#watchLosses();
    if (this.#lease === "self") extendOwnLease(this.#machine);
    if (this.#lease !== "peer") return;
    const silentMs = bootMs() - this.#lastAnswerMs;
    if (silentMs > this.#machine.heartbeat.timeout_ms) {
      void this.goAlone(`the secondary's agent has not answered for ${Math.round(silentMs)} ms`);
    }
  }

  /** The secondary has answered the heartbeat sent at `sentMs` (CLOCK_BOOTTIME). */
  heartbeatAnswered(sentMs: number, accepted: boolean): void {
    if (this.#lease !== "peer") return;
    if (!accepted) {
      void this.goAlone("the secondary's agent says that it is not this VM's replica");
      return;
    }
    this.#lastAnswerMs = Math.max(this.#lastAnswerMs, sentMs);
    extendLease(this.#machine, leaseDeadlineMs(sentMs, this.#machine.heartbeat.lease_ms));
    this.#answered?.();
  }

  diverged(divergence: ReportedDivergence, epoch: number): void {
    const { metrics, divergences, log } = this.#machine;
    metrics.divergences.inc({ class: divergence.class });
    const id = divergences.diverged(divergence, epoch);
    log.debug("divergence", {
      id,
      class: divergence.class,
      flow: divergence.flow.text,
      detail: divergence.detail,
      epoch,
    });
    const checkpoints = this.#checkpoints;
    if (checkpoints === undefined || epoch !== checkpoints.epoch) return;
    const cause: CheckpointCause =
      divergence.class === "missing_on_primary" || divergence.class === "missing_on_secondary"
        ? "missing"
        : divergence.class === "overflow"
          ? "overflow"
          : "divergence";
    checkpoints.request(cause);
  }

  /** Something was lost on the way to the comparer or to the secondary: only a checkpoint makes up for it. */
  checkpointWanted(reason: string): void {
    this.#machine.log.warn("a checkpoint is needed", { reason });
    this.#checkpoints?.request("overflow");
  }

  /** Frames that a program had to drop or could not copy are counted there; each such loss ends in a checkpoint. */
  #watchLosses(): void {
    if (this.#checkpoints === undefined) return;
    const lost = lostFrames(this.#machine.dataPlane.counters(), LOSSES_ON_PRIMARY);
    if (lost > this.#lostFrames)
      this.checkpointWanted(`${lost - this.#lostFrames} frames were lost on this host`);
    this.#lostFrames = lost;
  }

  peerLoaded(epoch: number): void {
    this.#checkpoints?.peerLoaded(epoch);
  }

  /**
   * Makes the running VM a protected one. On failure everything is undone and the VM runs alone as before.
   * Resolves when protected, rejects with the reason.
   */
  async protect(): Promise<void> {
    const machine = this.#machine;
    const { config, peer, qmp, dataPlane, dataPath, log } = machine;
    setPhase(machine, "protecting");
    this.#protection = new AbortController();
    const { signal } = this.#protection;
    this.#entered = false;
    try {
      const addresses = await peer.ask("prepare_secondary", { vm: config.name }, PREPARE_TIMEOUT_MS);
      const epoch = this.#epoch + 1;
      await startProtection(
        qmp,
        {
          migrateHost: addresses.migrate.host,
          migratePort: addresses.migrate.port,
          ...this.#diskOption(addresses.nbd),
          signal: AbortSignal.any([this.#abort.signal, signal]),
        },
        {
          onStep: (step) => log.info("protecting", { step }),
          onStopped: async () => {
            this.#entered = true;
            dataPlane.state.divertInput = true;
            dataPlane.state.epoch = epoch;
            await dataPath.start(epoch);
            dataPlane.state.role = ROLE.PRIMARY;
            await peer.ask(
              "enter_secondary",
              {
                vm: config.name,
                epoch,
                mirroredFrames: dataPlane.counters().mirrored,
                connections: Buffer.from(dataPlane.exportConnections()).toString("base64"),
              },
              ENTER_TIMEOUT_MS,
            );
          },
          onUndo: async () => void (await this.#passAlone()),
        },
      );
      this.#epoch = epoch;
      this.#listen();
      const checkpoints = this.#newCheckpoints(epoch);
      this.#checkpoints = checkpoints;
      for (let i = 0; i < PRIMING_CHECKPOINTS; i++) await checkpoints.runOnce("prime");
      signal.throwIfAborted();
      await this.#leaseFromPeer();
      await machine.authority.writeReplicaValid(true, AbortSignal.any([this.#abort.signal, signal]));
      signal.throwIfAborted();
      setPhase(machine, "protected");
      checkpoints.begin();
      log.info("protected", { epoch: checkpoints.epoch });
    } catch (error) {
      const reason = (error as Error).message;
      if (machine.phase !== "protecting") throw error; // going alone or stopped already
      log.warn("could not protect the VM", { reason });
      await peer.ask("abandon", { vm: config.name, reason }, TELL_TIMEOUT_MS).catch(() => undefined);
      if (this.#entered) await this.goAlone(reason);
      else setPhase(machine, "alone", reason);
      throw error;
    }
  }

  /** The replica is lost: record it, release what is held, go on without it. */
  async goAlone(reason: string): Promise<void> {
    const machine = this.#machine;
    if (machine.phase !== "protected" && machine.phase !== "protecting") return;
    const begun = performance.now();
    setPhase(machine, "going_alone", reason);
    this.#protection.abort(new Error(reason));
    this.#unlisten?.();
    const checkpoints = this.#checkpoints;
    if (checkpoints !== undefined) {
      this.#epoch = checkpoints.epoch;
      this.#checkpoints = undefined;
      void checkpoints.stop();
    }
    try {
      // A QEMU that is gone must not be recorded as the one that goes on: the replica is the last one left. Asked out of
      // band, since a hung secondary can block QEMU's main loop.
      await machine.qmp.execute("query-yank", undefined, {
        oob: machine.qmp.oob,
        timeoutMs: QEMU_ANSWER_TIMEOUT_MS,
      });
    } catch (error) {
      await this.qemuLost((error as Error).message);
      return;
    }
    try {
      await machine.authority.writeReplicaValid(false, this.#abort.signal);
    } catch (error) {
      if (!isIn(machine, "going_alone")) return; // stopped meanwhile
      if (!(error instanceof AuthorityLostError)) throw error;
      this.stop(error.message);
      return;
    }
    if (!isIn(machine, "going_alone")) return;
    this.#lease = "self";
    extendOwnLease(machine);
    const released = await this.#passAlone();
    machine.divergences.ended("released: the VM runs alone");
    try {
      await primaryFailover(machine.qmp, this.#diskOption(NO_EXPORT));
    } catch (error) {
      machine.log.error("QEMU did not leave COLO cleanly", { error });
    }
    if (!isIn(machine, "going_alone")) return;
    const tookMs = performance.now() - begun;
    machine.metrics.failovers.inc({ survivor: "primary" });
    machine.metrics.failoverSeconds.observe(tookMs / 1000);
    machine.log.info("the VM goes on alone", { reason, released, tookMs });
    setPhase(machine, "alone", reason);
  }

  /** The local QEMU is gone. Whatever was held is not released; the secondary may take over at once. */
  async qemuLost(reason: string): Promise<void> {
    const machine = this.#machine;
    if (machine.phase === "stopped") return;
    const wasProtected = this.#lease === "peer" || machine.phase === "going_alone";
    if (this.#shutdown !== undefined) {
      await this.#ended(wasProtected, this.#shutdown);
      return;
    }
    this.stop(`QEMU is gone: ${reason}`);
    if (!wasProtected) return;
    try {
      await machine.peer.ask("give_up", { vm: machine.config.name, reason }, TELL_TIMEOUT_MS);
    } catch (error) {
      machine.log.warn("could not tell the secondary; it will take over when the lease has run out", {
        error,
      });
    }
  }

  /** The VM was shut down in an orderly way: the replica must not bring it to life again. */
  async #ended(wasProtected: boolean, reason: string): Promise<void> {
    const { authority, peer, config, log } = this.#machine;
    this.stop(reason);
    if (!wasProtected) return;
    try {
      await authority.writeReplicaValid(false, AbortSignal.timeout(SHUTDOWN_RECORD_TIMEOUT_MS));
      await peer.ask("abandon", { vm: config.name, reason }, TELL_TIMEOUT_MS);
    } catch (error) {
      log.warn("could not record the end of the VM", { error });
    }
  }

  /** Nothing of this VM leaves this host any more. */
  stop(reason: string): void {
    const { dataPlane } = this.#machine;
    this.#lease = "none";
    this.#machine.divergences.ended(`not released: ${reason}`);
    dataPlane.state.role = ROLE.BLOCKED;
    dropLease(this.#machine);
    this.#unlisten?.();
    void this.#checkpoints?.stop();
    this.#checkpoints = undefined;
    this.#abort.abort(new Error(reason));
    this.#protection.abort(new Error(reason));
    setPhase(this.#machine, "stopped", reason);
  }

  #newCheckpoints(epoch: number): Checkpoints {
    const machine = this.#machine;
    return new Checkpoints(
      {
        config: machine.config.checkpoint,
        qmp: machine.qmp,
        dataPlane: machine.dataPlane,
        dataPath: machine.dataPath,
        tapQueue: this.#tapQueue,
        log: machine.log,
        drainPeer: async (mirroredFrames, timeoutMs) => {
          try {
            const body = { vm: machine.config.name, mirroredFrames, timeoutMs };
            return (await machine.peer.ask("drain_input", body, timeoutMs + TELL_TIMEOUT_MS)).drained;
          } catch {
            return false;
          }
        },
        onReport: (report) => {
          machine.metrics.observeCheckpoint(report);
          machine.divergences.checkpointed(report);
        },
        onBroken: (reason) => void this.goAlone(reason),
      },
      epoch,
    );
  }

  /** From now on only the secondary's answers keep the VM sending. Resolves after the first. */
  #leaseFromPeer(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const timeoutMs = this.#machine.heartbeat.timeout_ms;
    const timer = setTimeout(
      () => reject(new Error(`the secondary's agent did not answer a heartbeat within ${timeoutMs} ms`)),
      timeoutMs,
    );
    this.#lastAnswerMs = bootMs();
    this.#lease = "peer";
    this.#answered = () => {
      clearTimeout(timer);
      this.#answered = undefined;
      resolve();
    };
    return promise;
  }

  #listen(): void {
    // COLO ends by itself only when something is wrong. Its reason is not to be trusted (reference: racy).
    const { qmp } = this.#machine;
    const ends = [
      qmp.on("COLO_EXIT", () => {
        if (this.#shutdown === undefined) void this.goAlone("QEMU has left COLO");
      }),
      // A reset from outside reaches the primary only; the checkpoint makes the secondary follow.
      qmp.on("RESET", () => this.#checkpoints?.request("requested")),
      qmp.on("SHUTDOWN", (event) => {
        this.#shutdown = `the VM was shut down (${String(event.data.reason)})`;
      }),
    ];
    this.#unlisten = () => {
      for (const end of ends) end();
    };
  }

  /** Lets everything through that is held or diverted, and from now on everything. Returns what had been held. */
  async #passAlone(): Promise<number> {
    const { dataPlane, dataPath } = this.#machine;
    this.#entered = false;
    let released = await dataPath.releaseAlone();
    dataPlane.state.role = ROLE.SOLO;
    released += await dataPath.releaseAlone(); // what was held while the role changed
    await dataPath.replayInput();
    return released;
  }

  /** The disk's nodes in QEMU; `export_` tells where the secondary's copy is. */
  #diskOption(export_: SecondaryAddresses["nbd"]): { disk?: PrimaryDisk } {
    const { disk } = this.#machine.config;
    if (disk === false || export_ === undefined) return {};
    return {
      disk: {
        quorumNode: disk.quorum_node,
        replicationNode: "colo-replication0",
        nbdNode: "colo-nbd0",
        nbdHost: export_.host,
        nbdPort: export_.port,
        exportName: export_.exportName,
      },
    };
  }
}
