/**
 * Losses on the way to the comparer or to the secondary, which the BPF programs count: each ends in a
 * checkpoint.
 */
import type { CounterName } from "../ffi/layout.ts";

/** The primary's output or the secondary's did not get into the ring, or input did not get to both VMs. */
export const LOSSES_ON_PRIMARY: readonly CounterName[] = [
  "hold_ring_full",
  "hold_failed",
  "collect_ring_full",
  "collect_failed",
  "mirror_failed",
  "divert_failed",
];

/** Output did not get to the comparer, or belongs to a connection whose numbers could not be remembered. */
export const LOSSES_ON_SECONDARY: readonly CounterName[] = ["forward_failed", "connection_full"];

export function lostFrames(
  counters: Readonly<Record<string, number>>,
  names: readonly CounterName[],
): number {
  return names.reduce((sum, name) => sum + (counters[name] ?? 0), 0);
}
