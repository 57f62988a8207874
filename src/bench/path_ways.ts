/**
 * The ways whose delay `bench path` measures: from where a VM's frame is written to where somebody else can
 * read it.
 */
import { COMPARER_LIMITS } from "../compare/comparer.ts";
import { DataPath } from "../datapath/handle.ts";
import type { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import { bootTimeNs, bootTimeNsNumber, ifindex, Mapping } from "../ffi/libc.ts";
import type { Address } from "../ffi/native.ts";
import { readAvailable, type StreamSocket } from "../ffi/stream_socket.ts";
import { TAP_FRAME_BYTES_MAX, Tap } from "../ffi/tap.ts";
import { BenchNamespace, loadPlane } from "./bench_namespace.ts";
import { QEMU_FRAMING_BYTES, QemuProcess, writeQemuFraming } from "./qemu_process.ts";
import { NUMBER_OFFSET, SEGMENT_BYTES, Traffic } from "./segments.ts";

const FLOWS = 100;
/** After the last frame was written: what has not arrived by then is lost. */
const GRACE_NS = 500e6;
const MARKS = { injectMark: 0xc0b0_0001, deliverMark: 0xc0b0_0002, replayMark: 0xc0b0_0003 };
const REPLICATION_IPV4 = [0xc613_0001, 0xc613_0002];
const REPLICATION_MACS = ["02:00:00:00:01:01", "02:00:00:00:01:02"];

interface Run {
  /** Of every frame that arrived, in order of arrival. */
  delaysNs: Float64Array;
  lost: number;
  /** Frames per second that were written. */
  offered: number;
}

/** One thread writes, reads and takes both times. */
export abstract class Way {
  readonly #out = new Mapping(QEMU_FRAMING_BYTES + TAP_FRAME_BYTES_MAX);
  #streamStart = 0;

  /** Both VMs send the frame at `address`. The QEMU_FRAMING_BYTES before it may be overwritten. */
  protected abstract send(address: Address, byteLength: number): void;

  /** The number of the next segment that has come out, -1 if there is none. Does not wait. */
  protected abstract receive(sendBytes: number): number;

  /** What has to be done before the next run if frames were lost. */
  protected recover(): Promise<void> {
    return Promise.resolve();
  }

  /** Sends frames of SEGMENT_BYTES at an even rate. */
  async run(framesPerSecond: number, seconds: number): Promise<Run> {
    const rounds = Math.ceil((framesPerSecond * seconds) / FLOWS);
    const traffic = new Traffic({ payloadBytes: SEGMENT_BYTES, flows: FLOWS, rounds });
    // Frames of an earlier run that came too late.
    while (this.receive(traffic.bytesMax) >= 0);
    const run = this.#measure(traffic, 1e9 / framesPerSecond);
    this.#streamStart += rounds * SEGMENT_BYTES;
    if (run.lost > 0) await this.recover();
    // Lets other work of this thread happen.
    await Bun.sleep(1);
    return run;
  }

  #measure(traffic: Traffic, intervalNs: number): Run {
    const { count, bytesMax } = traffic;
    const at = QEMU_FRAMING_BYTES;
    const address = this.#out.address + at;
    const view = new DataView(this.#out.buffer);
    const sentNs = new Float64Array(count);
    const delaysNs = new Float64Array(count);
    traffic.lay(new Uint8Array(this.#out.buffer), at);
    writeQemuFraming(view, 0, bytesMax);
    let sent = 0;
    let arrived = 0;
    let now = bootTimeNsNumber();
    const start = now;
    let lastSentNs = now;
    while (arrived < count) {
      if (sent < count) {
        if (now >= start + sent * intervalNs) {
          const length = traffic.patch(view, at, sent, this.#streamStart);
          view.setUint32(at + NUMBER_OFFSET, sent);
          lastSentNs = bootTimeNsNumber();
          sentNs[sent++] = lastSentNs;
          this.send(address, length);
        }
      } else if (now - lastSentNs > GRACE_NS) break;
      for (;;) {
        const number = this.receive(bytesMax);
        now = bootTimeNsNumber();
        if (number < 0) break;
        delaysNs[arrived++] = now - sentNs[number];
        if (sent < count && now >= start + sent * intervalNs) break;
      }
    }
    return {
      delaysNs: delaysNs.subarray(0, arrived),
      lost: count - arrived,
      offered: (count / (lastSentNs - start)) * 1e9,
    };
  }

  protected closeBuffers(): void {
    this.#out.close();
  }
}

/** Taps in, a tap out. */
abstract class TapWay extends Way {
  readonly #in = new Mapping(TAP_FRAME_BYTES_MAX);
  readonly #received = new DataView(this.#in.buffer);

  /**
   * @param taps of the VMs, the primary's first
   * @param far somebody else's on the primary's bridge
   */
  constructor(
    private readonly taps: readonly Tap[],
    private readonly far: Tap,
  ) {
    super();
  }

  protected override send(address: Address, byteLength: number): void {
    for (const tap of this.taps) tap.writeFrom(address, byteLength);
  }

  protected override receive(sendBytes: number): number {
    for (;;) {
      const got = readAvailable(this.far.fd, this.#in.address, TAP_FRAME_BYTES_MAX);
      if (got < 0) return -1;
      // Whatever else there may be on the bridge.
      if (got === sendBytes) return this.#received.getUint32(NUMBER_OFFSET);
    }
  }

  protected override closeBuffers(): void {
    super.closeBuffers();
    this.#in.close();
  }
}

/** A namespace with a bridge, the VM's tap and somebody else's. */
class Bridge {
  readonly namespace: BenchNamespace;
  readonly vm: Tap;
  readonly far: Tap;

  constructor(name: string) {
    this.namespace = new BenchNamespace(name);
    try {
      [this.vm, this.far] = this.namespace.run(() => [new Tap("vm"), new Tap("far")]);
      this.namespace.ip("link add br0 type bridge mcast_snooping 0");
      for (const port of ["vm", "far"]) this.namespace.ip(`link set ${port} master br0 up`);
      this.namespace.ip("link set br0 up");
    } catch (error) {
      this.namespace.close();
      throw error;
    }
  }

  close(): void {
    this.vm.close();
    this.far.close();
    this.namespace.close();
  }
}

/** The bridge by itself. */
export class PlainBridge extends TapWay {
  readonly #bridge: Bridge;

  constructor() {
    const bridge = new Bridge("none");
    super([bridge.vm], bridge.far);
    this.#bridge = bridge;
  }

  close(): void {
    this.#bridge.close();
    this.closeBuffers();
  }
}

/** The agent's whole data path, with the second host. */
export class ProtectedBridge extends TapWay {
  readonly #hosts: readonly Bridge[];
  readonly #planes: { plane: DataPlane; unload: () => void }[] = [];
  #path: DataPath | undefined;
  #epoch = 1;
  #failure: string | undefined;

  private constructor(
    private readonly name: string,
    hosts: readonly [Bridge, Bridge],
  ) {
    super(
      hosts.map(({ vm }) => vm),
      hosts[0].far,
    );
    this.#hosts = hosts;
  }

  /** @param name begins the names of its namespaces; one for each */
  static async create(name = "path"): Promise<ProtectedBridge> {
    const primary = new Bridge(`${name}-primary`);
    let way: ProtectedBridge;
    try {
      way = new ProtectedBridge(name, [primary, new Bridge(`${name}-secondary`)]);
    } catch (error) {
      primary.close();
      throw error;
    }
    try {
      await way.#protect();
      return way;
    } catch (error) {
      await way.close();
      throw error;
    }
  }

  async #protect(): Promise<void> {
    const [{ namespace }, other] = this.#hosts;
    linkHosts(namespace, other.namespace);
    this.#hosts.forEach((host, i) => {
      this.#planes.push(host.namespace.run(() => attachPlane(`${this.name}-${i}`, REPLICATION_IPV4[1 - i])));
    });
    const [{ plane }, { plane: secondary }] = this.#planes;
    plane.state.role = ROLE.PRIMARY;
    plane.state.leaseDeadlineNs = bootTimeNs() + 86_400_000_000_000n;
    secondary.state.role = ROLE.SECONDARY;
    secondary.state.epoch = this.#epoch;
    secondary.state.rewriteEpoch = this.#epoch;
    // A thread stays in the namespace in which it was started.
    this.#path = namespace.run(
      () =>
        new DataPath(
          {
            dataPlane: plane,
            injectIfindex: ifindex("inj0"),
            tapIfindex: ifindex("vm"),
            replayMark: MARKS.replayMark,
            maxWaitMs: 200,
            rules: {},
            limits: COMPARER_LIMITS,
          },
          {
            // A frame that waits too long counts as lost here.
            diverged: () => {},
            failed: (message) => {
              this.#failure = message;
            },
          },
        ),
    );
    await this.#path.start(this.#epoch);
  }

  /** Descriptors of the VMs' taps, the primary's first, and of the far one. */
  get tapFds(): { vms: readonly number[]; far: number } {
    return { vms: this.#hosts.map(({ vm }) => vm.fd), far: this.#hosts[0].far.fd };
  }

  override async run(framesPerSecond: number, seconds: number): Promise<Run> {
    const run = await super.run(framesPerSecond, seconds);
    if (this.#failure !== undefined) throw new Error(`The data path has failed: ${this.#failure}`);
    return run;
  }

  /** What a checkpoint does: what is held leaves, and both VMs go on from the same state. */
  protected override async recover(): Promise<void> {
    this.#epoch++;
    this.#planes[1].plane.state.epoch = this.#epoch;
    await this.#path!.checkpoint(bootTimeNsNumber(), this.#epoch);
  }

  async close(): Promise<void> {
    await this.#path?.close();
    for (const { unload } of this.#planes) unload();
    for (const host of this.#hosts) host.close();
    this.closeBuffers();
  }
}

function attachPlane(name: string, peerIpv4: number): { plane: DataPlane; unload: () => void } {
  const at = {
    tapIfindex: ifindex("vm"),
    tunnelIfindex: ifindex("vx"),
    injectIfindex: ifindex("inj0"),
  };
  const { tapIfindex, tunnelIfindex } = at;
  const loaded = loadPlane(name, {
    settings: { tapIfindex, tunnelIfindex, peerIpv4, tunnelId: 1, ...MARKS },
  });
  loaded.plane.attach(at);
  return loaded;
}

/** The replication link with a VXLAN over it, and each host's injection pair. */
function linkHosts(a: BenchNamespace, b: BenchNamespace): void {
  const peer = `peer name rep address ${REPLICATION_MACS[1]} mtu 1600 netns ${b.name}`;
  a.ip(`link add rep address ${REPLICATION_MACS[0]} mtu 1600 type veth ${peer}`);
  [a, b].forEach((host, i) => {
    host.ip(`addr add 198.19.0.${i + 1}/30 dev rep`);
    host.ip("link set rep up");
    host.ip("link add vx type vxlan external dstport 4789");
    host.ip("link set vx up");
    host.ip(`neigh add 198.19.0.${2 - i} lladdr ${REPLICATION_MACS[1 - i]} dev rep`);
    host.ip("link add inj0 mtu 1504 type veth peer name inj1 mtu 1504");
    for (const end of ["inj0", "inj1"]) host.ip(`link set ${end} up`);
  });
}

/**
 * QEMU's colo-compare, alone: two sockets in, one out. The hops before and behind it in QEMU's own proxy are
 * left out.
 */
export class QemuSockets extends Way {
  readonly #in = new Mapping(QEMU_FRAMING_BYTES + TAP_FRAME_BYTES_MAX);
  readonly #received = new DataView(this.#in.buffer);
  #filled = 0;

  private constructor(
    private readonly qemu: QemuProcess,
    private readonly inputs: readonly StreamSocket[],
    private readonly output: StreamSocket,
  ) {
    super();
    output.setNonBlocking();
  }

  /** Throws an Error if there is no QEMU. */
  static async create(): Promise<QemuSockets> {
    const qemu = await QemuProcess.start();
    try {
      const inputs = [await qemu.connect("primary"), await qemu.connect("secondary")];
      return new QemuSockets(qemu, inputs, qemu.output);
    } catch (error) {
      await qemu.stop();
      throw error;
    }
  }

  protected override send(address: Address, byteLength: number): void {
    for (const socket of this.inputs) {
      socket.write(address - QEMU_FRAMING_BYTES, QEMU_FRAMING_BYTES + byteLength);
    }
  }

  protected override receive(sendBytes: number): number {
    const wanted = QEMU_FRAMING_BYTES + sendBytes;
    const got = readAvailable(this.output.fd, this.#in.address + this.#filled, wanted - this.#filled);
    if (got < 0) return -1;
    if (got === 0) throw new Error(`QEMU has closed its output: ${this.qemu.complaint()}`);
    this.#filled += got;
    if (this.#filled < wanted) return -1;
    this.#filled = 0;
    return this.#received.getUint32(QEMU_FRAMING_BYTES + NUMBER_OFFSET);
  }

  async close(): Promise<void> {
    for (const socket of this.inputs) socket.close();
    await this.qemu.stop();
    this.#in.close();
    this.closeBuffers();
  }
}
