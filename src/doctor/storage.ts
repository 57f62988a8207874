/** Room on the file systems that the agent and the secondary's QEMU write to. */
import { existsSync } from "node:fs";
import { dirname } from "node:path";
import { overlayRoomBytes } from "../qemu/images.ts";
import { freeBytes } from "../storage/room.ts";
import {
  type Check,
  configOf,
  type DoctorContext,
  type Finding,
  fail,
  type Group,
  ok,
  warn,
} from "./check.ts";

const STATE_BYTES_MIN = 1 << 30;

/** The same for a `path` that is yet to be made. */
function freeBytesFor(path: string): number {
  let existing = path;
  while (!existsSync(existing)) existing = dirname(existing);
  return freeBytes(existing);
}

const mib = (bytes: number) => `${Math.floor(bytes / 2 ** 20)} MiB`;
const gib = (bytes: number) => `${(bytes / 2 ** 30).toFixed(1)} GiB`;

function stateDirectory(context: DoctorContext): Finding {
  const path = configOf(context).agent.state_directory;
  const free = freeBytesFor(path);
  if (free >= STATE_BYTES_MIN) return ok(`${gib(free)} free at ${path}`);
  return warn(`only ${gib(free)} free at ${path}`, "Free space there: the agent stores divergences in it.");
}

/** The room that a secondary's start asks for, or 64 MiB. */
function overlayDirectories(context: DoctorContext): Finding[] {
  return configOf(context).vm.flatMap(({ name: subject, managed, disk }) => {
    if (managed === undefined || disk.length === 0) return [];
    const { overlayDirectory } = managed;
    const free = freeBytesFor(overlayDirectory);
    const found = `${mib(free)} free at ${overlayDirectory}`;
    const need = overlayRoomBytes(managed);
    if (free >= need) return [{ ...ok(found), subject }];
    const fix = `Free ${mib(need)} there (vm.overlay): this host cannot keep a replica.`;
    return [{ ...fail(`only ${found}`, fix), subject }];
  });
}

const checks: Check[] = [
  { id: "state_directory", title: "State directory", needsConfig: true, run: stateDirectory },
  { id: "overlays", title: "Overlay directory", needsConfig: true, run: overlayDirectories },
];

export const storageGroup: Group = { name: "storage", title: "Storage", checks };
