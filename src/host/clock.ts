/**
 * Clocks. Everything that decides uses CLOCK_BOOTTIME, which counts suspend and never steps; QMP stamps wall
 * time.
 */
import { bootTimeMs, bootTimeNs, bootTimeNsNumber, realTimeNs } from "../ffi/libc.ts";

/** CLOCK_BOOTTIME in milliseconds. */
export function bootMs(): number {
  return bootTimeMs();
}

/** CLOCK_BOOTTIME in nanoseconds. */
export function bootNs(): number {
  return bootTimeNsNumber();
}

/** A wall-clock stamp of a moment ago, in nanoseconds of CLOCK_BOOTTIME. */
export function wallToBootNs(wallNs: bigint): number {
  return Number(wallNs + (bootTimeNs() - realTimeNs()));
}
