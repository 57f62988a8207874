/**
 * A worker that has many small frames to release at once puts them at the tap in a run of live frames, in its
 * own thread.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { endLease, grantLease } from "../bpf/data_plane_under_test.ts";
import { join, readSegment, segment, tcp } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { quiet, until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-live-release-";
const FRAMES = 200;
/** A worker that did not wait would have released them by then. */
const QUIET_MS = 50;

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
  await until("the worker holds them", () => vm.path.shared.stat("held_frames") === FRAMES);
}

/** Resolves with the number of frames that it releases. */
function checkpoint(): Promise<number> {
  epoch++;
  vm.secondary.state.epoch = epoch;
  return vm.path.checkpoint(bootTimeNsNumber(), epoch);
}

/** Waits for what hold() has sent last. */
async function leftInOrder(): Promise<void> {
  const sequences: number[] = [];
  await until("the last frame has come out", () => {
    for (let frame = vm.far.read(); frame !== undefined; frame = vm.far.read()) {
      sequences.push(readSegment(frame.subarray(VNET_BYTES)).sequence);
    }
    return sequences.length >= FRAMES;
  });
  expect(sequences).toEqual(Array.from({ length: FRAMES }, (_, i) => sequence - FRAMES + i));
  expect(vm.path.shared.stat("live_frames")).toBe(sequence);
  expect(vm.path.shared.stat("send_failed")).toBe(0);
  expect(vm.plane.counters().passed_released).toBe(sequence);
}

test("what a checkpoint releases leaves in runs, in order", async () => {
  await hold();
  expect(await checkpoint()).toBe(FRAMES);
  await leftInOrder();
});

test("none of it is handed to the kernel without a lease", async () => {
  await hold();
  endLease(vm.plane);
  expect(await checkpoint()).toBe(0);
  await quiet(QUIET_MS);
  expect(vm.far.read()).toBeUndefined();
  grantLease(vm.plane);
  await leftInOrder();
  expect(vm.plane.counters().dropped_lease).toBe(0);
});
