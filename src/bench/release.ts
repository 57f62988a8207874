/**
 * Comparison and release with everything real but the two VMs: frames written into two taps lie in the packet
 * rings (held there by the BPF programs), the loop of the data-path worker compares them and sends them back
 * through the injection pair, and they count when the bridge hands them to its far port.
 *
 * A VM's flows may be shared among several workers, each with rings of its own and, but for the first, a
 * thread.
 *
 * The second tap stands in for the secondary's tunnel: its frames are recorded by the same program into a
 * ring of the same kind. The rings are filled before the clock starts, so that the machine's cores are left
 * to what is measured.
 */
import { readFileSync } from "node:fs";
import { DataPathStats, SharedBlock } from "../datapath/shared.ts";
import type { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import { bootTimeNs, ifindex, Mapping } from "../ffi/libc.ts";
import { PacketSocket } from "../ffi/packet_socket.ts";
import { Tap } from "../ffi/tap.ts";
import { BenchNamespace, loadPlane } from "./bench_namespace.ts";
import {
  DrivenLoop,
  type DrivenLoopSetup,
  type ReleaseThreadSetup,
  SHARED,
  SHARED_INTS,
  Task,
} from "./driven_loop.ts";
import { recordStride } from "./record_memory.ts";
import { Traffic } from "./segments.ts";
import { measureUsage, type Usage } from "./usage.ts";

const RING_BYTES = 64 * 1024 * 1024;
const ARRIVAL_TIMEOUT_MS = 10_000;
const ARRIVAL_POLL_MS = 0.1;
const MARKS = { injectMark: 0xc0b0_0001, deliverMark: 0xc0b0_0002, replayMark: 0xc0b0_0003 };

/** One held VM: a tap whose output goes to a ring, or is shared among several. */
class HeldTap {
  readonly plane: DataPlane;
  readonly #tap: Tap;
  readonly #unload: () => void;

  /** In the namespace that this thread is in. */
  constructor(name: string, workers: number) {
    this.#tap = new Tap(name);
    const at = {
      tapIfindex: ifindex(name),
      // Nothing ever arrives at this end of the pair: it does for the tunnel that there is not.
      tunnelIfindex: ifindex(`${name}-inject0`),
      injectIfindex: ifindex(`${name}-inject0`),
    };
    const { tapIfindex, tunnelIfindex } = at;
    const { plane, unload } = loadPlane(name, {
      settings: { tapIfindex, tunnelIfindex, peerIpv4: 0xc612_0001, tunnelId: 1, ...MARKS },
      workers,
      ringBytes: RING_BYTES,
    });
    this.plane = plane;
    this.#unload = unload;
    plane.attach(at);
    plane.state.leaseDeadlineNs = bootTimeNs() + 86_400_000_000_000n;
    plane.state.role = ROLE.PRIMARY;
  }

  /** The VM sends all segments of `traffic`. */
  send(traffic: Traffic, buffer: Mapping, streamStart: number): void {
    const bytes = new Uint8Array(buffer.buffer);
    const view = new DataView(buffer.buffer);
    traffic.lay(bytes, 0);
    for (let i = 0; i < traffic.count; i++) {
      this.#tap.writeFrom(buffer.address, traffic.patch(view, 0, i, streamStart));
    }
  }

  close(): void {
    this.#unload();
    this.#tap.close();
  }
}

/** How many rounds of a case fit into a ring, with some room to spare. */
export function roundsPerRing(sendBytesMax: number, flows: number, framesMax: number): number {
  const frames = Math.min(framesMax, Math.floor((RING_BYTES * 0.95) / recordStride(sendBytesMax)));
  return Math.max(1, Math.floor(frames / flows));
}

/** A worker in a thread of its own, started in the network namespace of the calling one. */
class ReleaseThread {
  readonly ready: Promise<void>;
  readonly #shared = new Int32Array(new SharedArrayBuffer(4 * SHARED_INTS));
  readonly #thread = new Worker(new URL("./release_thread.ts", import.meta.url).href);
  #failure = "it has said nothing";

  constructor(loop: DrivenLoopSetup) {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.ready = promise;
    promise.catch(() => undefined); // whoever waits for `ready` gets the error
    this.#thread.onmessage = ({ data }: MessageEvent<string | undefined>) => {
      if (data === undefined) return resolve();
      this.#failure = data;
      reject(new Error(data));
    };
    const tasks = this.#shared.buffer as SharedArrayBuffer;
    this.#thread.postMessage({ loop, tasks } satisfies ReleaseThreadSetup);
  }

  begin(task: Task): void {
    Atomics.store(this.#shared, SHARED.task, task);
    Atomics.notify(this.#shared, SHARED.task);
  }

  /** Waits until the task is done. Throws if the thread has failed. */
  finish(): void {
    while (Atomics.load(this.#shared, SHARED.task) !== Task.Done) Bun.sleepSync(ARRIVAL_POLL_MS);
    if (Atomics.load(this.#shared, SHARED.failed) !== 0) {
      throw new Error(`A worker's thread has failed: ${this.#failure}.`);
    }
  }

  close(): void {
    if (Atomics.load(this.#shared, SHARED.failed) === 0) {
      this.begin(Task.Quit);
      this.finish();
    }
    this.#thread.terminate();
  }
}

interface ReleaseBenchOptions {
  /** That share the VM's flows; 1. The first one's thread is the caller's. */
  workers?: number;
  /** How the part that counts is measured; the rings are full when it begins. */
  measure?: (run: () => void) => Usage;
}

export class ReleaseBench {
  readonly #namespace = new BenchNamespace("release");
  readonly #measure: (run: () => void) => Usage;
  readonly #primary: HeldTap;
  readonly #secondary: HeldTap;
  readonly #far: Tap;
  readonly #loop: DrivenLoop;
  /** Of all workers. */
  readonly #stats: DataPathStats;
  readonly #threads: readonly ReleaseThread[];
  readonly #buffer = new Mapping(128 * 1024);
  #streamStart = 0;

  static async create(options: ReleaseBenchOptions = {}): Promise<ReleaseBench> {
    const bench = new ReleaseBench(options);
    try {
      for (const { ready } of bench.#threads) await ready;
      return bench;
    } catch (error) {
      bench.close();
      throw error;
    }
  }

  private constructor({ workers = 1, measure = measureUsage }: ReleaseBenchOptions) {
    const namespace = this.#namespace;
    this.#measure = measure;
    try {
      for (const name of ["vmp", "vms"]) {
        namespace.ip(`link add ${name}-inject0 mtu 1504 type veth peer name ${name}-inject1 mtu 1504`);
        for (const end of ["inject0", "inject1"]) namespace.ip(`link set ${name}-${end} up`);
      }
      namespace.ip("link add br0 type bridge mcast_snooping 0");
      [this.#primary, this.#secondary] = namespace.run(() => {
        const primary = new HeldTap("vmp", workers);
        return [primary, new HeldTap("vms", workers)];
      });
      // Nobody reads there: once its queue has the one frame it takes, it throws away and counts all others.
      this.#far = namespace.run(() => new Tap("far"));
      namespace.ip("link set far txqueuelen 1");
      namespace.tc("qdisc replace dev far root noqueue");
      for (const name of ["vmp", "far"]) namespace.ip(`link set ${name} master br0`);
      for (const name of ["vmp", "vms", "far", "br0"]) namespace.ip(`link set ${name} up`);
      namespace.run(() => this.#fillQueue(ifindex("far")));
      const blocks = this.#primary.plane.workers.map(() => new SharedBlock());
      this.#stats = new DataPathStats(blocks);
      const [first, ...others] = namespace.run(() => this.#loops(ifindex("vmp-inject0"), blocks));
      this.#loop = namespace.run(() => new DrivenLoop(first));
      this.#threads = namespace.run(() => others.map((setup) => new ReleaseThread(setup)));
    } catch (error) {
      namespace.close();
      throw error;
    }
  }

  /** Holds what both VMs send, then compares and releases it. */
  compareAndRelease(primary: Traffic, secondary: Traffic, streamBytes: number): Usage {
    this.#primary.send(primary, this.#buffer, this.#streamStart);
    this.#secondary.send(secondary, this.#buffer, this.#streamStart);
    this.#streamStart += streamBytes;
    this.#share(Task.Begin);
    return this.#untilArrived(primary.count, Task.Drain);
  }

  /** The limit: holds what one VM sends, then releases it unseen. */
  release(traffic: Traffic, streamBytes: number): Usage {
    this.#primary.send(traffic, this.#buffer, this.#streamStart);
    this.#streamStart += streamBytes;
    return this.#untilArrived(traffic.count, Task.ReleaseAlone);
  }

  close(): void {
    for (const part of [...this.#threads, this.#loop, this.#primary, this.#secondary]) part.close();
    this.#far.close();
    this.#buffer.close();
    this.#namespace.close();
  }

  #loops(injectIfindex: number, blocks: readonly SharedBlock[]): DrivenLoopSetup[] {
    const { workers, liveFrames, stateFd } = this.#primary.plane;
    return workers.map((rings, worker) => ({
      buffer: blocks[worker].buffer,
      worker,
      rings: { ...rings, secondary: this.#secondary.plane.workers[worker].primary },
      liveFrames,
      stateFd,
      injectIfindex,
    }));
  }

  #fillQueue(farIfindex: number): void {
    const socket = new PacketSocket(farIfindex);
    const traffic = new Traffic({ payloadBytes: 64, flows: 1, rounds: 1 });
    traffic.lay(new Uint8Array(this.#buffer.buffer), 0);
    socket.queue(this.#buffer.address, traffic.bytesMax);
    socket.send();
    socket.close();
  }

  /** All workers take a step, the first one in this thread. */
  #share(task: Task): void {
    for (const thread of this.#threads) thread.begin(task);
    this.#namespace.run(() => this.#loop.take(task));
    for (const thread of this.#threads) thread.finish();
  }

  /** Measures a step until all its frames have arrived. */
  #untilArrived(packets: number, task: Task): Usage {
    const before = this.#arrived();
    const joinedBefore = this.#stats.stat("joined_frames");
    const held =
      this.#primary.plane.counter("hold_ring_full") + this.#secondary.plane.counter("hold_ring_full");
    if (held > 0) throw new Error(`${held} frames found a full ring.`);
    const usage = this.#measure(() => {
      this.#share(task);
      const deadline = performance.now() + ARRIVAL_TIMEOUT_MS;
      // Neighbours of a stream that left as one frame arrive as one, as at a network card that segments.
      const expected = packets - (this.#stats.stat("joined_frames") - joinedBefore);
      while (this.#arrived() - before < expected) {
        // Those that are left are in the hands of another thread, the kernel's.
        Bun.sleepSync(ARRIVAL_POLL_MS);
        if (performance.now() > deadline) {
          const missing = expected - (this.#arrived() - before);
          throw new Error(
            `${missing} of ${expected} frames have not arrived ` +
              `(${this.#stats.stat("send_failed")} not sent).`,
          );
        }
      }
    });
    this.#share(Task.Rest);
    return usage;
  }

  /** Frames that the bridge has handed to its far port. */
  #arrived(): number {
    const text = this.#namespace.run(() => readFileSync("/proc/thread-self/net/dev", "latin1"));
    // receive: bytes packets errs drop fifo frame compressed multicast; transmit: bytes packets errs drop ...
    const fields = /^\s*far:\s*(.*)$/m.exec(text)?.[1]?.split(/\s+/);
    return Number(fields?.[9]) + Number(fields?.[11]);
  }
}
