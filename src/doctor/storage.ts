/** Room on the file systems that the agent and the secondary's QEMU write to. */
import { existsSync, statfsSync } from "node:fs";
import { dirname } from "node:path";
import { type Check, type DoctorContext, type Finding, type Group, ok, warn } from "./check.ts";

const STATE_BYTES_MIN = 1 << 30;

/** Free bytes where `path` is, or will be once it is made. */
function freeBytes(path: string): number {
  let existing = path;
  while (!existsSync(existing)) existing = dirname(existing);
  const { bavail, bsize } = statfsSync(existing);
  return bavail * bsize;
}

const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function stateDirectory({ config }: DoctorContext): Finding {
  const path = config!.agent.state_directory;
  const free = freeBytes(path);
  if (free >= STATE_BYTES_MIN) return ok(`${gib(free)} free at ${path}`);
  return warn(`only ${gib(free)} free at ${path}`, "Make room there: divergences are kept in it.");
}

const checks: Check[] = [
  { id: "state_directory", title: "State directory", needsConfig: true, run: stateDirectory },
];

export const storageGroup: Group = { name: "storage", title: "Storage", checks };
