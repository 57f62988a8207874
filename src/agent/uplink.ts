/** The interface that carries the VM's traffic to its clients. */
import { readFileSync } from "node:fs";

/** Whether `name` has a carrier. An interface that is down or gone has none (Documentation/ABI/testing/sysfs-class-net). */
export function hasCarrier(name: string): boolean {
  try {
    return readFileSync(`/sys/class/net/${name}/carrier`, "latin1").startsWith("1");
  } catch {
    return false;
  }
}
