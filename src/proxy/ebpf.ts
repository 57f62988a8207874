/**
 * The agent's own data plane for a VM: for each network interface the BPF programs on its tap and its workers
 * (ebpf_nic.ts). Each step is taken on all interfaces before the next one begins: a checkpoint covers them
 * all.
 */

import type { DataPathEvents } from "../datapath/handle.ts";
import { ROLE, type Role } from "../ffi/layout.ts";
import { bootNs, wallToBootNs } from "../host/clock.ts";
import { EbpfNic, type EbpfNicOptions } from "./ebpf_nic.ts";
import { LOSSES_ON_PRIMARY, LOSSES_ON_SECONDARY, lostFrames } from "./losses.ts";
import {
  type Adoption,
  type Comparison,
  checkInterfaces,
  type InputBarrier,
  type NicReading,
  type PacketProxy,
  type ProxyEntry,
  type ProxyEvents,
} from "./proxy.ts";

/** STOP's stamp is cut to microseconds. No checkpoint resumes a VM within this time (measured: 2 ms). */
const BOUNDARY_SLACK_NS = 100_000;
/** Frames of the secondary that were on the link have arrived after this time; the link is a LAN. */
const SETTLE_QUIET_MS = 3;
const SETTLE_LIMIT_MS = 100;
/**
 * A closed connection may still retransmit its FIN: twice the maximum segment lifetime of Linux
 * (TCP_TIMEWAIT_LEN).
 */
const CONNECTION_CLOSED_FOR_MS = 120_000;
/**
 * As long as Linux's connection tracking keeps an established connection
 * (nf_conntrack_tcp_timeout_established).
 */
const CONNECTION_IDLE_FOR_MS = 5 * 24 * 3_600_000;

export class EbpfProxy implements PacketProxy, InputBarrier, Comparison, Adoption {
  readonly kind = "ebpf";
  readonly inputBarrier: InputBarrier = this;
  readonly comparison: Comparison = this;
  readonly adoption: Adoption = this;

  private constructor(private readonly nics: readonly EbpfNic[]) {}

  /**
   * Opens all interfaces, closed for everything, or all as they were (`keep`, {@link kept}). On an error none
   * stays open.
   */
  static async open(options: readonly EbpfNicOptions[], events: ProxyEvents): Promise<EbpfProxy> {
    const nics: EbpfNic[] = [];
    try {
      for (const one of options) {
        const nicEvents: DataPathEvents = {
          diverged: (divergence, epoch) => events.diverged(divergence, epoch),
          failed: (message) => events.failed(`${one.tap}: ${message}`),
        };
        nics.push(await EbpfNic.open(one, nicEvents));
      }
      const proxy = new EbpfProxy(nics);
      // One interface may be new.
      if (!proxy.kept) proxy.block();
      return proxy;
    } catch (error) {
      for (const nic of nics) await nic.close();
      throw error;
    }
  }

  get epoch(): number {
    return Math.max(...this.nics.map(({ dataPlane }) => dataPlane.state.epoch));
  }

  block(): void {
    this.#setRole(ROLE.BLOCKED);
    this.dropLease();
  }

  extendLease(untilMs: number): void {
    const deadlineNs = BigInt(Math.floor(untilMs * 1e6));
    for (const { dataPlane } of this.nics) {
      if (deadlineNs > dataPlane.state.leaseDeadlineNs) dataPlane.state.leaseDeadlineNs = deadlineNs;
    }
  }

  dropLease(): void {
    for (const { dataPlane } of this.nics) dataPlane.state.leaseDeadlineNs = 0n;
  }

  async passAlone(): Promise<number> {
    let released = await this.#sum(({ dataPath }) => dataPath.releaseAlone());
    this.#setRole(ROLE.SOLO);
    // Frames that were held while the role changed.
    released += await this.#sum(({ dataPath }) => dataPath.releaseAlone());
    await this.replayInput();
    return released;
  }

  async hold(epoch: number): Promise<ProxyEntry> {
    for (const { dataPlane } of this.nics) {
      dataPlane.state.divertInput = true;
      dataPlane.state.epoch = epoch;
    }
    await this.#sum(({ dataPath }) => dataPath.start(epoch));
    this.#setRole(ROLE.PRIMARY);
    const nics = this.nics.map(({ dataPlane }) => ({
      mirroredFrames: dataPlane.counter("mirrored"),
      connections: Buffer.from(dataPlane.connections.export()).toString("base64"),
    }));
    return { epoch, nics };
  }

  get kept(): boolean {
    return this.nics.every(({ kept }) => kept);
  }

  async resume(epoch: number): Promise<void> {
    for (const { dataPlane } of this.nics) {
      dataPlane.state.divertInput = true;
      dataPlane.state.epoch = epoch;
    }
    await this.#sum(({ dataPath }) => dataPath.resume());
  }

  divertInput(): number[] {
    for (const { dataPlane } of this.nics) dataPlane.state.divertInput = true;
    return this.nics.map(({ dataPlane }) => dataPlane.counter("mirrored"));
  }

  drainInput(timeoutMs: number): Promise<boolean> {
    return all(this.nics.map((nic) => nic.drainInput(timeoutMs)));
  }

  async beginCheckpoint(): Promise<void> {
    // The checkpoint undoes the output that the secondary sent ahead of the primary. The primary's frames
    // after it must not be compared with that output, however late the STOP event arrives here.
    const horizonNs = bootNs();
    await this.#sum(({ dataPath }) => dataPath.beginCheckpoint(horizonNs));
  }

  releaseCheckpoint(stopNs: bigint, epoch: number): Promise<number> {
    const boundaryNs = wallToBootNs(stopNs) + BOUNDARY_SLACK_NS;
    return this.#sum(({ dataPath }) => dataPath.checkpoint(boundaryNs, epoch));
  }

  replayInput(): Promise<number> {
    return this.#sum(({ dataPath }) => dataPath.replayInput());
  }

  async settle(): Promise<number> {
    const begun = performance.now();
    const pending = () =>
      this.nics.reduce((sum, { dataPath }) => sum + dataPath.shared.stat("secondary_pending_frames"), 0);
    let collected = -1;
    for (let quietMs = 0; quietMs < SETTLE_QUIET_MS; ) {
      await Bun.sleep(1);
      const now = this.nics.reduce((sum, { dataPlane }) => sum + dataPlane.counter("collected"), 0);
      quietMs = now === collected && pending() === 0 ? quietMs + 1 : 0;
      collected = now;
      if (performance.now() - begun > SETTLE_LIMIT_MS) return pending();
    }
    return 0;
  }

  discard(): Promise<number> {
    return this.#sum(({ dataPath }) => dataPath.discard());
  }

  async follow({ epoch, nics }: ProxyEntry): Promise<void> {
    checkInterfaces(nics, this.nics.length);
    this.stopped(epoch);
    nics.forEach(({ mirroredFrames, connections }, index) => {
      const nic = this.nics[index] as EbpfNic; // as many as the entry has: checked above
      nic.dataPlane.connections.import(Buffer.from(connections, "base64"));
      nic.follow(mirroredFrames);
    });
  }

  get mirrorBases(): number[] {
    return this.nics.map(({ mirrorBase }) => mirrorBase);
  }

  followAgain(mirrorBases: readonly number[]): void {
    this.nics.forEach((nic, index) => {
      nic.followAgain(mirrorBases[index] ?? 0);
    });
  }

  drainMirrored(mirroredFrames: readonly number[], timeoutMs: number): Promise<boolean> {
    return all(this.nics.map((nic, index) => nic.drainMirrored(mirroredFrames[index] ?? 0, timeoutMs)));
  }

  stopped(epoch: number): void {
    for (const { dataPlane } of this.nics) {
      dataPlane.state.epoch = epoch;
      dataPlane.state.rewriteEpoch = epoch;
    }
  }

  loaded(epoch: number): void {
    for (const { dataPlane } of this.nics) dataPlane.connections.clear(epoch);
  }

  succeed(): void {
    this.#setRole(ROLE.SUCCESSOR);
  }

  endSuccession(): void {
    if (this.#isSuccessor()) this.#setRole(ROLE.SOLO);
  }

  async takeOver(inCheckpoint: boolean): Promise<void> {
    if (this.#isSuccessor()) {
      await this.#sum(({ dataPath }) => dataPath.releaseAlone());
    } else if (!inCheckpoint) {
      this.#setRole(ROLE.SOLO);
    }
  }

  async takenOver(loaded: boolean | undefined): Promise<void> {
    if (loaded === undefined) return;
    // The VM's state decides which offsets hold: those from before the checkpoint, or none.
    if (!loaded) for (const { dataPlane } of this.nics) dataPlane.state.rewriteEpoch = this.epoch - 1;
    this.#setRole(ROLE.SOLO);
  }

  lostFrames(role: "primary" | "secondary"): number {
    const losses = role === "primary" ? LOSSES_ON_PRIMARY : LOSSES_ON_SECONDARY;
    return this.nics.reduce((sum, { dataPlane }) => sum + lostFrames(dataPlane.counters(), losses), 0);
  }

  collectConnections(): void {
    for (const { dataPlane } of this.nics) {
      dataPlane.connections.collect({
        closedForMs: CONNECTION_CLOSED_FOR_MS,
        idleForMs: CONNECTION_IDLE_FOR_MS,
      });
    }
  }

  readings(): NicReading[] {
    return this.nics.map(({ tap, dataPlane, dataPath }) => ({
      tap,
      shared: dataPath.shared,
      counters: dataPlane.counters(),
    }));
  }

  ping(): Promise<unknown> {
    return this.#sum(({ dataPath }) => dataPath.ping());
  }

  async close(): Promise<void> {
    for (const nic of this.nics) await nic.close();
  }

  #setRole(role: Role): void {
    for (const { dataPlane } of this.nics) dataPlane.state.role = role;
  }

  #isSuccessor(): boolean {
    return this.nics.every(({ dataPlane }) => dataPlane.state.role === ROLE.SUCCESSOR);
  }

  /** Runs an action on all interfaces at once; returns the sum of the results. */
  async #sum(action: (nic: EbpfNic) => Promise<number>): Promise<number> {
    const counts = await Promise.all(this.nics.map(action));
    return counts.reduce((sum, count) => sum + count, 0);
  }
}

async function all(answers: Promise<boolean>[]): Promise<boolean> {
  return (await Promise.all(answers)).every(Boolean);
}
