/** VMs that have left the configuration and still have a gate at their taps. */
import { join } from "node:path";
import { configuredVms } from "../agent/open_proxy.ts";
import { PIN_ROOT } from "../host/pin_root.ts";
import { findLeftovers, type Leftover } from "../proxy/leftovers.ts";
import { type Check, configOf, type DoctorContext, type Finding, ok, warn } from "./check.ts";

function finding({ vm, tunnelId, taps, holders }: Leftover): Finding {
  const gate = `the gate at ${taps.join(", ") || `tunnel id ${tunnelId}`}`;
  if (holders.length === 0) {
    return warn(
      `${gate} is left of a VM that nobody runs`,
      "Restart the agent: it removes this at its start.",
    );
  }
  return warn(
    `${gate} stays shut, because ${holders.join(" and ")} has it open`,
    `Stop that VM and restart the agent, or put VM ${vm} back into the configuration.`,
  );
}

async function leftovers(context: DoctorContext): Promise<Finding[]> {
  const config = configOf(context);
  const found = await findLeftovers(join(PIN_ROOT, config.agent.name), configuredVms(config));
  if (found.length === 0) return [ok("none")];
  return found.map((leftover) => ({ ...finding(leftover), subject: leftover.vm }));
}

export const leftoversCheck: Check = {
  id: "leftovers",
  title: "VMs that left the configuration",
  needsConfig: true,
  run: leftovers,
};
