/**
 * QEMU's own packet proxy as a VM's data plane: filters and colo-compare inside the two QEMUs
 * (qemu_filters.ts), and a gate of nftables at the taps (tap_gate.ts), which QEMU cannot open. It needs no
 * BPF; docs/proxies.md lists its limits.
 *
 * QEMU compares, releases what a checkpoint covers and rewrites numbers by itself, so the optional parts of
 * PacketProxy are not here. A new agent can adopt nothing: the notices that QEMU's comparer sent meanwhile
 * are lost.
 */

import type { Logger } from "../host/log.ts";
import type { QmpClient } from "../qmp/client.ts";
import { query, yankInstances } from "../qmp/query.ts";
import { yank } from "../qmp/vm.ts";
import { CompareNotices } from "./compare_notices.ts";
import { tapFramesGiven } from "./devices.ts";
import { checkInterfaces, type PacketProxy, type ProxyEntry, type ProxyEvents } from "./proxy.ts";
import {
  addPrimaryFilters,
  addSecondaryFilters,
  type CompareLimits,
  disconnected,
  type FilterNic,
  filtersPresent,
  noticesPath,
  peerChardevs,
  removeCaptures,
  removeMirrors,
  removePrimaryFilters,
  removeSecondaryFilters,
} from "./qemu_filters.ts";
import { TapGate } from "./tap_gate.ts";

const CONNECT_TIMEOUT_MS = 2_000;
const FLUSH_TIMEOUT_MS = 2_000;
/** Released frames have passed QEMU's sockets when the tap's count has not changed for this time. */
const QUIET_MS = 5;
const QUIET_LIMIT_MS = 500;
const LOOK_INTERVAL_MS = 500;
/** Nodes of the disk replication, which a dead secondary can keep QEMU waiting on. */
const REPLICATION_NODES = /^colo-nbd/;

interface QemuProxyOptions {
  /** QEMU's, at the time it is asked for. */
  qmp: () => QmpClient;
  nics: readonly FilterNic[];
  /** This host's address on the replication link, and the other one's. */
  address: string;
  peerAddress: string;
  /** Where this QEMU may make its sockets. */
  directory: string;
  /** Of nftables; one for each VM of the host. */
  table: string;
  limits: CompareLimits;
  log: Logger;
}

export class QemuProxy implements PacketProxy {
  readonly kind = "qemu";
  readonly epoch = 0;
  #notices: CompareNotices[] = [];
  #look: Timer | undefined;

  private constructor(
    private readonly options: QemuProxyOptions,
    private readonly gate: TapGate,
    private readonly events: ProxyEvents,
  ) {}

  static async open(options: QemuProxyOptions, events: ProxyEvents): Promise<QemuProxy> {
    const taps = options.nics.map(({ tap }) => tap);
    return new QemuProxy(options, await TapGate.open(options.table, taps), events);
  }

  block(): void {
    this.#endLook();
    this.#gated(() => this.gate.block());
  }

  extendLease(untilMs: number): void {
    this.#gated(() => this.gate.extendLease(untilMs));
  }

  dropLease(): void {
    this.#gated(() => this.gate.dropLease());
  }

  async passAlone(): Promise<number> {
    this.#endLook();
    this.#gated(() => this.gate.letInput());
    const released = await this.#takeDown();
    return released;
  }

  async hold(epoch: number): Promise<ProxyEntry> {
    const { nics, address, directory, limits } = this.options;
    await addPrimaryFilters(this.#qmp, nics, { address, directory, limits });
    this.#notices = await this.#openNotices();
    return { epoch, nics: nics.map(() => ({ mirroredFrames: 0, connections: "" })) };
  }

  async replicaEntered(): Promise<void> {
    const { nics } = this.options;
    const deadline = performance.now() + CONNECT_TIMEOUT_MS;
    for (;;) {
      const missing = await disconnected(this.#qmp, nics);
      if (missing.length === 0) break;
      if (performance.now() > deadline)
        throw new Error(`the secondary's QEMU is not connected to ${missing.join(", ")}`);
      await Bun.sleep(5);
    }
    this.#look = setInterval(() => void this.#lookForPeer(), LOOK_INTERVAL_MS);
  }

  async follow({ nics }: ProxyEntry): Promise<void> {
    const { nics: own, peerAddress } = this.options;
    checkInterfaces(nics, own.length);
    this.#gated(() => this.gate.block());
    await addSecondaryFilters(this.#qmp, own, peerAddress);
  }

  async takeOver(): Promise<void> {
    this.#gated(() => this.gate.letInput());
  }

  async takenOver(): Promise<void> {
    await removeSecondaryFilters(this.#qmp, this.options.nics);
  }

  async ping(): Promise<void> {
    try {
      await this.gate.check();
    } catch (error) {
      this.options.log.error("the gate at the VM's taps", { error });
    }
  }

  async close(): Promise<void> {
    this.#endLook();
    this.#closeNotices();
    this.gate.close();
  }

  get #qmp(): QmpClient {
    return this.options.qmp();
  }

  /**
   * A change that the kernel refuses is repeated by {@link ping}. Until then the lease is not longer than
   * before.
   */
  #gated(change: () => void): void {
    try {
      change();
    } catch (error) {
      this.options.log.error("the gate at the VM's taps", { error });
    }
  }

  async #openNotices(): Promise<CompareNotices[]> {
    const { nics, directory } = this.options;
    return Promise.all(
      nics.map((nic) =>
        CompareNotices.connect(noticesPath(directory, nic), () => this.events.differed(nic.tap)),
      ),
    );
  }

  #closeNotices(): void {
    for (const notices of this.#notices.splice(0)) notices.close();
  }

  /**
   * Releases the held frames in order and removes all filters but the rewriters. Returns the number of
   * frames that left meanwhile.
   */
  async #takeDown(): Promise<number> {
    const { nics, directory, log } = this.options;
    await this.#cutPeer();
    const present = await filtersPresent(this.#qmp, nics);
    if (present.secondary) await removeSecondaryFilters(this.#qmp, nics);
    if (!present.primary) return 0;
    const before = this.#framesGiven();
    try {
      await removeMirrors(this.#qmp, nics);
      // An earlier agent's connections ended with it.
      if (this.#notices.length === 0) this.#notices = await this.#openNotices();
      await this.#flush(); // before anything newer leaves
      await removeCaptures(this.#qmp, nics);
      await this.#flush(); // what was captured in between
    } catch (error) {
      log.warn("the frames that QEMU held are lost; TCP retransmits", { error });
    }
    this.#closeNotices();
    await removePrimaryFilters(this.#qmp, nics, directory);
    return this.#framesGiven() - before;
  }

  async #flush(): Promise<void> {
    await this.#quiet();
    await Promise.all(this.#notices.map((notices) => notices.flush(FLUSH_TIMEOUT_MS)));
    await this.#quiet();
  }

  async #quiet(): Promise<void> {
    const deadline = performance.now() + QUIET_LIMIT_MS;
    for (let seen = -1, quietMs = 0; quietMs < QUIET_MS && performance.now() < deadline; ) {
      await Bun.sleep(1);
      const now = this.#framesGiven();
      quietMs = now === seen ? quietMs + 1 : 0;
      seen = now;
    }
  }

  #framesGiven(): number {
    return this.options.nics.reduce((sum, { tap }) => sum + tapFramesGiven(tap), 0);
  }

  /**
   * Out of band: QEMU's main loop blocks while it writes to a peer that hangs (net/filter-mirror.c).
   */
  async #cutPeer(): Promise<void> {
    const open = await query(this.#qmp, yankInstances, "query-yank", undefined, { oob: true });
    const labels = new Set(peerChardevs(this.options.nics));
    await yank(
      this.#qmp,
      open.filter(
        (one) =>
          one.type === "migration" ||
          (one.type === "chardev" ? labels.has(one.id) : REPLICATION_NODES.test(one["node-name"])),
      ),
    );
  }

  async #lookForPeer(): Promise<void> {
    let missing: string[];
    try {
      missing = await disconnected(this.#qmp, this.options.nics);
    } catch {
      return; // QEMU's silence is noticed elsewhere
    }
    if (this.#look === undefined || missing.length === 0) return;
    this.#endLook();
    this.events.broken(`QEMU's proxy has lost ${missing.join(", ")}`);
  }

  #endLook(): void {
    clearInterval(this.#look);
    this.#look = undefined;
  }
}
