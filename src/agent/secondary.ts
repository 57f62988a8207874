/** The duties of the agent that keeps a VM's replica: get it ready, follow its checkpoints, take over. */
import { ROLE } from "../ffi/layout.ts";
import { announceSelf, prepareSecondary, secondaryFailover } from "../qmp/colo.ts";
import { AuthorityLostError } from "./authority.ts";
import { bootMs } from "./clock.ts";
import { TapQueue } from "./input_barrier.ts";
import { LOSSES_ON_SECONDARY, lostFrames } from "./losses.ts";
import { dropLease, extendOwnLease, type Machine, setPhase } from "./machine.ts";
import type { SecondaryAddresses } from "./peer_api.ts";

const TELL_TIMEOUT_MS = 1_000;

export class SecondaryDuty {
  readonly #machine: Machine;
  readonly #onTaken: (epoch: number) => void;
  #epoch = 0;
  /** Between the checkpoint's STOP and RESUME of this QEMU. */
  #inCheckpoint = false;
  #tapQueue: TapQueue | undefined;
  /** What the primary's mirror count is ahead of our delivery count by, so that lost frames are not waited for. */
  #mirrorBase = 0;
  /** CLOCK_BOOTTIME of the last heartbeat that was answered: the primary's lease may run until this plus the lease. */
  #lastAnswerMs = bootMs();
  #givenUp = false;
  /** Of {@link LOSSES_ON_SECONDARY}, as last seen. */
  #lostFrames = 0;
  #takeover: { abort: AbortController; writing: boolean } | undefined;
  readonly #unlisten: (() => void)[] = [];

  /** `onTaken` is called when the VM has become this agent's; it runs in `epoch`. */
  constructor(machine: Machine, onTaken: (epoch: number) => void) {
    this.#machine = machine;
    this.#onTaken = onTaken;
  }

  get epoch(): number {
    return this.#epoch;
  }

  /** Milliseconds since the primary's last heartbeat; undefined while there is no replica. */
  heartbeatAgeMs(): number | undefined {
    return this.#machine.phase === "standby" ? bootMs() - this.#lastAnswerMs : undefined;
  }

  /** Called every heartbeat interval. */
  tick(): void {
    if (this.#machine.phase !== "standby" || this.#takeover !== undefined) return;
    this.#watchLosses();
    const silentMs = bootMs() - this.#lastAnswerMs;
    if (silentMs > this.#machine.heartbeat.timeout_ms) {
      void this.takeOver(`no heartbeat of the primary for ${Math.round(silentMs)} ms`);
    }
  }

  /** A heartbeat of the holder; true if it is answered, which extends its lease. */
  heartbeat(): boolean {
    if (this.#machine.phase !== "standby" || this.#givenUp) return false;
    if (this.#takeover !== undefined) {
      // Until the record is being written the primary may come back; after that no answer may extend its lease.
      if (this.#takeover.writing) return false;
      this.#takeover.abort.abort(new Error("the primary is back"));
      this.#takeover = undefined;
    }
    this.#lastAnswerMs = bootMs();
    return true;
  }

  /** The connection to the primary's agent closed: no need to wait for silence to add up. */
  peerDown(): void {
    if (this.#machine.phase === "standby") void this.takeOver("the connection to the primary's agent closed");
  }

  /** The holder says that its VM is gone and blocked. */
  giveUp(reason: string): void {
    this.#givenUp = true;
    if (this.#machine.phase === "standby") void this.takeOver(`the primary gave up: ${reason}`);
  }

  async prepare(): Promise<SecondaryAddresses> {
    const machine = this.#machine;
    const { config, qmp, dataPlane, replicationAddress } = machine;
    if (machine.phase !== "waiting") throw new Error(`the secondary is not ready: phase ${machine.phase}`);
    setPhase(machine, "incoming");
    try {
      dataPlane.state.role = ROLE.BLOCKED;
      const migrate = { host: replicationAddress, port: config.migrate_port };
      const disk = config.disk;
      await prepareSecondary(qmp, {
        migrateHost: migrate.host,
        migratePort: migrate.port,
        ...(disk === false
          ? {}
          : {
              disk: {
                nbdHost: replicationAddress,
                nbdPort: disk.nbd_port,
                exportName: disk.export_node,
                exportNode: disk.export_node,
              },
            }),
      });
      return {
        migrate,
        nbd:
          disk === false
            ? undefined
            : { host: replicationAddress, port: disk.nbd_port, exportName: disk.export_node },
      };
    } catch (error) {
      this.#useless(`preparing QEMU failed: ${(error as Error).message}`);
      throw error;
    }
  }

  /** The primary has stopped for the switch-over: from now on the tap takes mirrored frames only. */
  enter(epoch: number, mirroredFrames: number, connections: Uint8Array): void {
    const machine = this.#machine;
    const { dataPlane, config, qmp } = machine;
    if (machine.phase !== "incoming")
      throw new Error(`the secondary is not expecting this: phase ${machine.phase}`);
    this.#setEpoch(epoch);
    dataPlane.importConnections(connections);
    this.#tapQueue = new TapQueue(config.tap, () => dataPlane.counters().delivered);
    this.#lostFrames = lostFrames(dataPlane.counters(), LOSSES_ON_SECONDARY);
    this.#mirrorBase = mirroredFrames - dataPlane.counters().delivered;
    dropLease(machine);
    dataPlane.state.role = ROLE.SECONDARY;
    this.#lastAnswerMs = bootMs();
    this.#givenUp = false;
    this.#unlisten.push(
      qmp.on("STOP", () => this.#onStop()),
      qmp.on("RESUME", () => void this.#onResume()),
      qmp.on("COLO_EXIT", () => void this.#onColoExit()),
    );
    setPhase(machine, "standby");
  }

  async drainInput(mirroredFrames: number, timeoutMs: number): Promise<boolean> {
    const queue = this.#tapQueue;
    if (queue === undefined) return false;
    const delivered = mirroredFrames - this.#mirrorBase;
    const drained = await queue.drained(delivered, timeoutMs);
    if (!drained) {
      queue.rebase();
      this.#mirrorBase = mirroredFrames - this.#machine.dataPlane.counters().delivered;
    }
    return drained;
  }

  /** The primary could not protect the VM with this replica. */
  abandon(reason: string): void {
    if (this.#machine.phase === "incoming" || this.#machine.phase === "standby") this.#useless(reason);
  }

  /** The local QEMU is gone. */
  async qemuLost(reason: string): Promise<void> {
    const { phase, peer, config, log } = this.#machine;
    if (phase === "stopped") return;
    this.#useless(`QEMU is gone: ${reason}`);
    if (phase !== "standby") return;
    try {
      await peer.ask(
        "replica_lost",
        { vm: config.name, reason: `the secondary's QEMU is gone: ${reason}` },
        TELL_TIMEOUT_MS,
      );
    } catch (error) {
      log.warn("could not tell the primary", { error });
    }
  }

  /** Takes the VM over as soon as that is safe. */
  async takeOver(reason: string): Promise<void> {
    const machine = this.#machine;
    if (machine.phase !== "standby") return;
    if (this.#takeover !== undefined) return;
    const takeover = { abort: new AbortController(), writing: false };
    this.#takeover = takeover;
    const begun = performance.now();
    machine.log.warn("the primary seems lost", { reason });
    try {
      await machine.authority.takeOver(
        () => ({
          nowMs: bootMs(),
          lastAnswerMs: this.#lastAnswerMs,
          leaseMs: machine.heartbeat.lease_ms,
          marginMs: machine.heartbeat.margin_ms,
          givenUp: this.#givenUp,
        }),
        takeover.abort.signal,
        () => {
          takeover.writing = true;
          setPhase(machine, "taking_over", reason);
        },
      );
    } catch (error) {
      if (takeover.abort.signal.aborted) {
        machine.log.info("the primary is back; no takeover");
        return;
      }
      this.#takeover = undefined;
      const message = (error as Error).message;
      if (error instanceof AuthorityLostError) this.#useless(`no takeover: ${message}`);
      else this.#useless(`the takeover failed: ${message}`);
      return;
    }
    await this.#becomePrimary(reason, begun);
  }

  async #becomePrimary(reason: string, begun: number): Promise<void> {
    const machine = this.#machine;
    const { dataPlane, qmp, metrics, log } = machine;
    extendOwnLease(machine);
    const lease = setInterval(() => extendOwnLease(machine), machine.heartbeat.interval_ms);
    try {
      // Its answer comes behind every event until now, a STOP for a last checkpoint among them.
      await qmp.execute("query-status");
      for (const stop of this.#unlisten.splice(0)) stop();
      if (!this.#inCheckpoint) dataPlane.state.role = ROLE.SOLO;
      const failover = await secondaryFailover(qmp, { disk: machine.config.disk !== false });
      if (this.#inCheckpoint) {
        // The state that goes on decides which offsets hold: those of before the checkpoint, or none.
        if (!failover.loadedPending) dataPlane.state.rewriteEpoch = this.#epoch - 1;
        dataPlane.state.role = ROLE.SOLO;
      }
      await announceSelf(qmp);
      const tookMs = performance.now() - begun;
      metrics.failovers.inc({ survivor: "secondary" });
      metrics.failoverSeconds.observe(tookMs / 1000);
      log.info("the VM is this host's now", { reason, tookMs });
      this.#onTaken(this.#epoch);
    } catch (error) {
      // The record names this agent and nobody else may run the VM; there is nothing safe left to do.
      this.#useless(`QEMU failed to take over: ${(error as Error).message}`);
    } finally {
      clearInterval(lease);
    }
  }

  #setEpoch(epoch: number): void {
    const { state } = this.#machine.dataPlane;
    this.#epoch = epoch;
    state.epoch = epoch;
    state.rewriteEpoch = epoch;
  }

  #onStop(): void {
    // What the VM sends after RESUME belongs to the new epoch. The offsets are gone with the state they belonged to.
    this.#setEpoch(this.#epoch + 1);
    this.#inCheckpoint = true;
  }

  async #onResume(): Promise<void> {
    if (!this.#inCheckpoint) return;
    this.#inCheckpoint = false;
    const { peer, config, dataPlane, log } = this.#machine;
    try {
      await peer.ask("loaded", { vm: config.name, epoch: this.#epoch }, TELL_TIMEOUT_MS);
    } catch (error) {
      log.warn("could not report the checkpoint", { error });
    }
    dataPlane.clearConnections(this.#epoch);
  }

  async #onColoExit(): Promise<void> {
    const { peer, config, log } = this.#machine;
    if (this.#machine.phase !== "standby") return;
    log.warn("QEMU has left COLO");
    await peer
      .ask("replica_lost", { vm: config.name, reason: "the secondary's QEMU has left COLO" }, TELL_TIMEOUT_MS)
      .catch(() => undefined);
  }

  #watchLosses(): void {
    const { dataPlane, peer, config, log } = this.#machine;
    const lost = lostFrames(dataPlane.counters(), LOSSES_ON_SECONDARY);
    if (lost === this.#lostFrames) return;
    const reason = `${lost - this.#lostFrames} frames were lost on the secondary's host`;
    this.#lostFrames = lost;
    peer
      .ask("checkpoint_wanted", { vm: config.name, reason }, TELL_TIMEOUT_MS)
      .catch((error) => log.warn("could not ask for a checkpoint", { error }));
  }

  #useless(reason: string): void {
    for (const stop of this.#unlisten.splice(0)) stop();
    const { dataPlane } = this.#machine;
    dataPlane.state.role = ROLE.BLOCKED;
    dropLease(this.#machine);
    setPhase(this.#machine, "stopped", reason);
  }
}
