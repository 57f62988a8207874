/**
 * One network interface of a VM on the agent's own data plane: its tap, the devices beside it, programs,
 * rings and worker.
 */
import { DataPath, type DataPathEvents } from "../datapath/handle.ts";
import type { WorkerSetup } from "../datapath/shared.ts";
import { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import { marksOf } from "../ffi/marks.ts";
import { ensureDevices, type VmDevices } from "./devices.ts";
import { nicPinDirectory } from "./pins.ts";
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
   * If an earlier agent left the tap in this role, it stays in it. A primary's output stays held, its input
   * mirrored and its lease unchanged; a secondary's output stays forwarded.
   */
  keep: typeof ROLE.PRIMARY | typeof ROLE.SECONDARY | undefined;
}

export class EbpfNic {
  /** Frames in the tap that the VM has not read, while it is primary or runs alone. */
  readonly #input: TapQueue;
  #mirrored: TapQueue | undefined;
  /**
   * The primary's count of mirrored frames minus our count of delivered ones: lost frames are not awaited.
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
   * Makes the devices, loads and attaches the programs, or adopts those of an earlier agent. The gate is
   * shut, unless {@link EbpfNicOptions.keep} applies.
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

  /** Continues to follow, after an adoption. */
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
    pinDirectory: nicPinDirectory(options.pinDirectory, options.tunnelId),
    settings: {
      tapIfindex: devices.tapIfindex,
      tunnelIfindex: devices.tunnelIfindex,
      peerIpv4: a * 2 ** 24 + b * 2 ** 16 + c * 2 ** 8 + d,
      tunnelId: options.tunnelId,
      ...marksOf(options.tunnelId),
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
      replayMark: marksOf(options.tunnelId).replayMark,
      ...options.comparing,
    },
    events,
  );
}
