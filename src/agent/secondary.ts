/**
 * What the keeper of a VM's replica does: get it ready, follow its checkpoints, make it the VM. When, is
 * decided by src/failover/decide.ts.
 */

import { announceSelf, endReplica, prepareSecondary, removeTls, secondaryFailover } from "../colo/index.ts";
import { adoptionOf, type ProxyEntry } from "../proxy/proxy.ts";
import { type OverlayVerdict, OverlayWatch, overlayFiles, readOverlays } from "../storage/overlay_watch.ts";
import type { ReplicaAtRest } from "./instance_memory.ts";
import { imagesOf, type Machine } from "./machine.ts";
import { type SecondaryAddresses, TELL_TIMEOUT_MS } from "./peer_api.ts";

const OVERLAY_LOOK_MS = 200;
const SETTLE_POLL_MS = 5;
const BACK_RETRY_MS = 100;
/**
 * Then the images hold all that the VM had written before its primary began to record its writes
 * (storage/dirty_bitmaps.ts).
 */
const CHECKPOINTS_UNTIL_MARKED = 2;

export class Secondary {
  readonly #machine: Machine;
  #epoch = 0;
  #firstEpoch = 0;
  #generation = 0;
  /** Between the checkpoint's STOP and RESUME of this QEMU. */
  #inCheckpoint = false;
  /** As last seen. */
  #lostFrames = 0;
  readonly #unlisten: (() => void)[] = [];
  readonly #overlayWatch: OverlayWatch;
  #overlays: string[] = [];
  #lookedMs = Number.NEGATIVE_INFINITY;
  #overlayBytes: number | undefined;

  constructor(machine: Machine) {
    this.#machine = machine;
    const { size_bytes, checkpoint_percent, give_up_percent } = machine.config.overlay;
    this.#overlayWatch = new OverlayWatch({
      sizeBytes: size_bytes,
      softPart: checkpoint_percent / 100,
      hardPart: give_up_percent / 100,
    });
  }

  /** What the replica's overlays take; undefined while there is none. */
  get overlayBytes(): number | undefined {
    return this.#unlisten.length === 0 ? undefined : this.#overlayBytes;
  }

  get epoch(): number {
    return this.#epoch;
  }

  /**
   * Gets QEMU ready for the incoming migration. The disks' exports are named after the generation: a primary
   * that is no longer in charge finds none to write to.
   */
  async prepare(generation: number): Promise<SecondaryAddresses> {
    const { config, qmp, proxy, replicationAddress, marker, tls, log } = this.#machine;
    proxy.block();
    this.#generation = generation;
    // The marker stays valid while the primary is only copying: it writes data that the marker accounts for,
    // and its bitmaps still record every change. When this protection replaces those bitmaps the marker
    // matches none of them, until it is written again.
    const replicaOf = marker?.generationOf(imagesOf(config));
    // Frames of an earlier instance of the VM: another host has continued from there, so they must not be
    // sent.
    const discarded = (await proxy.comparison?.discard()) ?? 0;
    if (discarded > 0) log.info("frames that an earlier agent had held were dropped", { discarded });
    const migrate = { host: replicationAddress, port: config.migrate_port };
    const server = { host: replicationAddress, port: config.nbd_port };
    const exports = config.disk.map((disk) => ({
      disk: disk.name,
      name: `${config.name}-${generation}-${disk.name}`,
      node: disk.export_node,
    }));
    await prepareSecondary(qmp, {
      migrateHost: migrate.host,
      migratePort: migrate.port,
      nbd: exports.length === 0 ? undefined : { ...server, exports },
      tls,
    });
    if (exports.length === 0) return { migrate, nbd: undefined };
    this.#overlays = await overlayFiles(qmp);
    const names = Object.fromEntries(exports.map(({ disk, name }) => [disk, name]));
    return { migrate, nbd: { ...server, exports: names, replicaOf } };
  }

  /** The primary has stopped for the switch-over: from now on the taps take its input only. */
  async follow(entry: ProxyEntry): Promise<void> {
    this.#epoch = entry.epoch;
    this.#firstEpoch = entry.epoch;
    this.#followEvents();
    await this.#machine.proxy.follow(entry);
  }

  /** Goes on following where an earlier agent has left off, and tells the primary. */
  async followAgain(generation: number, { epoch, mirrorBases }: ReplicaAtRest): Promise<void> {
    const { peer, config, proxy, qmp, log } = this.#machine;
    this.#generation = generation;
    this.#epoch = epoch;
    // The images have been marked, or lack something.
    this.#firstEpoch = Number.NEGATIVE_INFINITY;
    this.#followEvents();
    adoptionOf(proxy).followAgain(mirrorBases);
    this.#overlays = await overlayFiles(qmp);
    log.info("following the replica again", { generation, epoch });
    // A primary that is gone, or does not need this replica any more, is noticed by its silence, as ever.
    while (this.#unlisten.length > 0) {
      try {
        await peer.ask("back", { vm: config.name, generation }, TELL_TIMEOUT_MS);
        return;
      } catch (error) {
        log.debug("the primary does not know that this agent follows its replica again", { error });
        await Bun.sleep(BACK_RETRY_MS);
      }
    }
  }

  /** What the next agent needs to know; undefined if it could not continue from here. */
  get atRest(): ReplicaAtRest | undefined {
    const { adoption } = this.#machine.proxy;
    if (adoption === undefined || this.#unlisten.length === 0 || this.#inCheckpoint) return undefined;
    return { generation: this.#generation, epoch: this.#epoch, mirrorBases: adoption.mirrorBases };
  }

  #followEvents(): void {
    const { proxy, qmp } = this.#machine;
    this.#lostFrames = proxy.comparison?.lostFrames("secondary") ?? 0;
    this.#unlisten.push(
      qmp.on("STOP", () => this.#onStop()),
      qmp.on("RESUME", () => void this.#onResume()),
    );
  }

  /** The epoch that the VM runs in, when no checkpoint is under way here. */
  async settledEpoch(): Promise<number> {
    const { config } = this.#machine;
    const deadline = performance.now() + config.checkpoint.load_timeout_ms;
    await this.#eventsUntilNow(config.qemu_timeout_ms);
    while (this.#inCheckpoint) {
      if (performance.now() > deadline) throw new Error("the replica does not complete a checkpoint");
      await Bun.sleep(SETTLE_POLL_MS);
    }
    return this.#epoch;
  }

  /**
   * Makes the replica the VM; the record must name this agent already, and the lease be kept up meanwhile.
   */
  async promote(): Promise<void> {
    const { proxy, qmp, config, tls, log } = this.#machine;
    // A STOP for a last checkpoint may be among them. Not waited for long: QEMU holds its main loop while it
    // loads a checkpoint that may never be complete.
    await this.#eventsUntilNow(500);
    this.stop();
    // QEMU is about to write the overlays into the images.
    this.#machine.marker?.remove();
    await proxy.takeOver(this.#inCheckpoint);
    const failover = await secondaryFailover(qmp, { disks: config.disk.length > 0 });
    await proxy.takenOver(this.#inCheckpoint ? failover.loadedPending : undefined);
    await announceSelf(qmp);
    if (tls !== undefined)
      await removeTls(qmp).catch((error) => log.warn("TLS is still set up in QEMU", { error }));
  }

  /** Waits until QEMU's events until now have been seen, at most `timeoutMs`: an answer comes behind them. */
  async #eventsUntilNow(timeoutMs: number): Promise<void> {
    // A QEMU that does not answer sends no events either; QemuWatch notices it.
    await this.#machine.qmp.execute("query-status", undefined, { timeoutMs }).catch(() => undefined);
  }

  /** Follows no checkpoint any more. */
  stop(): void {
    for (const end of this.#unlisten.splice(0)) end();
  }

  /** The replica can never become the VM: it is stopped, so that it does nothing more on this host. */
  end(): void {
    this.stop();
    const { qmp, log } = this.#machine;
    endReplica(qmp).then(
      (ended) => ended && log.info("the replica is stopped; its QEMU must be started again"),
      (error) => log.debug("the replica's QEMU is not stopped", { error }),
    );
  }

  watchLosses(): void {
    if (this.#unlisten.length === 0) return;
    const { proxy } = this.#machine;
    const lost = proxy.comparison?.lostFrames("secondary") ?? 0;
    if (lost === this.#lostFrames) return;
    const reason = `${lost - this.#lostFrames} frames were lost on the secondary's host`;
    this.#lostFrames = lost;
    this.#askForCheckpoint(reason);
  }

  /** Looks at the overlays. Returns why the replica has to be given up, if it has. */
  watchOverlays(): string | undefined {
    const nowMs = performance.now();
    if (this.#unlisten.length === 0 || this.#overlays.length === 0) return undefined;
    // A checkpoint under way counts in the epoch already, and empties the overlays only when it is loaded.
    if (this.#inCheckpoint || nowMs - this.#lookedMs < OVERLAY_LOOK_MS) return undefined;
    this.#lookedMs = nowMs;
    let verdict: OverlayVerdict;
    try {
      const reading = readOverlays(this.#overlays);
      this.#overlayBytes = reading.usedBytes;
      verdict = this.#overlayWatch.judge(reading, this.#epoch, nowMs);
    } catch (error) {
      this.#machine.log.warn("the overlays could not be read", { error });
      return undefined;
    }
    if (verdict.want === "give_up") return verdict.reason;
    if (verdict.want === "checkpoint") this.#askForCheckpoint(verdict.reason);
    return undefined;
  }

  #askForCheckpoint(reason: string): void {
    const { peer, config, log } = this.#machine;
    peer
      .ask("checkpoint_wanted", { vm: config.name, reason }, TELL_TIMEOUT_MS)
      .catch((error) => log.warn("could not ask for a checkpoint", { error }));
  }

  #onStop(): void {
    // What the VM sends after RESUME belongs to the new epoch. The offsets are gone with the state they
    // belonged to.
    this.#epoch++;
    this.#machine.proxy.comparison?.stopped(this.#epoch);
    this.#inCheckpoint = true;
  }

  async #onResume(): Promise<void> {
    if (!this.#inCheckpoint) return;
    this.#inCheckpoint = false;
    const { peer, config, proxy, log } = this.#machine;
    try {
      await peer.ask("loaded", { vm: config.name, epoch: this.#epoch }, TELL_TIMEOUT_MS);
    } catch (error) {
      log.warn("could not report the checkpoint", { error });
    }
    // Unless the instance has ended meanwhile.
    if (this.#unlisten.length === 0) return;
    proxy.comparison?.loaded(this.#epoch);
    if (this.#epoch - this.#firstEpoch === CHECKPOINTS_UNTIL_MARKED) {
      this.#machine.marker?.write(this.#generation, imagesOf(config));
    }
  }
}
