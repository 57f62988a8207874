/**
 * A primary whose lease runs out: what it would release waits for the next one, and nothing of it is dropped.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { endLease, grantLease } from "../bpf/data_plane_under_test.ts";
import { join, segment } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { quiet, until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-lease-";
const PAYLOAD = new Uint8Array(100).fill(7);
/** Short, so that what waits for the lease is long overdue. */
const MAX_WAIT_MS = 50;
/** What must not happen would have happened by then. */
const QUIET_MS = 3 * MAX_WAIT_MS;
const vnet = new Uint8Array(VNET_BYTES);

let vm: ProtectedVm;
let clientPort = 40_000;
let epoch = 1;

beforeAll(() => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX, { maxWaitMs: MAX_WAIT_MS });
});
beforeEach(async () => {
  grantLease(vm.plane);
  await vm.path.start(epoch);
  clientPort++;
  vm.divergences.length = 0;
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});

function data(index: number): Uint8Array {
  const sequence = 1 + index * PAYLOAD.length;
  return join(vnet, segment({ clientPort, sequence, acknowledgment: 1, payload: PAYLOAD }));
}

const seen: number[] = [];

/** Sequence numbers of what has come out, as indexes. */
function arrived(): number[] {
  for (let frame = vm.far.read(); frame !== undefined; frame = vm.far.read()) {
    const view = new DataView(frame.buffer, frame.byteOffset + VNET_BYTES);
    seen.push((view.getUint32(38) - 1) / PAYLOAD.length);
  }
  return seen;
}

/** Resolves when `count` frames have come out; returns their indexes. */
async function released(count: number): Promise<number[]> {
  await until(`${count} frames have come out`, () => arrived().length >= count, { seen: arrived });
  return seen.splice(0);
}

/** The lease runs out; what both VMs send then lies in the rings. */
async function withoutLease(indexes: { primary: number[]; secondary: number[] }): Promise<void> {
  endLease(vm.plane);
  const { held, collected } = vm.plane.counters();
  for (const index of indexes.primary) vm.vm.write(data(index));
  for (const index of indexes.secondary) vm.replica.write(data(index));
  await until("everything lies in the rings", () => {
    const now = vm.plane.counters();
    return (
      now.held === held + indexes.primary.length && now.collected === collected + indexes.secondary.length
    );
  });
  await quiet(QUIET_MS);
  expect(arrived()).toEqual([]);
  await vm.path.ping();
}

function expectNothingLost(): void {
  expect(vm.plane.counters().dropped_lease).toBe(0);
  expect(vm.divergences).toEqual([]);
}

test("what both VMs have sent meanwhile leaves with the next lease, in order", async () => {
  const indexes = Array.from({ length: 40 }, (_, index) => index);
  await withoutLease({ primary: indexes, secondary: indexes });
  grantLease(vm.plane);
  expect(await released(indexes.length)).toEqual(indexes);
  expectNothingLost();
});

test("a frame held before the lease ran out is no divergence: its counterpart is there", async () => {
  const { held } = vm.plane.counters();
  vm.vm.write(data(0));
  await until("the worker holds it", () => vm.path.shared.stat("held_frames") === 1);
  await withoutLease({ primary: [], secondary: [0] });
  expect(vm.plane.counters().held).toBe(held + 1);
  grantLease(vm.plane);
  expect(await released(1)).toEqual([0]);
  expectNothingLost();
});

test("what a checkpoint covers leaves with the next lease; the agent does not wait for that", async () => {
  await withoutLease({ primary: [0, 1, 2], secondary: [] });
  const horizonNs = bootTimeNsNumber();
  await vm.path.beginCheckpoint(horizonNs);
  epoch++;
  expect(await vm.path.checkpoint(bootTimeNsNumber(), epoch)).toBe(0);
  vm.secondary.state.epoch = epoch;
  await withoutLease({ primary: [3], secondary: [3] });
  grantLease(vm.plane);
  expect(await released(4)).toEqual([0, 1, 2, 3]);
  expectNothingLost();
});

test("so does what a restarted agent has found, and what a VM that goes on alone had held", async () => {
  await withoutLease({ primary: [0, 1], secondary: [] });
  await vm.path.resume();
  epoch++;
  await vm.path.checkpoint(bootTimeNsNumber(), epoch);
  vm.secondary.state.epoch = epoch;
  await quiet(QUIET_MS);
  expect(arrived()).toEqual([]);
  grantLease(vm.plane);
  expect(await released(2)).toEqual([0, 1]);

  await withoutLease({ primary: [2, 3], secondary: [] });
  await vm.path.releaseAlone();
  await quiet(QUIET_MS);
  expect(arrived()).toEqual([]);
  grantLease(vm.plane);
  expect(await released(2)).toEqual([2, 3]);
  expectNothingLost();
});
