/**
 * One network interface of a VM on the agent's own data plane: its tap, the devices beside it, programs,
 * rings and worker.
 */
import { join } from "node:path";
import { DataPath, type DataPathEvents } from "../datapath/handle.ts";
import type { WorkerSetup } from "../datapath/shared.ts";
import { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import { ensureDevices, type VmDevices } from "./devices.ts";
import { TapQueue } from "./tap_queue.ts";

export interface EbpfNicOptions {
  tap: string;
  /** 1..255, the same on both hosts, unique on this host. */
  tunnelId: number;
  tunnelPort: number;
  /** The peer's IPv4 address on the replication link. */
  peerAddress: string;
  objectPath: string;
  /** Of the VM; each interface gets a folder of its own in it. */
  pinDirectory: string;
  workers: number;
  ringBytes: number;
  connectionsMax: number;
  comparing: Pick<WorkerSetup, "maxWaitMs" | "rules" | "limits">;
  /**
   * If an earlier agent has left the tap in this role, it stays in it: a primary's output held, its input
   * mirrored and its lease what it is; a secondary's output forwarded.
   */
  keep: typeof ROLE.PRIMARY | typeof ROLE.SECONDARY | undefined;
}

/** Marks live in the skb only inside this host; the tunnel id keeps those of several interfaces apart. */
function marks(tunnelId: number) {
  return {
    injectMark: 0xc0100000 + tunnelId,
    deliverMark: 0xc0200000 + tunnelId,
    replayMark: 0xc0300000 + tunnelId,
  };
}

export class EbpfNic {
  /** What the VM has not read yet of what was put into its tap, while it is primary or runs alone. */
  readonly #input: TapQueue;
  #mirrored: TapQueue | undefined;
  /**
   * What the primary's mirror count is ahead of our delivery count by, so that lost frames are not waited
   * for.
   */
  #mirrorBase = 0;

  private constructor(
    readonly tap: string,
    readonly dataPlane: DataPlane,
    readonly dataPath: DataPath,
    /** {@link EbpfNicOptions.keep} found something to keep. */
    readonly kept: boolean,
    private readonly opened: AsyncDisposableStack,
  ) {
    this.#input = new TapQueue(
      tap,
      () =>
        dataPlane.counter("mirrored") + dataPlane.counter("mirror_failed") + dataPlane.counter("input_solo"),
    );
  }

  /**
   * Makes the devices, loads and attaches the programs, or takes over what an earlier agent left: closed,
   * unless it is to be kept.
   */
  static async open(options: EbpfNicOptions, events: DataPathEvents): Promise<EbpfNic> {
    const { tap, tunnelId, peerAddress } = options;
    const devices = await ensureDevices({ tap, tunnelId, tunnelPort: options.tunnelPort, peerAddress });
    await using opened = new AsyncDisposableStack();
    const dataPlane = opened.adopt(loadDataPlane(options, devices), (plane) => plane.close());
    dataPlane.attach(devices);
    // A primary's lease of 0 was dropped on purpose: that agent had handed the VM over, or was about to.
    const { role, leaseDeadlineNs } = dataPlane.state;
    const kept = role === options.keep && (role === ROLE.SECONDARY || leaseDeadlineNs !== 0n);
    if (!kept) {
      // The state that an earlier agent left is closed before anything reads it.
      dataPlane.state.leaseDeadlineNs = 0n;
      dataPlane.state.role = ROLE.BLOCKED;
    }
    const dataPath = openDataPath(options, dataPlane, devices, events);
    opened.defer(() => dataPath.close());
    await dataPath.ready();
    return new EbpfNic(tap, dataPlane, dataPath, kept, opened.move());
  }

  drainInput(timeoutMs: number): Promise<boolean> {
    return drain(this.#input, 0, timeoutMs);
  }

  /** From now on the tap takes mirrored frames only. */
  follow(mirroredFrames: number): void {
    const { dataPlane } = this;
    this.followAgain(mirroredFrames - dataPlane.counter("delivered"));
    dataPlane.state.leaseDeadlineNs = 0n;
    dataPlane.state.role = ROLE.SECONDARY;
  }

  /** As it does already, if that was kept. */
  followAgain(mirrorBase: number): void {
    this.#mirrored = new TapQueue(this.tap, () => this.dataPlane.counter("delivered"));
    this.#mirrorBase = mirrorBase;
  }

  get mirrorBase(): number {
    return this.#mirrorBase;
  }

  async drainMirrored(mirroredFrames: number, timeoutMs: number): Promise<boolean> {
    if (this.#mirrored === undefined) return false;
    const drained = await drain(this.#mirrored, mirroredFrames - this.#mirrorBase, timeoutMs);
    if (!drained) this.#mirrorBase = mirroredFrames - this.dataPlane.counter("delivered");
    return drained;
  }

  async close(): Promise<void> {
    await this.opened.disposeAsync();
  }
}

async function drain(queue: TapQueue, putMin: number, timeoutMs: number): Promise<boolean> {
  const drained = await queue.drained(putMin, timeoutMs);
  if (!drained) queue.rebase();
  return drained;
}

function loadDataPlane(options: EbpfNicOptions, devices: VmDevices): DataPlane {
  const [a, b, c, d] = options.peerAddress.split(".").map(Number) as [number, number, number, number];
  return DataPlane.load({
    objectPath: options.objectPath,
    pinDirectory: join(options.pinDirectory, `nic${options.tunnelId}`),
    settings: {
      tapIfindex: devices.tapIfindex,
      tunnelIfindex: devices.tunnelIfindex,
      peerIpv4: a * 2 ** 24 + b * 2 ** 16 + c * 2 ** 8 + d,
      tunnelId: options.tunnelId,
      ...marks(options.tunnelId),
    },
    workers: options.workers,
    ringBytes: options.ringBytes,
    connectionsMax: options.connectionsMax,
  });
}

function openDataPath(
  options: EbpfNicOptions,
  dataPlane: DataPlane,
  devices: VmDevices,
  events: DataPathEvents,
): DataPath {
  return new DataPath(
    {
      dataPlane,
      injectIfindex: devices.injectIfindex,
      tapIfindex: devices.tapIfindex,
      replayMark: marks(options.tunnelId).replayMark,
      ...options.comparing,
    },
    events,
  );
}
