/**
 * What the keeper of a VM's replica does: get it ready, follow its checkpoints, make it the VM. When, is decided by
 * src/failover/decide.ts.
 */
import { ROLE } from "../ffi/layout.ts";
import { announceSelf, prepareSecondary, secondaryFailover } from "../qmp/colo.ts";
import { TapQueue } from "./input_barrier.ts";
import { LOSSES_ON_SECONDARY, lostFrames } from "./losses.ts";
import type { Machine } from "./machine.ts";
import type { SecondaryAddresses } from "./peer_api.ts";

const TELL_TIMEOUT_MS = 1_000;
/** So long the old primary's mirror may bring input that the network has sent there still. */
const SUCCESSOR_MS = 1_000;

/** What the primary sends along when its VM has stopped for the switch-over. */
export interface Entry {
  epoch: number;
  mirroredFrames: number;
  /** DataPlane.exportConnections(). */
  connections: Uint8Array;
}

export class Secondary {
  readonly #machine: Machine;
  #epoch = 0;
  /** Between the checkpoint's STOP and RESUME of this QEMU. */
  #inCheckpoint = false;
  #tapQueue: TapQueue | undefined;
  /** What the primary's mirror count is ahead of our delivery count by, so that lost frames are not waited for. */
  #mirrorBase = 0;
  /** Of {@link LOSSES_ON_SECONDARY}, as last seen. */
  #lostFrames = 0;
  readonly #unlisten: (() => void)[] = [];

  constructor(machine: Machine) {
    this.#machine = machine;
  }

  get epoch(): number {
    return this.#epoch;
  }

  /**
   * Gets QEMU ready for the incoming migration. The disk's export is named after the generation: a primary that is no longer in
   * charge finds none to write to.
   */
  async prepare(generation: number): Promise<SecondaryAddresses> {
    const { config, qmp, dataPlane, dataPath, replicationAddress, log } = this.#machine;
    dataPlane.state.role = ROLE.BLOCKED;
    // Frames of the VM's former life on this host: others have gone on from there, so they must never be sent.
    const discarded = await dataPath.discard();
    if (discarded > 0) log.info("frames that an earlier agent had held were dropped", { discarded });
    const { disk } = config;
    const migrate = { host: replicationAddress, port: config.migrate_port };
    const nbd =
      disk === false
        ? undefined
        : { host: replicationAddress, port: disk.nbd_port, exportName: `${config.name}-${generation}` };
    await prepareSecondary(qmp, {
      migrateHost: migrate.host,
      migratePort: migrate.port,
      ...(nbd === undefined || disk === false
        ? {}
        : {
            disk: {
              nbdHost: nbd.host,
              nbdPort: nbd.port,
              exportName: nbd.exportName,
              exportNode: disk.export_node,
            },
          }),
    });
    return { migrate, nbd };
  }

  /** The primary has stopped for the switch-over: from now on the tap takes mirrored frames only. */
  follow({ epoch, mirroredFrames, connections }: Entry): void {
    const { dataPlane, config, qmp } = this.#machine;
    this.#setEpoch(epoch);
    dataPlane.importConnections(connections);
    this.#tapQueue = new TapQueue(config.tap, () => dataPlane.counters().delivered);
    this.#lostFrames = lostFrames(dataPlane.counters(), LOSSES_ON_SECONDARY);
    this.#mirrorBase = mirroredFrames - dataPlane.counters().delivered;
    dataPlane.state.leaseDeadlineNs = 0n;
    dataPlane.state.role = ROLE.SECONDARY;
    this.#unlisten.push(
      qmp.on("STOP", () => this.#onStop()),
      qmp.on("RESUME", () => void this.#onResume()),
    );
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

  /** From now on the VM's output waits here, for this host to be the one that lets it out. */
  succeed(): void {
    this.#machine.dataPlane.state.role = ROLE.SUCCESSOR;
  }

  /** Makes the replica the VM; the record must name this agent already, and the lease be kept up meanwhile. */
  async promote(): Promise<void> {
    const { dataPlane, dataPath, qmp, config } = this.#machine;
    // Its answer comes behind every event until now, a STOP for a last checkpoint among them. Not waited for long: QEMU holds
    // its main loop while it loads a checkpoint that may never be complete.
    await qmp.execute("query-status", undefined, { timeoutMs: 500 }).catch(() => undefined);
    this.stop();
    if (dataPlane.state.role === ROLE.SUCCESSOR) {
      await dataPath.releaseAlone();
      setTimeout(() => {
        if (dataPlane.state.role === ROLE.SUCCESSOR) dataPlane.state.role = ROLE.SOLO;
      }, SUCCESSOR_MS);
    } else if (!this.#inCheckpoint) {
      dataPlane.state.role = ROLE.SOLO;
    }
    const failover = await secondaryFailover(qmp, { disk: config.disk !== false });
    if (this.#inCheckpoint) {
      // The state that goes on decides which offsets hold: those of before the checkpoint, or none.
      if (!failover.loadedPending) dataPlane.state.rewriteEpoch = this.#epoch - 1;
      dataPlane.state.role = ROLE.SOLO;
    }
    await announceSelf(qmp);
  }

  /** Follows no checkpoint any more. */
  stop(): void {
    for (const end of this.#unlisten.splice(0)) end();
  }

  watchLosses(): void {
    if (this.#unlisten.length === 0) return;
    const { dataPlane, peer, config, log } = this.#machine;
    const lost = lostFrames(dataPlane.counters(), LOSSES_ON_SECONDARY);
    if (lost === this.#lostFrames) return;
    const reason = `${lost - this.#lostFrames} frames were lost on the secondary's host`;
    this.#lostFrames = lost;
    peer
      .ask("checkpoint_wanted", { vm: config.name, reason }, TELL_TIMEOUT_MS)
      .catch((error) => log.warn("could not ask for a checkpoint", { error }));
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
}
