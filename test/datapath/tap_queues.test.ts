/**
 * A tap with several queues (IFF_MULTI_QUEUE), as QEMU opens it for `-netdev tap,queues=N`: the programs sit
 * on the device, behind and before its queues.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import type { Tap } from "../../src/ffi/tap.ts";
import { TapQueue } from "../../src/proxy/tap_queue.ts";
import { join, segment } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-queues-";
const QUEUES = 4;
const FLOWS = 32;
const ROUNDS = 6;
const FIRST_PORT = 30_000;
const vnet = new Uint8Array(VNET_BYTES);

let vm: ProtectedVm;
let epoch = 1;

beforeAll(async () => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX, { workers: 2, queues: QUEUES });
  await vm.path.start(epoch);
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});
beforeEach(() => {
  for (const tap of [...vm.vms, ...vm.replicas]) while (tap.read() !== undefined);
});

const numberOf = (frame: Uint8Array) =>
  new DataView(frame.buffer, frame.byteOffset + VNET_BYTES).getUint32(38);
const portOf = (frame: Uint8Array, at: 34 | 36) =>
  new DataView(frame.buffer, frame.byteOffset + VNET_BYTES).getUint16(at);

function all(tap: Tap): Uint8Array[] {
  const frames: Uint8Array[] = [];
  for (let frame = tap.read(); frame !== undefined; frame = tap.read()) frames.push(frame);
  return frames;
}

const input = (flow: number, number: number) =>
  join(vnet, segment({ from: "client", clientPort: FIRST_PORT + flow, sequence: number }));

test("the VM's frames of any queue are held, compared and released in their connection's order", async () => {
  const data = (flow: number, round: number) =>
    join(
      vnet,
      segment({ clientPort: FIRST_PORT + flow, sequence: 1 + round, acknowledgment: 1, payload: [round] }),
    );
  // The secondary's guest has chosen other queues. The first segments are covered by a checkpoint.
  for (let round = 0; round < ROUNDS; round++) {
    for (let flow = 0; flow < FLOWS; flow++) {
      vm.vms[flow % QUEUES].write(data(flow, round));
      if (round > 0) vm.replicas[(flow + 1) % QUEUES].write(data(flow, round));
    }
    if (round > 0) continue;
    await until("the frames are held", () => vm.path.shared.stat("held_frames") === FLOWS);
    expect(vm.plane.counters().passed_released).toBe(0);
    vm.secondary.state.epoch = ++epoch;
    expect(await vm.path.checkpoint(bootTimeNsNumber(), epoch)).toBe(FLOWS);
  }
  const frames: Uint8Array[] = [];
  await until("released frames", () => {
    frames.push(...all(vm.far));
    return frames.length >= FLOWS * ROUNDS;
  });
  for (let flow = 0; flow < FLOWS; flow++) {
    const own = frames.filter((frame) => portOf(frame, 36) === FIRST_PORT + flow).map(numberOf);
    expect(own).toEqual(Array.from({ length: ROUNDS }, (_, i) => 1 + i));
  }
  expect(vm.path.shared.stat("released_compared")).toBe(FLOWS * (ROUNDS - 1));
  expect(vm.divergences).toEqual([]);
});

test("input reaches both VMs whole, a connection's in order on one queue of several", async () => {
  for (let number = 0; number < ROUNDS; number++) {
    for (let flow = 0; flow < FLOWS; flow++) vm.far.write(input(flow, number));
  }
  for (const taps of [vm.vms, vm.replicas]) {
    const queues: Uint8Array[][] = taps.map(() => []);
    await until("input", () => {
      taps.forEach((tap, i) => {
        queues[i].push(...all(tap));
      });
      return queues.flat().length >= FLOWS * ROUNDS;
    });
    expect(queues.flat()).toHaveLength(FLOWS * ROUNDS);
    expect(queues.filter((frames) => frames.length > 0).length).toBeGreaterThan(1);
    for (let flow = 0; flow < FLOWS; flow++) {
      const own = queues.map((frames) => frames.filter((frame) => portOf(frame, 34) === FIRST_PORT + flow));
      const used = own.filter((frames) => frames.length > 0);
      expect(used).toHaveLength(1);
      expect(used[0].map(numberOf)).toEqual(Array.from({ length: ROUNDS }, (_, i) => i));
    }
  }
});

test.each([
  ["primary's", 0],
  ["secondary's", 1],
])("the %s input barrier counts all queues together", async (_whose, side) => {
  const taps = [vm.vms, vm.replicas][side];
  const plane = [vm.plane, vm.secondary][side];
  const put = () => plane.counters()[side === 0 ? "mirrored" : "delivered"];
  const here = <T>(action: () => T) => inNamespace(vm.hosts[side], action);
  const queue = here(() => new TapQueue("vm", put));
  const before = put();
  for (let flow = 0; flow < FLOWS; flow++) vm.far.write(input(flow, 0));
  await until("input in the tap", () => put() === before + FLOWS);
  let read = 0;
  for (const tap of taps) {
    expect(here(() => queue.queued())).toBe(FLOWS - read);
    read += all(tap).length;
  }
  expect(read).toBe(FLOWS);
  expect(here(() => queue.queued())).toBe(0);
});

test("a queue that the guest does not use gets no input", async () => {
  for (const tap of [...vm.vms.slice(1), ...vm.replicas.slice(1)]) tap.setAttached(false);
  try {
    for (let flow = 0; flow < FLOWS; flow++) vm.far.write(input(flow, 0));
    for (const [used, ...others] of [vm.vms, vm.replicas]) {
      const frames: Uint8Array[] = [];
      await until("input", () => {
        frames.push(...all(used));
        return frames.length >= FLOWS;
      });
      expect(others.flatMap((tap) => all(tap))).toEqual([]);
    }
  } finally {
    for (const tap of [...vm.vms.slice(1), ...vm.replicas.slice(1)]) tap.setAttached(true);
  }
});
