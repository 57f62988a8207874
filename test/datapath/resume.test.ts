/**
 * A data path that begins where another was killed: what lies in the rings waits for a checkpoint and is
 * released once.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { VNET_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { join, segment } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-resume-";
const PAYLOAD = new Uint8Array(100).fill(7);
const vnet = new Uint8Array(VNET_BYTES);

let vm: ProtectedVm;

beforeAll(() => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX, { workers: 2 });
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});

function data(index: number, payload = PAYLOAD): Uint8Array {
  const sequence = 1 + index * PAYLOAD.length;
  return join(vnet, segment({ clientPort: 40_000, sequence, acknowledgment: 1, payload }));
}

/** Sequence numbers of what has come out, as indexes. */
function arrived(): number[] {
  const indexes: number[] = [];
  for (let frame = vm.far.read(); frame !== undefined; frame = vm.far.read()) {
    const view = new DataView(frame.buffer, frame.byteOffset + VNET_BYTES);
    indexes.push((view.getUint32(38) - 1) / PAYLOAD.length);
  }
  return indexes;
}

const counted = (name: "held" | "collected") => vm.plane.counters()[name];

test("nothing is compared before the checkpoint, and everything after it", async () => {
  const other = new Uint8Array(PAYLOAD.length).fill(8);
  // Of the other life: the primary's first segments, and what its replica had sent, which is not the same
  // everywhere.
  for (const index of [0, 1, 2]) vm.vm.write(data(index));
  for (const index of [0, 2]) vm.replica.write(data(index, index === 2 ? other : PAYLOAD));
  await until("the frames lie in the rings", () => counted("held") === 3 && counted("collected") === 2);

  await vm.path.resume();
  const before = vm.path.shared.stat("secondary_frames");
  vm.vm.write(data(3));
  vm.replica.write(data(3));
  await until("the frames lie in the rings", () => counted("held") === 4 && counted("collected") === 3);
  await vm.path.ping();
  expect(arrived()).toEqual([]);
  expect(vm.path.shared.stat("primary_frames")).toBe(0);
  expect(vm.path.shared.stat("secondary_frames")).toBe(before);

  const boundaryNs = bootTimeNsNumber();
  vm.secondary.state.epoch = 2;
  // The replica runs already, and is faster than the news of that.
  vm.replica.write(data(4));
  await until("the frame lies in the ring", () => counted("collected") === 4);
  expect(await vm.path.checkpoint(boundaryNs, 2)).toBe(4);
  vm.vm.write(data(4));
  const seen: number[] = [];
  await until("all have come out", () => seen.push(...arrived()) && seen.length === 5);
  expect(seen).toEqual([0, 1, 2, 3, 4]);

  vm.vm.write(data(5));
  vm.replica.write(data(5, other));
  await until("a divergence is reported", () => vm.divergences.length === 1);
  expect(arrived()).toEqual([]);
  // Those before resume() were dropped unread.
  expect(vm.path.shared.stat("secondary_stale")).toBe(3 - before);
});

test("a VM that has to go on alone after all loses nothing of it", async () => {
  await vm.path.checkpoint(bootTimeNsNumber(), 3);
  arrived();
  await vm.path.resume();
  for (const index of [6, 7]) vm.vm.write(data(index));
  await vm.path.ping();
  expect(arrived()).toEqual([]);
  await vm.path.releaseAlone();
  const seen: number[] = [];
  await until("both have come out", () => seen.push(...arrived()) && seen.length === 2);
  expect(seen).toEqual([6, 7]);
});
