/**
 * The inequalities between the configured times, checked when the file is read. The first ones keep two hosts
 * from sending at once; the others keep a pair from failing over for nothing or standing still for longer
 * than it has to.
 */

export interface Timing {
  heartbeat: {
    interval_ms: number;
    timeout_ms: number;
    lease_ms: number;
    margin_ms: number;
    clock_drift_ppm: number;
  };
  arbiter?: { timeout_ms: number; endpoints: number };
  watchdog?: { timeout_s: number };
}

/**
 * Part of the margin that is not for clocks: a frame that has passed the lease's check may still wait in the
 * host's queues, and the kernel may run the program that sends it late.
 */
export const SCHEDULING_ALLOWANCE_MS = 50;
/** An arbiter's endpoint that gets less time than this would be given up while it answers. */
const ENDPOINT_TIMEOUT_MS_MIN = 50;
const INTERVALS_PER_TIMEOUT = 2;
const INTERVALS_PER_LEASE = 3;

/**
 * Shortest margin for a lease. The holder's clock may be slow and the other's fast by the drift: the holder's
 * lease then takes lease / (1 - drift), and the other's waiting only (lease + margin) / (1 + drift).
 */
export function marginMsMin(leaseMs: number, clockDriftPpm: number): number {
  const drift = clockDriftPpm / 1e6;
  return Math.ceil((leaseMs * 2 * drift) / (1 - drift)) + SCHEDULING_ALLOWANCE_MS;
}

/** A sentence for each inequality that does not hold, with the values that would do. Empty: all hold. */
export function timingMistakes({ heartbeat, arbiter, watchdog }: Timing): string[] {
  const { interval_ms, timeout_ms, lease_ms, margin_ms, clock_drift_ppm } = heartbeat;
  const mistakes: string[] = [];
  const takeoverMs = lease_ms + margin_ms;

  const margin = marginMsMin(lease_ms, clock_drift_ppm);
  if (margin_ms < margin) {
    mistakes.push(
      `heartbeat.margin_ms is ${margin_ms}, but clocks that differ by 2 × ${clock_drift_ppm} ppm over a ` +
        "lease of " +
        `${lease_ms} ms and ${SCHEDULING_ALLOWANCE_MS} ms for scheduling need ${margin}, or both hosts ` +
        `could send at once: set margin_ms to at least ${margin}`,
    );
  }
  const timeoutMin = INTERVALS_PER_TIMEOUT * interval_ms;
  if (timeout_ms < timeoutMin) {
    mistakes.push(
      `heartbeat.timeout_ms is ${timeout_ms}, so that one late heartbeat would count as a lost peer: set ` +
        "timeout_ms " +
        `to at least ${timeoutMin} (${INTERVALS_PER_TIMEOUT} × interval_ms), or interval_ms to at most ` +
        `${Math.floor(timeout_ms / INTERVALS_PER_TIMEOUT)}`,
    );
  }
  const leaseMin = INTERVALS_PER_LEASE * interval_ms;
  if (lease_ms < leaseMin) {
    mistakes.push(
      `heartbeat.lease_ms is ${lease_ms}, which heartbeats every ${interval_ms} ms cannot keep: set ` +
        "lease_ms to at " +
        `least ${leaseMin} (${INTERVALS_PER_LEASE} × interval_ms), or interval_ms to at most ` +
        `${Math.floor(lease_ms / INTERVALS_PER_LEASE)}`,
    );
  }
  if (timeout_ms + interval_ms > takeoverMs) {
    mistakes.push(
      `heartbeat.timeout_ms + interval_ms is ${timeout_ms + interval_ms}, above lease_ms + margin_ms ` +
        `(${takeoverMs}): ` +
        "a primary whose link alone is cut would notice too late to keep its VM, and the VM's output " +
        "would stop " +
        `in that time: set timeout_ms to at most ${takeoverMs - interval_ms}, or lease_ms to at least ` +
        `${timeout_ms + interval_ms - margin_ms}`,
    );
  }
  if (arbiter !== undefined) {
    if (arbiter.timeout_ms > takeoverMs) {
      mistakes.push(
        `arbiter.timeout_ms is ${arbiter.timeout_ms}, above heartbeat.lease_ms + margin_ms ` +
          `(${takeoverMs}): one lost ` +
          "request would more than double the time of a takeover: set arbiter.timeout_ms to at most " +
          `${takeoverMs}`,
      );
    }
    const least = arbiter.endpoints * ENDPOINT_TIMEOUT_MS_MIN;
    if (arbiter.timeout_ms < least) {
      mistakes.push(
        `arbiter.timeout_ms is ${arbiter.timeout_ms} for ${arbiter.endpoints} endpoint(s), each of which ` +
          `needs ${ENDPOINT_TIMEOUT_MS_MIN}: set arbiter.timeout_ms to at least ${least}`,
      );
    }
  }
  if (watchdog !== undefined) {
    // A main loop that is late for a whole lease has lost the lease anyway; resetting the host earlier gains
    // nothing.
    const least = Math.ceil(Math.max(lease_ms, INTERVALS_PER_LEASE * interval_ms) / 1_000);
    if (watchdog.timeout_s < least) {
      mistakes.push(
        `watchdog.timeout_s is ${watchdog.timeout_s}, shorter than the lease (heartbeat.lease_ms ` +
          `${lease_ms}): the host ` +
          `would be reset while its agent still may send: set watchdog.timeout_s to at least ${least}`,
      );
    }
  }
  return mistakes;
}
