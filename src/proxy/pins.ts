/** Where the data plane of a network interface is pinned. */
import { join } from "node:path";

/**
 * @param vmDirectory of the VM: PIN_ROOT/AGENT/VM
 * @param tunnelId of the interface
 */
export function nicPinDirectory(vmDirectory: string, tunnelId: number): string {
  return join(vmDirectory, `nic${tunnelId}`);
}
