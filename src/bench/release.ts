/**
 * Comparison and release with everything real but the two VMs: frames written into two taps lie in the packet rings
 * (held there by the BPF programs), the loop of the data-path worker compares them and sends them back through the
 * injection pair, and they count when the bridge hands them to its far port.
 *
 * The second tap stands in for the secondary's tunnel: its frames are recorded by the same program into a ring of the
 * same kind. The rings are filled before the clock starts, so that the machine's cores are left to what is measured.
 */
import { readFileSync } from "node:fs";
import { Comparer } from "../compare/comparer.ts";
import { Intake } from "../compare/intake.ts";
import { recordTimeNs } from "../compare/parse.ts";
import { ReleaseQueue } from "../datapath/release_queue.ts";
import { BATCH_RECORDS } from "../datapath/shared.ts";
import type { DataPlane } from "../ffi/data_plane.ts";
import { ROLE } from "../ffi/layout.ts";
import { bootTimeNs, bootTimeNsNumber, ifindex, Mapping, memcmp } from "../ffi/libc.ts";
import { LiveFrames } from "../ffi/live_frames.ts";
import { PacketSocket } from "../ffi/packet_socket.ts";
import { Ring } from "../ffi/ring.ts";
import { Tap } from "../ffi/tap.ts";
import { BenchNamespace, loadPlane } from "./network.ts";
import { recordStride } from "./record_memory.ts";
import { Traffic } from "./traffic.ts";
import { measureUsage, type Usage } from "./usage.ts";

const RING_BYTES = 64 * 1024 * 1024;
const ARRIVAL_TIMEOUT_MS = 10_000;
const ARRIVAL_POLL_MS = 0.1;
const MARKS = { injectMark: 0xc0b0_0001, deliverMark: 0xc0b0_0002, replayMark: 0xc0b0_0003 };

/** One held VM: a tap whose output goes to a ring. */
class HeldTap {
  readonly plane: DataPlane;
  readonly ring: Ring;
  readonly #tap: Tap;
  readonly #unload: () => void;

  /** In the namespace that this thread is in. */
  constructor(name: string) {
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
      ringBytes: RING_BYTES,
    });
    this.plane = plane;
    this.#unload = unload;
    plane.attach(at);
    plane.state.leaseDeadlineNs = bootTimeNs() + 86_400_000_000_000n;
    plane.state.role = ROLE.PRIMARY;
    this.ring = new Ring(plane.ringFds.primary, plane.ringBytes.primary);
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
    this.ring.close();
    this.#unload();
    this.#tap.close();
  }
}

/** How many rounds of a case fit into a ring, with some room to spare. */
export function roundsPerRing(sendBytesMax: number, flows: number, framesMax: number): number {
  const frames = Math.min(framesMax, Math.floor((RING_BYTES * 0.95) / recordStride(sendBytesMax)));
  return Math.max(1, Math.floor(frames / flows));
}

export class ReleaseBench {
  readonly #namespace: BenchNamespace;
  readonly #primary: HeldTap;
  readonly #secondary: HeldTap;
  readonly #far: Tap;
  readonly #inject: PacketSocket;
  readonly #live: LiveFrames;
  readonly #comparer: Comparer;
  readonly #intake: Intake;
  readonly #buffer = new Mapping(128 * 1024);
  readonly #releases: ReleaseQueue;
  #nowNs = 0;
  #heldNs = 0;
  #divergence: string | undefined;
  #streamStart = 0;

  /** @param measure how the part that counts is measured; the rings are full when it begins */
  constructor(private readonly measure: (run: () => void) => Usage = measureUsage) {
    const namespace = new BenchNamespace("release");
    this.#namespace = namespace;
    try {
      for (const name of ["vmp", "vms"]) {
        namespace.ip(`link add ${name}-inject0 mtu 1504 type veth peer name ${name}-inject1 mtu 1504`);
        for (const end of ["inject0", "inject1"]) namespace.ip(`link set ${name}-${end} up`);
      }
      namespace.ip("link add br0 type bridge mcast_snooping 0");
      [this.#primary, this.#secondary, this.#inject] = namespace.run(() => {
        const primary = new HeldTap("vmp");
        return [primary, new HeldTap("vms"), new PacketSocket(ifindex("vmp-inject0"))];
      });
      // Nobody reads there: once its queue has the one frame it takes, it throws away and counts all others.
      this.#far = namespace.run(() => new Tap("far"));
      namespace.ip("link set far txqueuelen 1");
      namespace.tc("qdisc replace dev far root noqueue");
      for (const name of ["vmp", "far"]) namespace.ip(`link set ${name} master br0`);
      for (const name of ["vmp", "vms", "far", "br0"]) namespace.ip(`link set ${name} up`);
      namespace.run(() => this.#fillQueue(ifindex("far")));
    } catch (error) {
      namespace.close();
      throw error;
    }
    this.#live = new LiveFrames(this.#primary.plane.liveFrames);
    this.#releases = new ReleaseQueue(this.#primary.ring, this.#inject, this.#live);
    this.#comparer = new Comparer({
      primary: this.#primary.ring,
      secondary: this.#secondary.ring,
      memcmp,
      sink: {
        release: (slot) => this.#release(slot),
        finish: (slot) => this.#secondary.ring.done(slot),
        diverged: (divergence) => {
          this.#divergence ??= `${divergence.class}: ${divergence.detail}`;
        },
      },
      maxWaitNs: 3_600e9,
    });
    this.#intake = new Intake(this.#comparer, this.#primary.ring, this.#secondary.ring);
  }

  /** Holds what both VMs send, then compares and releases it. */
  compareAndRelease(primary: Traffic, secondary: Traffic, streamBytes: number): Usage {
    this.#primary.send(primary, this.#buffer, this.#streamStart);
    this.#secondary.send(secondary, this.#buffer, this.#streamStart);
    this.#streamStart += streamBytes;
    const usage = this.#untilArrived(primary.count, () => {
      for (let work = 1; work > 0; ) {
        this.#nowNs = bootTimeNsNumber();
        work = this.#intake.take(BATCH_RECORDS);
        this.#releases.flush();
      }
    });
    if (this.#divergence !== undefined) throw new Error(`Equal frames diverged: ${this.#divergence}.`);
    // What is sent in between is not compared: the next run's streams do not continue this one's.
    this.#comparer.releaseAll();
    return usage;
  }

  /** The limit: holds what one VM sends, then releases it unseen. */
  release(traffic: Traffic, streamBytes: number): Usage {
    this.#primary.send(traffic, this.#buffer, this.#streamStart);
    this.#streamStart += streamBytes;
    const { ring } = this.#primary;
    return this.#untilArrived(traffic.count, () => {
      for (let slot = ring.next(); slot >= 0; slot = ring.next()) this.#release(slot);
      this.#releases.flush();
    });
  }

  close(): void {
    this.#inject.close();
    this.#live.close();
    this.#primary.close();
    this.#secondary.close();
    this.#far.close();
    this.#buffer.close();
    this.#namespace.close();
  }

  #fillQueue(farIfindex: number): void {
    const socket = new PacketSocket(farIfindex);
    const traffic = new Traffic({ payloadBytes: 64, flows: 1, rounds: 1 });
    traffic.lay(new Uint8Array(this.#buffer.buffer), 0);
    socket.queue(this.#buffer.address, traffic.bytesMax);
    socket.flush();
    socket.close();
  }

  #untilArrived(packets: number, run: () => void): Usage {
    const before = this.#arrived();
    const joinedBefore = this.#releases.joinedFrames;
    const held =
      this.#primary.plane.counters().hold_ring_full + this.#secondary.plane.counters().hold_ring_full;
    if (held > 0) throw new Error(`${held} frames found a full ring.`);
    return this.measure(() => {
      this.#namespace.run(run);
      const deadline = performance.now() + ARRIVAL_TIMEOUT_MS;
      // Neighbours of a stream that left as one frame arrive as one, as at a network card that segments.
      const expected = packets - (this.#releases.joinedFrames - joinedBefore);
      while (this.#arrived() - before < expected) {
        // Those that are left are in the hands of another thread, the kernel's.
        Bun.sleepSync(ARRIVAL_POLL_MS);
        if (performance.now() > deadline) {
          const missing = expected - (this.#arrived() - before);
          throw new Error(
            `${missing} of ${expected} frames have not arrived (${this.#inject.failed} not sent).`,
          );
        }
      }
    });
  }

  /** Frames that the bridge has handed to its far port. */
  #arrived(): number {
    const text = this.#namespace.run(() => readFileSync("/proc/thread-self/net/dev", "latin1"));
    // receive: bytes packets errs drop fifo frame compressed multicast; transmit: bytes packets errs drop ...
    const fields = /^\s*far:\s*(.*)$/m.exec(text)?.[1]?.split(/\s+/);
    return Number(fields?.[9]) + Number(fields?.[11]);
  }

  #release(slot: number): void {
    const { ring } = this.#primary;
    const { view } = ring;
    const offset = ring.offset(slot);
    // The worker keeps a histogram of it.
    const sinceNs = recordTimeNs(view, offset);
    this.#heldNs += this.#nowNs - sinceNs;
    this.#releases.release(slot);
  }
}
