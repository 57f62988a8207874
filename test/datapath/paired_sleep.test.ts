/**
 * While both VMs send the same, a large frame of one of them does not wake the worker (bpf/doorbell.h).
 * Nothing may be forgotten for that: whoever is first, and when one of them falls silent.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { BULK_BYTES } from "../../src/ffi/layout.ts";
import { bootTimeNsNumber } from "../../src/ffi/libc.ts";
import { join, segment } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-paired-";
const PAYLOAD = new Uint8Array(BULK_BYTES).fill(7);
/** TCP over IPv4 in segments of 1000 bytes, checksums to be filled in. */
const VNET = Uint8Array.from([1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
const PAIRS = 40;
const MAX_WAIT_MS = 200;

let vm: ProtectedVm;
let sequence = 1;

beforeAll(async () => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX, { maxWaitMs: MAX_WAIT_MS });
  await vm.path.start(1);
  // The connection becomes known with a checkpoint.
  vm.vm.write(next());
  await until("held frame", () => vm.path.shared.stat("held_frames") === 1);
  vm.secondary.state.epoch = 2;
  await vm.path.checkpoint(bootTimeNsNumber(), 2);
  await until("first segment", () => vm.far.read());
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});

function next(): Uint8Array {
  const frame = join(VNET, segment({ sequence, partialChecksum: true, payload: PAYLOAD }));
  sequence += PAYLOAD.length;
  return frame;
}

test("each pair is released, whoever is first, with short and long pauses", async () => {
  for (let i = 0; i < PAIRS; i++) {
    const frame = next();
    const [first, second] = i % 2 === 0 ? [vm.vm, vm.replica] : [vm.replica, vm.vm];
    first.write(frame);
    await Bun.sleep(i % 5);
    second.write(frame);
    await until("the segment arrives at the far end", () => vm.far.read());
    if (i % 10 === 9) await Bun.sleep(20);
  }
  expect(vm.divergences).toEqual([]);
});

test("what only the primary sends, right after a pair, is reported as ever", async () => {
  const frame = next();
  for (const tap of [vm.vm, vm.replica]) tap.write(frame);
  await until("the segment arrives at the far end", () => vm.far.read());
  vm.vm.write(next());
  await until("a divergence is reported", () => vm.divergences.length > 0);
  expect(vm.divergences[0]!.class).toBe("missing_on_secondary");
  expect(vm.far.read()).toBeUndefined();
});
