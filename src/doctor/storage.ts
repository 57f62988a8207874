/** Room on the file systems that the agent and the secondary's QEMU write to. */
import { existsSync, statfsSync } from "node:fs";
import { dirname } from "node:path";
import { OVERLAY_ROOM_BYTES } from "../qemu/images.ts";
import { type Check, type DoctorContext, type Finding, fail, type Group, ok, warn } from "./check.ts";

const STATE_BYTES_MIN = 1 << 30;

/** Free bytes where `path` is, or will be once it is made. */
function freeBytes(path: string): number {
  let existing = path;
  while (!existsSync(existing)) existing = dirname(existing);
  const { bavail, bsize } = statfsSync(existing);
  return bavail * bsize;
}

const mib = (bytes: number) => `${Math.floor(bytes / 2 ** 20)} MiB`;
const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function stateDirectory({ config }: DoctorContext): Finding {
  const path = config!.agent.state_directory;
  const free = freeBytes(path);
  if (free >= STATE_BYTES_MIN) return ok(`${gib(free)} free at ${path}`);
  return warn(`only ${gib(free)} free at ${path}`, "Make room there: divergences are kept in it.");
}

/** The room that a secondary's start asks for, or 64 MiB. */
function overlayDirectories({ config }: DoctorContext): Finding[] {
  return config!.vm.flatMap(({ name: subject, managed, disk }) => {
    if (managed === undefined || disk.length === 0) return [];
    const { overlayDirectory, overlayBytes } = managed;
    const free = freeBytes(overlayDirectory);
    const found = `${mib(free)} free at ${overlayDirectory}`;
    const need = overlayBytes || OVERLAY_ROOM_BYTES;
    if (free >= need) return [{ ...ok(found), subject }];
    const fix = `Make room there for ${mib(need)} (vm.overlay): this host cannot keep a replica.`;
    return [{ ...fail(`only ${found}`, fix), subject }];
  });
}

const checks: Check[] = [
  { id: "state_directory", title: "State directory", needsConfig: true, run: stateDirectory },
  { id: "overlays", title: "Overlay directory", needsConfig: true, run: overlayDirectories },
];

export const storageGroup: Group = { name: "storage", title: "Storage", checks };
