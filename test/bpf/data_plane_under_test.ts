/** A data plane with pins of its own for a test file, removed again with the test process. */
import { join } from "node:path";
import { DataPlane, type DataPlaneOptions } from "../../src/ffi/data_plane.ts";
import type { DataPlaneSettings } from "../../src/ffi/data_plane_settings.ts";
import type { CounterName } from "../../src/ffi/layout.ts";
import { bootTimeNs } from "../../src/ffi/libc.ts";

export const OBJECT = join(import.meta.dir, "../../build/colo.bpf.o");
export const PINS = "/sys/fs/bpf/colo-test";

export const MARK = { inject: 0xc0100001, deliver: 0xc0100002, replay: 0xc0100003 } as const;
export const VERDICT = { OK: 0, SHOT: 2, REDIRECT: 7 } as const;

/** Loopback stands in for the devices where no frame really gets there. */
export const SETTINGS: DataPlaneSettings = {
  tapIfindex: 1,
  tunnelIfindex: 1,
  peerIpv4: 0xc613_0002,
  tunnelId: 7,
  injectMark: MARK.inject,
  deliverMark: MARK.deliver,
  replayMark: MARK.replay,
};

/** Loads with nothing left over from a run that crashed. */
export function loadFresh(name: string, options: Partial<DataPlaneOptions> = {}): DataPlane {
  const pinDirectory = join(PINS, name);
  DataPlane.remove(pinDirectory, []);
  return DataPlane.load({
    objectPath: OBJECT,
    pinDirectory,
    settings: SETTINGS,
    ringBytes: 1024 * 1024,
    inputRingBytes: 256 * 1024,
    connectionsMax: 1024,
    ...options,
  });
}

export function unload(name: string, plane: DataPlane): void {
  plane.close();
  DataPlane.remove(join(PINS, name), []);
}

export function grantLease(plane: DataPlane, ms = 3_600_000): void {
  plane.state.leaseDeadlineNs = bootTimeNs() + BigInt(ms) * 1_000_000n;
}

export function endLease(plane: DataPlane): void {
  plane.state.leaseDeadlineNs = bootTimeNs() - 1n;
}

/** What `action` added to the counters; those that stayed are left out. */
export function counted(plane: DataPlane, action: () => void): Partial<Record<CounterName, number>> {
  const before = plane.counters();
  action();
  return counterDifference(before, plane.counters());
}

export function counterDifference(
  before: Record<CounterName, number>,
  after: Record<CounterName, number>,
): Partial<Record<CounterName, number>> {
  const added: Partial<Record<CounterName, number>> = {};
  for (const name of Object.keys(after) as CounterName[]) {
    if (after[name] !== before[name]) added[name] = after[name] - before[name];
  }
  return added;
}
