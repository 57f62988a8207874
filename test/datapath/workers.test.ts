/**
 * A VM whose flows are shared among four workers: the same promises as with one, and one word for all of
 * them.
 */
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "bun:test";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { join, segment, tcp, udp } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-workers-";
const WORKERS = 4;
const RING_BYTES = 2 ** 18;
const FLOWS = 64;
const FIRST_PORT = 40_000;
const vnet = new Uint8Array(VNET_BYTES);
const PAYLOAD = new Uint8Array(100).fill(7);

let vm: ProtectedVm;
let epoch = 1;
/** Of every connection's next segment; each test begins where none has been. */
let sequence = 1;

beforeAll(async () => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX, { workers: WORKERS, ringBytes: RING_BYTES });
  await vm.path.start(epoch);
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});
beforeEach(async () => {
  // A checkpoint: whatever a test has left behind is released, and both VMs go on from the same state.
  await checkpoint();
  await until("quiet", () => vm.path.shared.stat("held_frames") === 0);
  while (vm.far.read() !== undefined);
  vm.divergences.length = 0;
});

async function checkpoint(): Promise<number> {
  epoch++;
  vm.secondary.state.epoch = epoch;
  return await vm.path.checkpoint(bootTimeNsNumber(), epoch);
}

/** A segment of connection `flow`, `index` segments behind those that the test began with. */
function data(flow: number, index: number, payload: Uint8Array = PAYLOAD): Uint8Array {
  const at = sequence + index * PAYLOAD.length;
  return join(vnet, segment({ clientPort: FIRST_PORT + flow, sequence: at, acknowledgment: 1, payload }));
}

/** What has come out at the far end, as [client's port, sequence number] in order of arrival. */
function arrived(): [number, number][] {
  const frames: [number, number][] = [];
  for (let frame = vm.far.read(); frame !== undefined; frame = vm.far.read()) {
    const view = new DataView(frame.buffer, frame.byteOffset + VNET_BYTES);
    frames.push([view.getUint16(36), view.getUint32(38)]);
  }
  return frames;
}

/** Connections as the client and both VMs know them: their first segments are covered by a checkpoint. */
async function openConnections(): Promise<void> {
  for (let flow = 0; flow < FLOWS; flow++) vm.vm.write(data(flow, 0));
  await until("the frames are held", () => vm.path.shared.stat("held_frames") === FLOWS);
  await checkpoint();
  await until("first segments", () => arrivedCount(FLOWS));
  sequence += PAYLOAD.length;
}

let seen: [number, number][] = [];
function arrivedCount(count: number): boolean {
  seen.push(...arrived());
  return seen.length >= count;
}

async function arrivals(count: number): Promise<[number, number][]> {
  await until(`${count} frames at the far end`, () => arrivedCount(count));
  return seen;
}

describe("four workers", () => {
  beforeEach(async () => {
    seen = [];
    sequence += 100 * PAYLOAD.length;
    await openConnections();
    seen = [];
  });

  test("release every connection's segments in order, and all workers have some", async () => {
    const rounds = 5;
    for (let round = 0; round < rounds; round++) {
      for (let flow = 0; flow < FLOWS; flow++) {
        vm.vm.write(data(flow, round));
        vm.replica.write(data(flow, round));
      }
    }
    const frames = await arrivals(rounds * FLOWS);
    expect(frames).toHaveLength(rounds * FLOWS);
    for (let flow = 0; flow < FLOWS; flow++) {
      const own = frames.filter(([port]) => port === FIRST_PORT + flow).map(([, at]) => at);
      expect(own).toEqual(Array.from({ length: rounds }, (_, i) => sequence + i * PAYLOAD.length));
    }
    expect(vm.divergences).toEqual([]);
    // Each worker has read its own rings: none is at the beginning still.
    for (const { primary, secondary } of vm.plane.workers) {
      for (const setup of [primary, secondary]) {
        const ring = new Ring(setup);
        expect(ring.producedTo()).toBeGreaterThan(0);
        expect(ring.unreadBytes()).toBe(0);
        ring.close();
      }
    }
  });

  test("release nothing that the secondary has sent otherwise, whoever has the connection", async () => {
    const other = Uint8Array.from(PAYLOAD, (byte, i) => (i === 50 ? byte + 1 : byte));
    for (let flow = 0; flow < FLOWS; flow++) {
      vm.vm.write(data(flow, 0));
      vm.replica.write(data(flow, 0, flow % 2 === 0 ? other : PAYLOAD));
    }
    await until("divergences", () => vm.divergences.length === FLOWS / 2);
    const frames = await arrivals(FLOWS / 2);
    await vm.path.ping();
    expect(arrived()).toEqual([]);
    expect(frames.map(([port]) => (port - FIRST_PORT) % 2).every((odd) => odd === 1)).toBe(true);
    expect(vm.divergences.every(({ class: what }) => what === "payload")).toBe(true);
    expect(vm.path.shared.stat("held_frames")).toBe(FLOWS / 2);
    expect(await checkpoint()).toBe(FLOWS / 2);
    await arrivals(FLOWS);
  });

  test("compare with one epoch: earlier ones count nowhere, later ones after the checkpoint", async () => {
    vm.secondary.state.epoch = epoch - 1;
    const stale = vm.path.shared.stat("secondary_stale");
    for (let flow = 0; flow < FLOWS; flow++) {
      vm.vm.write(data(flow, 0));
      vm.replica.write(data(flow, 0));
    }
    await until("stale frames", () => vm.path.shared.stat("secondary_stale") === stale + FLOWS);
    expect(vm.path.shared.stat("held_frames")).toBe(FLOWS);
    await checkpoint();
    await arrivals(FLOWS);
    sequence += PAYLOAD.length;

    // The secondary has loaded the next checkpoint already, the primary's host has not heard of it.
    seen = [];
    await vm.path.beginCheckpoint(bootTimeNsNumber());
    const boundaryNs = bootTimeNsNumber();
    vm.secondary.state.epoch = epoch + 1;
    for (let flow = 0; flow < FLOWS; flow++) {
      vm.vm.write(data(flow, 0));
      vm.replica.write(data(flow, 0));
    }
    await until("early frames", () => vm.path.shared.stat("secondary_pending_frames") === FLOWS);
    await until("the frames are held", () => vm.path.shared.stat("held_frames") === FLOWS);
    expect(arrived()).toEqual([]);
    epoch++;
    const before = vm.path.shared.stat("released_compared");
    expect(await vm.path.checkpoint(boundaryNs, epoch)).toBe(FLOWS);
    await arrivals(FLOWS);
    expect(vm.path.shared.stat("released_compared") - before).toBe(FLOWS);
    expect(vm.divergences).toEqual([]);
  });

  test("one with a full ring does not hold up the others; a checkpoint of all sets it right", async () => {
    // A connection that the secondary is silent about, until its worker's ring is full.
    const large = new Uint8Array(1400).fill(1);
    const { shared } = vm.path;
    const isRead = () => {
      const { held, collected } = vm.plane.counters();
      return shared.stat("primary_frames") === held && shared.stat("secondary_frames") === collected;
    };
    const lost = () => vm.plane.counters().hold_ring_full;
    const before = lost();
    for (let i = 0; lost() === before; i++) {
      vm.vm.write(join(vnet, segment({ clientPort: 50_000, sequence: i * large.length, payload: large })));
      if (i > RING_BYTES) throw new Error("The ring does not get full.");
    }
    await until("frames read", isRead);
    const held = shared.stat("held_frames");
    expect(held).toBeGreaterThan(RING_BYTES / 1600 - 5);
    // The others' connections: those of the full worker are lost on the way in, all others go through.
    const full = lost();
    for (let flow = 0; flow < FLOWS; flow++) {
      vm.vm.write(data(flow, 0));
      vm.replica.write(data(flow, 0));
    }
    const lostOthers = lost() - full;
    expect(lostOthers).toBeGreaterThan(0);
    expect(lostOthers).toBeLessThan(FLOWS / 2);
    await arrivals(FLOWS - lostOthers);
    await until("frames read", isRead);
    expect(seen.every(([port]) => port < 50_000)).toBe(true);
    expect(shared.stat("held_frames")).toBe(held);
    expect(await checkpoint()).toBe(held);
    await arrivals(FLOWS - lostOthers + held);
    seen = [];
    // All workers take part again, the one that was full too.
    sequence += 100 * PAYLOAD.length;
    await openConnections();
    seen = [];
    for (let flow = 0; flow < FLOWS; flow++) {
      vm.vm.write(data(flow, 0));
      vm.replica.write(data(flow, 0));
    }
    await arrivals(FLOWS);
  });

  test("release everything when the VM runs alone, and count it together", async () => {
    for (let flow = 0; flow < FLOWS; flow++) vm.vm.write(data(flow, 0));
    await until("the frames are held", () => vm.path.shared.stat("held_frames") === FLOWS);
    const alone = vm.path.shared.stat("released_alone");
    expect(await vm.path.releaseAlone()).toBe(FLOWS);
    expect(vm.path.shared.stat("released_alone") - alone).toBe(FLOWS);
    expect(vm.path.shared.holdBuckets().reduce((sum, count) => sum + count, 0)).toBe(
      vm.path.shared.stat("hold_count"),
    );
    await arrivals(FLOWS);
    await vm.path.start(epoch);
  });

  test("put diverted input back once, in order", async () => {
    vm.plane.state.divertInput = true;
    const count = 20;
    for (let i = 0; i < count; i++) {
      vm.far.write(join(vnet, segment({ from: "client", sequence: i, flags: tcp.ACK })));
    }
    await until("diverted input", () => vm.plane.counters().diverted >= count);
    expect(vm.vm.read()).toBeUndefined();
    expect(await vm.path.replayInput()).toBe(count);
    expect(vm.plane.state.divertInput).toBe(false);
    const got: number[] = [];
    await until("input", () => {
      for (let frame = vm.vm.read(); frame !== undefined; frame = vm.vm.read()) {
        got.push(new DataView(frame.buffer, frame.byteOffset + VNET_BYTES).getUint32(38));
      }
      return got.length >= count;
    });
    expect(got).toEqual(Array.from({ length: count }, (_, i) => i));
  });

  test("put back what a program diverts when the diversion is over already", async () => {
    const inputs = () => {
      let count = 0;
      while (vm.vm.read() !== undefined) count++;
      return count;
    };
    // A program that has seen the flag on one processor puts its frame into the ring after it was cleared on
    // another one.
    const late = () => {
      vm.plane.state.divertInput = true;
      const { diverted } = vm.plane.counters();
      vm.far.write(join(vnet, segment({ from: "client", sequence: 1, flags: tcp.ACK })));
      expect(vm.plane.counters().diverted).toBe(diverted + 1);
      vm.plane.state.divertInput = false;
    };
    // Where the machine is so busy that this comes too late, the next end of a diversion finds it: another
    // try.
    let found = false;
    for (let attempt = 0; attempt < 5 && !found; attempt++) {
      await vm.path.replayInput();
      inputs();
      late();
      for (let wait = 0; wait < 40 && !found; wait++) {
        await Bun.sleep(5);
        found = inputs() === 1;
      }
    }
    expect(found).toBe(true);
  });

  test("compare a datagram of one VM with the fragments of the other's", async () => {
    const whole = udp(
      "guest",
      new Uint8Array(1000).map((_, i) => i * 13),
    );
    vm.vm.write(join(vnet, whole));
    for (const fragment of fragmentsOf(whole, [0, 400, 800])) vm.replica.write(join(vnet, fragment));
    await arrivals(1);
    expect(vm.divergences).toEqual([]);
  });
});

/** Cuts an IPv4 frame at these places of its payload. */
function fragmentsOf(frame: Uint8Array, places: number[]): Uint8Array[] {
  const header = frame.subarray(0, 34);
  const payload = frame.subarray(34);
  return places.map((from, i) => {
    const last = i === places.length - 1;
    const part = payload.subarray(from, last ? undefined : places[i + 1]);
    const out = join(header, part);
    const view = new DataView(out.buffer);
    view.setUint16(16, 20 + part.length);
    view.setUint16(20, (last ? 0 : 0x2000) | (from / 8));
    view.setUint16(24, 0);
    let sum = 0;
    for (let at = 14; at < 34; at += 2) sum += view.getUint16(at);
    while (sum > 0xffff) sum = (sum & 0xffff) + (sum >>> 16);
    view.setUint16(24, ~sum & 0xffff);
    return out;
  });
}
