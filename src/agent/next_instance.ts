/**
 * What a host does next for a VM whose QEMU it starts itself: one pure function of what is known before a
 * QEMU is there.
 *
 * An instance is one QEMU, from its start to its end. src/failover decides within an instance; when it says
 * "stopped", or QEMU is gone, the next instance begins here. The record is checked again by decide.ts, with a
 * compare-and-swap, before anything of a booted VM leaves the host; so what is decided here on an old record
 * costs time only.
 */
import type { LastRun } from "../failover/state.ts";
import type { VmRecord } from "../failover/vm_record.ts";

export interface InstanceFacts {
  readonly self: string;
  readonly peer: string;
  readonly configuredRole: "primary" | "secondary";
  readonly arbiter: boolean;
  /** Whether a VM whose QEMU was lost is booted again. */
  readonly restart: boolean;
  /** "unknown": the arbiter has not answered. Without an arbiter there is none. */
  readonly record: VmRecord | undefined | "unknown";
  /** A record has been seen before. */
  readonly recordSeen: boolean;
  readonly lastRun: LastRun;
  /** Why the VM is to stay off, if it is. */
  readonly off: string | undefined;
  /** The administrator wants it to run now, whatever ended it. */
  readonly started: boolean;
}

export type NextInstance =
  /** The VM, from its disks. */
  | { type: "boot" }
  /** A QEMU that waits to become a replica. */
  | { type: "incoming" }
  | { type: "off"; reason: string }
  | { type: "ask_again" };

export function nextInstance(facts: InstanceFacts): NextInstance {
  const { record, self, peer, configuredRole, started } = facts;
  if (facts.off !== undefined) return { type: "off", reason: facts.off };
  if (!facts.arbiter) return withoutArbiter(facts);
  if (record === "unknown") return { type: "ask_again" };
  if (record === undefined) {
    if (facts.recordSeen && !started) {
      const reason =
        "the arbiter has lost this VM's record; decide which host's disks continue, and start the VM " +
        "there first";
      return { type: "off", reason };
    }
    return configuredRole === "primary" ? { type: "boot" } : { type: "incoming" };
  }
  if (record.holder !== self) return { type: "incoming" };
  // The replica is the last copy of the memory, and takes over; this host waits to become the replica then.
  if (record.replicaValid) return { type: "incoming" };
  if (facts.restart || started || facts.lastRun === "never") return { type: "boot" };
  return {
    type: "off",
    reason: `the VM was lost on this host while ${peer} had no replica, and restart = false`,
  };
}

function withoutArbiter({ configuredRole, lastRun, restart, started, peer }: InstanceFacts): NextInstance {
  if (started) return { type: "boot" };
  switch (lastRun) {
    case "never":
      return configuredRole === "primary" ? { type: "boot" } : { type: "incoming" };
    case "as_replica":
      return { type: "incoming" };
    case "alone":
      return restart
        ? { type: "boot" }
        : { type: "off", reason: "the VM was lost on this host, and restart = false" };
    case "with_replica":
      return {
        type: "off",
        reason:
          `the VM was lost on this host while ${peer} had a replica of it, and there is no ` +
          "arbiter to say whether that one runs; promote it there, or boot the VM here from its disks",
      };
  }
}
