/** Workers of one VM start together or not at all. */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { COMPARER_LIMITS } from "../../src/compare/comparer.ts";
import { DataPath } from "../../src/datapath/handle.ts";
import type { DataPlane } from "../../src/ffi/data_plane.ts";
import { ifindex } from "../../src/ffi/libc.ts";
import { inNamespace } from "../../src/ffi/netns.ts";
import { MARK } from "../bpf/data_plane_under_test.ts";
import { bridgeVm, REPLICATION, removeNamespaces, startPlane, stopPlane } from "../bpf/network.ts";
import { resourcesInUse } from "../resources.ts";
import { until } from "../until.ts";

const PREFIX = "colo-test-start-";
const HOST = `${PREFIX}a`;
const NO_DESCRIPTOR = 1_000_000;

let plane: DataPlane;
let close: () => void;

beforeAll(() => {
  removeNamespaces(PREFIX);
  const taps = bridgeVm(HOST, `${PREFIX}b`);
  plane = startPlane({
    name: HOST,
    namespace: HOST,
    tap: "vm",
    peerIpv4: REPLICATION.ipv4[1],
    workers: 2,
    ringBytes: 1 << 16,
  });
  close = () => {
    for (const tap of [taps.vm, taps.neighbour]) tap.close();
  };
});

afterAll(() => {
  stopPlane(HOST, plane);
  close();
  removeNamespaces(PREFIX);
});

/** Starts the data path; the second worker's doorbell is `doorbellFd`. */
function start(doorbellFd: number): DataPath {
  const [first, second] = plane.workers;
  const { input, liveFrames, stateFd } = plane;
  return inNamespace(
    HOST,
    () =>
      new DataPath(
        {
          dataPlane: { workers: [first, { ...second, doorbellFd }], input, liveFrames, stateFd },
          injectIfindex: ifindex("inj0"),
          tapIfindex: ifindex("vm"),
          replayMark: MARK.replay,
          maxWaitMs: 60_000,
          rules: {},
          limits: COMPARER_LIMITS,
        },
        { diverged: () => undefined, failed: () => undefined },
      ),
  );
}

test("one that does not start leaves no other running, and nothing in use", async () => {
  const working = start(plane.workers[1].doorbellFd);
  await working.ready();
  await working.close();
  const before = resourcesInUse();
  for (let i = 0; i < 3; i++) {
    const path = start(NO_DESCRIPTOR);
    await expect(path.ready()).rejects.toThrow("Cannot map");
    await expect(path.start(1)).rejects.toThrow("Cannot map");
    await path.close();
  }
  await until("the threads that ended are gone", () => resourcesInUse().threads <= before.threads);
  const after = resourcesInUse();
  expect(after.descriptors).toBeLessThanOrEqual(before.descriptors);
  expect(after.mappings).toBeLessThanOrEqual(before.mappings);
});
