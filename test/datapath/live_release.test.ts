/** A worker that has many small frames to release at once puts them at the tap in a run of live frames, in its own thread. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { endLease, grantLease } from "../bpf/data_plane_under_test.ts";
import { join, readSegment, segment, tcp } from "../bpf/frames.ts";
import { removeNamespaces, until } from "../bpf/network.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-live-release-";
const FRAMES = 200;

let vm: ProtectedVm;
let epoch = 1;
let sequence = 0;

beforeAll(async () => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX);
  await vm.path.start(epoch);
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});

/** Small segments, none of which can join the one before. */
async function hold(): Promise<void> {
  for (const end = sequence + FRAMES; sequence < end; sequence++) {
    const frame = segment({ sequence, flags: tcp.ACK | tcp.PSH, payload: [sequence & 255] });
    vm.vm.write(join(new Uint8Array(VNET_BYTES), frame));
  }
  await until("held frames", () => vm.path.shared.stat("held_frames") === FRAMES);
}

async function checkpoint(): Promise<void> {
  epoch++;
  vm.secondary.state.epoch = epoch;
  expect(await vm.path.checkpoint(bootTimeNsNumber(), epoch)).toBe(FRAMES);
}

test("what a checkpoint releases leaves in runs, in order", async () => {
  await hold();
  await checkpoint();
  const sequences: number[] = [];
  await until("last frame", () => {
    for (let frame = vm.far.read(); frame !== undefined; frame = vm.far.read()) {
      sequences.push(readSegment(frame.subarray(VNET_BYTES)).sequence);
    }
    return sequences.length >= FRAMES;
  });
  expect(sequences).toEqual(Array.from({ length: FRAMES }, (_, i) => i));
  expect(vm.path.shared.stat("live_frames")).toBe(FRAMES);
  expect(vm.path.shared.stat("send_failed")).toBe(0);
  expect(vm.plane.counters().passed_released).toBe(FRAMES);
});

test("none of it leaves without a lease", async () => {
  await hold();
  endLease(vm.plane);
  await checkpoint();
  await until("dropped frames", () => vm.plane.counters().dropped_lease === FRAMES);
  expect(vm.far.read()).toBeUndefined();
  grantLease(vm.plane);
});
