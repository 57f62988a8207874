/** The status of a VM that has no QEMU on this host; an instance overrides what only a QEMU makes true. */
import type { TuningValues, VmStatus } from "../api/status.ts";
import type { Config, VmConfig } from "../config/config.ts";
import { PHASES, type Phase } from "../failover/state.ts";

/** Between two instances: what is being done, and why. */
export interface Between {
  phase: Extract<Phase, "starting" | "stopped">;
  reason: string;
}

export function statusBetween(
  config: VmConfig,
  agent: Config,
  { phase, reason }: Between,
  tuning: TuningValues,
): VmStatus {
  const what = phase === "stopped" ? "keeps the VM off" : "has no QEMU for the VM yet";
  return {
    name: config.name,
    phase,
    role: PHASES[phase].role,
    protected: false,
    reason,
    words: {
      now: `${agent.agent.name} ${what} (${reason})`,
      ifThisHostDies: "nothing would change",
      ifPeerDies: "the VM would be lost, if it runs there",
    },
    epoch: 0,
    term: undefined,
    generation: 0,
    proxy: config.proxy,
    taps: config.nic.map(({ tap }) => tap),
    qmp: config.qmp,
    off: phase === "stopped" || config.managed === undefined,
    heartbeatAgeMs: undefined,
    resync: undefined,
    tuning,
    framesHeld: 0,
    counters: {},
  };
}
