/**
 * A VM that runs alone: its frames pass in the kernel, no record of them is made, and the lease still
 * decides.
 */
import { afterAll, beforeAll, beforeEach, expect, test } from "bun:test";
import { ROLE, VNET_BYTES } from "../../src/ffi/layout.ts";
import { Ring } from "../../src/ffi/ring.ts";
import { counterDifference, endLease, grantLease } from "../bpf/data_plane_under_test.ts";
import { join, segment } from "../bpf/frames.ts";
import { removeNamespaces } from "../bpf/network.ts";
import { until } from "../until.ts";
import { ProtectedVm } from "./protected_vm.ts";

const PREFIX = "colo-test-solo-";
const COUNT = 100;
const vnet = new Uint8Array(VNET_BYTES);

let vm: ProtectedVm;

beforeAll(async () => {
  removeNamespaces(PREFIX);
  vm = new ProtectedVm(PREFIX, { workers: 2 });
  await vm.path.releaseAlone();
});
afterAll(async () => {
  await vm?.close();
  removeNamespaces(PREFIX);
});
beforeEach(() => {
  vm.plane.state.role = ROLE.SOLO;
  grantLease(vm.plane);
  while (vm.far.read() !== undefined);
  while (vm.vm.read() !== undefined);
});

/** How far each ring has ever been written. */
function produced(): number[] {
  const { workers, input } = vm.plane;
  const setups = [
    input,
    ...workers.flatMap(({ primary, secondary, doorbellFd }) => [
      primary,
      secondary,
      { fd: doorbellFd, bytes: 4096 },
    ]),
  ];
  return setups.map((setup) => {
    const ring = new Ring(setup);
    const place = ring.producedTo();
    ring.close();
    return place;
  });
}

const output = (i: number) => join(vnet, segment({ clientPort: 20_000 + i, sequence: i, payload: [i] }));
const input = (i: number) => join(vnet, segment({ from: "client", clientPort: 20_000 + i, sequence: i }));

function exchange(): void {
  for (let i = 0; i < COUNT; i++) {
    vm.vm.write(output(i));
    vm.far.write(input(i));
    vm.replica.write(output(i));
  }
}

function read(tap: { read(): Uint8Array | undefined }): number {
  let count = 0;
  while (tap.read() !== undefined) count++;
  return count;
}

test("passes both ways without a record in any ring or a look of any worker", async () => {
  const before = vm.plane.counters();
  const rings = produced();
  const { shared } = vm.path;
  const looks = ["primary_frames", "secondary_frames", "replayed_frames"] as const;
  const seen = looks.map((name) => shared.stat(name));
  exchange();
  let [out, into] = [0, 0];
  await until("frames", () => {
    out += read(vm.far);
    into += read(vm.vm);
    return out === COUNT && into === COUNT;
  });
  await until(
    "rejected frames",
    () => vm.plane.counters().deliver_rejected - before.deliver_rejected === COUNT,
  );
  expect(counterDifference(before, vm.plane.counters())).toEqual({
    passed_solo: COUNT,
    input_solo: COUNT,
    deliver_rejected: COUNT,
  });
  await vm.path.ping();
  expect(produced()).toEqual(rings);
  expect(looks.map((name) => shared.stat(name))).toEqual(seen);
});

test("passes nothing out without a lease, and makes no record of that either", async () => {
  const before = vm.plane.counters();
  const rings = produced();
  endLease(vm.plane);
  exchange();
  let into = 0;
  await until("input", () => {
    into += read(vm.vm);
    return into === COUNT;
  });
  await until(
    "rejected frames",
    () => vm.plane.counters().deliver_rejected - before.deliver_rejected === COUNT,
  );
  expect(counterDifference(before, vm.plane.counters())).toEqual({
    dropped_lease: COUNT,
    input_solo: COUNT,
    deliver_rejected: COUNT,
  });
  expect(read(vm.far)).toBe(0);
  expect(produced()).toEqual(rings);
});

test("as a primary it does make records: the rings are those that are looked at", async () => {
  const rings = produced();
  vm.plane.state.role = ROLE.PRIMARY;
  const before = vm.plane.counters();
  exchange();
  await until("records", () => vm.plane.counters().collected - before.collected === COUNT);
  expect(vm.plane.counters().held - before.held).toBe(COUNT);
  const now = produced();
  // Input was not diverted; of the doorbells it depends on whether a worker slept.
  for (const ring of [1, 2, 4, 5]) expect(now[ring]).toBeGreaterThan(rings[ring]);
  expect(now[0]).toBe(rings[0]);
});
