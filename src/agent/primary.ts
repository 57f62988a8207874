/**
 * What the holder of a VM does: let it run alone, protect it, make its checkpoints, hand it over. When, is
 * decided by src/failover/decide.ts; nothing here changes who may send.
 */

import {
  announceSelf,
  clearProtection,
  connections,
  primaryFailover,
  secondaryFailover,
  startProtection,
} from "../colo/index.ts";
import { nodesOf } from "../config/disk.ts";
import type { ReportedDivergence } from "../divergence/recorder.ts";
import { adoptionOf } from "../proxy/proxy.ts";
import { coloMode, MIGRATION_ENDED, migrationStatus, orAborted, runStatus, yank } from "../qmp/vm.ts";
import { coveringBitmap, ReplicaBitmaps } from "../storage/dirty_bitmaps.ts";
import { ResyncProgress, type ResyncReading } from "../storage/resync_progress.ts";
import { type CheckpointCause, Checkpoints } from "./checkpoint.ts";
import { disksOf, disksWithExports, type Machine } from "./machine.ts";
import { TELL_TIMEOUT_MS } from "./peer_api.ts";

const PREPARE_TIMEOUT_MS = 20_000;
const ENTER_TIMEOUT_MS = 5_000;
/**
 * The first checkpoints copy all memory with both VMs stopped; before they are done the replica cannot take
 * over.
 */
const PRIMING_CHECKPOINTS = 2;
const PROBE_TIMEOUT_MS = 2_000;
const RUNS_POLL_MS = 5;

export class ProtectionError extends Error {
  override name = "ProtectionError";

  constructor(
    /** The data plane holds frames, which have to be released. */
    readonly entered: boolean,
    cause: unknown,
  ) {
    super((cause as Error).message, { cause });
  }
}

export class Primary {
  readonly #machine: Machine;
  #ended: Promise<void> = Promise.resolve();
  readonly #onBroken: (reason: string) => void;
  #protection = new AbortController();
  #checkpoints: Checkpoints | undefined;
  #epoch: number;
  #lostFrames: number;
  #unlisten: (() => void) | undefined;
  #resync: ResyncProgress | undefined;
  #bitmaps: ReplicaBitmaps | undefined;

  /** `onBroken`: the pair has come apart, seen from this side. */
  constructor(machine: Machine, onBroken: (reason: string) => void) {
    this.#machine = machine;
    this.#onBroken = onBroken;
    this.#epoch = machine.proxy.epoch;
    this.#lostFrames = machine.proxy.comparison?.lostFrames("primary") ?? 0;
  }

  get epoch(): number {
    return this.#checkpoints?.epoch ?? this.#epoch;
  }

  /** The VM has become this agent's by a takeover; it runs in `epoch`. */
  continueFrom(epoch: number): void {
    this.#epoch = epoch;
  }

  /**
   * Lets the VM run alone: releases what is held, puts diverted input back, gets QEMU out of COLO or of a
   * migration. The record must say already that there is no replica. Also right after a crash of an earlier
   * agent, at any point of anything.
   */
  async runAlone(): Promise<void> {
    const { qmp, config, proxy, divergences, log } = this.#machine;
    const released = await proxy.passAlone();
    divergences.ended("released: the VM runs alone");
    try {
      if (MIGRATION_ENDED.has((await migrationStatus(qmp)).status)) {
        const leftovers = await clearProtection(qmp, disksOf(config));
        if (leftovers.length > 0) log.error("parts of an ended protection are left in QEMU", { leftovers });
      } else if ((await coloMode(qmp)) === "secondary") {
        // A takeover was recorded, and the agent died before it was carried out.
        await secondaryFailover(qmp, { disks: config.disk.length > 0 });
        await announceSelf(qmp);
      } else {
        await primaryFailover(qmp, { disks: disksOf(config) });
      }
    } catch (error) {
      log.error("QEMU did not leave COLO cleanly", { error });
    }
    log.info("the VM runs alone", { released });
  }

  /**
   * Probes QEMU. Out of band first: a hung secondary can block the main loop, and cutting
   * the connections to it gets it free. Throws when QEMU answers neither.
   */
  async probe(): Promise<void> {
    const { qmp, config } = this.#machine;
    await yank(qmp, connections(disksOf(config)), PROBE_TIMEOUT_MS);
    await qmp.execute("query-status", undefined, { timeoutMs: PROBE_TIMEOUT_MS });
  }

  /**
   * Makes the running VM a replicated one; resolves when the replica is complete, checkpoints not running
   * yet.
   * @throws ProtectionError; QEMU runs alone as before, and where `entered` is set the data plane still holds
   */
  async protect(generation: number): Promise<void> {
    const machine = this.#machine;
    const { config, tuning, peer, qmp, proxy, tls, log } = machine;
    this.#protection = new AbortController();
    const { signal } = this.#protection;
    let entered = false;
    try {
      const body = { vm: config.name, generation, proxy: proxy.kind, tls: tls !== undefined };
      const addresses = await orAborted(peer.ask("prepare_secondary", body, PREPARE_TIMEOUT_MS), signal);
      const epoch = this.#epoch + 1;
      const disks = disksWithExports(config, addresses.nbd);
      const replicaOf = addresses.nbd?.replicaOf;
      if (replicaOf !== undefined) {
        for (const disk of disks) disk.bitmap = await coveringBitmap(qmp, disk.quorumNode, replicaOf);
      }
      const names = config.disk.map((disk) => [nodesOf(disk).quorum, disk.name] as const);
      const progress = new ResyncProgress(new Map(names));
      const { diskBytes } = await startProtection(
        qmp,
        {
          migrateHost: addresses.migrate.host,
          migratePort: addresses.migrate.port,
          disks,
          tls,
          resyncBytesPerSecond: () => tuning.resyncBytesPerSecond,
          signal,
        },
        {
          onStep: (step) => log.info("protecting", { step }),
          onDiskProgress: (all) => {
            progress.update(all);
            this.#resync = progress;
          },
          onStopped: async () => {
            entered = true;
            const entry = { vm: config.name, generation, proxy: await proxy.hold(epoch) };
            await orAborted(peer.ask("enter_secondary", entry, ENTER_TIMEOUT_MS), signal);
            await orAborted(Promise.resolve(proxy.replicaEntered?.()), signal);
          },
          onUndo: async () => {
            await proxy.passAlone();
            entered = false;
          },
        },
      );
      this.#resync = undefined;
      const wholeDisks = disks.filter(({ bitmap }) => bitmap === undefined).length;
      log.info("the disks are the same on both hosts", { diskBytes, disks: disks.length, wholeDisks });
      const { checkpoints, bitmaps } = this.#enter(epoch, generation);
      await bitmaps.begin(epoch);
      for (let i = 0; i < PRIMING_CHECKPOINTS; i++) await checkpoints.runOnce("prime");
      signal.throwIfAborted();
    } catch (error) {
      throw new ProtectionError(entered, error);
    } finally {
      this.#resync = undefined;
    }
  }

  /**
   * Goes on with the replica that an earlier agent had made, and which stands by: what that had compared
   * nobody knows, so a checkpoint is what both VMs go on from. Resolves when it is loaded, further
   * checkpoints not running yet.
   */
  async resume(generation: number): Promise<void> {
    const { config, peer, qmp, proxy, log } = this.#machine;
    const begun = performance.now();
    this.#protection = new AbortController();
    const { signal } = this.#protection;
    const { load_timeout_ms: limitMs } = config.checkpoint;
    const { epoch } = await orAborted(
      peer.ask("resume_secondary", { vm: config.name, generation }, limitMs + TELL_TIMEOUT_MS),
      signal,
    );
    // A checkpoint that the earlier agent had asked for is over there; here RESUME comes last.
    while (!(await runStatus(qmp)).running) {
      if (performance.now() - begun > limitMs) throw new Error("the VM does not complete a checkpoint");
      await Bun.sleep(RUNS_POLL_MS);
    }
    signal.throwIfAborted();
    await adoptionOf(proxy).resume(epoch);
    const { checkpoints, bitmaps } = this.#enter(epoch, generation);
    await bitmaps.resume(epoch);
    signal.throwIfAborted();
    const { epoch: now } = await checkpoints.runOnce("restart");
    log.info("the protection continues", { generation, epoch: now, tookMs: performance.now() - begun });
  }

  /** How far the copy of the disks is; undefined while there is none. */
  get resync(): ResyncReading | undefined {
    return this.#resync?.reading;
  }

  /** From now on checkpoints are made as they are needed. */
  beginCheckpoints(): void {
    this.#checkpoints?.begin();
  }

  /** One of the two agents is about to restart: no checkpoint is left under way. */
  async pauseCheckpoints(): Promise<void> {
    await this.#checkpoints?.pause().catch(() => undefined); // reported by the loop
  }

  /** The secondary's agent is back. What it could not see meanwhile a checkpoint makes up for. */
  catchUp(): void {
    this.#checkpoints?.request("restart");
    this.#checkpoints?.goOn();
  }

  /** Ends an attempt to protect and all checkpoints, whatever they are at. What is held stays held. */
  endProtection(reason: string): void {
    this.#protection.abort(new Error(reason));
    this.#bitmaps?.end();
    this.#bitmaps = undefined;
    this.#unlisten?.();
    this.#unlisten = undefined;
    const checkpoints = this.#checkpoints;
    if (checkpoints === undefined) return;
    this.#epoch = checkpoints.epoch;
    this.#checkpoints = undefined;
    this.#ended = checkpoints.stop();
  }

  /** Resolves when nothing of what {@link endProtection} has ended is under way any more. */
  get ended(): Promise<void> {
    return this.#ended;
  }

  /**
   * Brings both VMs to the same point and lets the secondary hold its own output from there on; resolves when
   * all that it had sent before has been released here. The VM can still continue on this host if the
   * hand-over is not completed.
   */
  async handOver(generation: number): Promise<void> {
    const { peer, config, proxy, log } = this.#machine;
    const checkpoints = this.#checkpoints;
    if (checkpoints === undefined) throw new Error("the VM is not protected");
    await checkpoints.last("requested");
    await peer.ask("succeed", { vm: config.name, generation }, TELL_TIMEOUT_MS);
    const pending = (await proxy.comparison?.settle()) ?? 0;
    if (pending > 0) {
      log.warn(
        "the two VMs did not reach the same point for the hand-over; TCP retransmits the held segments",
        {
          pending,
        },
      );
    }
  }

  diverged(divergence: ReportedDivergence, epoch: number): void {
    const { metrics, divergences, log } = this.#machine;
    metrics.diverged(divergence.class);
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

  /** As {@link diverged}, where nothing more is known. */
  differed(tap: string): void {
    const { metrics, log } = this.#machine;
    metrics.diverged("seen_by_qemu");
    log.debug("QEMU's comparison asks for a checkpoint", { tap });
    this.#checkpoints?.request("divergence");
  }

  /** Something was lost on the way to the comparer or to the secondary: only a checkpoint makes up for it. */
  checkpointWanted(reason: string): void {
    this.#machine.log.warn("a checkpoint is needed", { reason });
    this.#checkpoints?.request("overflow");
  }

  /**
   * Frames that a program had to drop or could not copy are counted there; each such loss ends in a
   * checkpoint.
   */
  watchLosses(): void {
    if (this.#checkpoints === undefined) return;
    const lost = this.#machine.proxy.comparison?.lostFrames("primary") ?? 0;
    if (lost > this.#lostFrames)
      this.checkpointWanted(`${lost - this.#lostFrames} frames were lost on this host`);
    this.#lostFrames = lost;
  }

  peerLoaded(epoch: number): void {
    this.#checkpoints?.peerLoaded(epoch);
  }

  /** The VM is the primary of a pair in COLO. */
  #enter(epoch: number, generation: number): { checkpoints: Checkpoints; bitmaps: ReplicaBitmaps } {
    const { config, qmp } = this.#machine;
    const quorumNodes = disksOf(config).map(({ quorumNode }) => quorumNode);
    const checkpoints = this.#newCheckpoints(epoch);
    const bitmaps = new ReplicaBitmaps(qmp, quorumNodes, generation);
    this.#epoch = epoch;
    this.#listen();
    this.#checkpoints = checkpoints;
    this.#bitmaps = bitmaps;
    return { checkpoints, bitmaps };
  }

  #newCheckpoints(epoch: number): Checkpoints {
    const machine = this.#machine;
    return new Checkpoints(
      {
        config: machine.config.checkpoint,
        tuning: machine.tuning,
        qmp: machine.qmp,
        proxy: machine.proxy,
        log: machine.log,
        drainPeer: async (mirroredFrames, timeoutMs) => {
          try {
            const body = { vm: machine.config.name, mirroredFrames, timeoutMs };
            return (await machine.peer.ask("drain_input", body, timeoutMs + TELL_TIMEOUT_MS)).drained;
          } catch {
            // Without an answer, the peer counts as not drained.
            return false;
          }
        },
        onReport: (report) => {
          machine.metrics.checkpointCompleted(report);
          machine.divergences.checkpointed(report);
          this.#bitmaps?.checkpointed(
            report.epoch,
            () => this.epoch,
            (error) => machine.log.warn("the changes of the disks are no longer recorded", { error }),
          );
        },
        onBroken: this.#onBroken,
      },
      epoch,
    );
  }

  #listen(): void {
    // COLO ends by itself only when something is wrong. Its reason is not to be trusted (reference: racy).
    const { qmp } = this.#machine;
    const ends = [
      qmp.on("COLO_EXIT", () => this.#onBroken("QEMU has left COLO")),
      // A reset from outside reaches the primary only; the checkpoint makes the secondary follow.
      qmp.on("RESET", () => this.#checkpoints?.request("requested")),
    ];
    this.#unlisten = () => {
      for (const end of ends) end();
    };
  }
}
