/**
 * The maps that outlive the agent: each is pinned under its name, with the content that an earlier agent
 * left. A pinned map keeps its size.
 */

import { existsSync, mkdirSync, statfsSync } from "node:fs";
import { dirname, join } from "node:path";
import { Problem } from "../errors/problem.ts";
import { pinnedMapInfo } from "./bpf_map.ts";
import type { BpfObject } from "./bpf_object.ts";
import { Arena, check, libc } from "./libc.ts";

/** Maps with a ring for each worker. */
const WORKER_MAPS = ["primary_rings", "secondary_rings", "doorbell_rings"] as const;
export type WorkerMapName = (typeof WORKER_MAPS)[number];

/** Every map of bpf/maps.h but those of a run of live frames, which hold nothing after it. */
export const PINNED_MAPS = ["state_map", "counters", "connections", ...WORKER_MAPS, "input_ring"] as const;
type PinnedMapName = (typeof PINNED_MAPS)[number];

const BPF_FS = "/sys/fs/bpf";
const BPF_FS_MAGIC = 0xcafe4a11; // include/uapi/linux/magic.h

/**
 * Gives each map its size and the path at which load() adopts or pins it.
 *
 * @param sizes of maps whose size is an option, in entries or, of a ring, bytes
 * @throws Error if a pinned map has another layout
 */
export function adoptOrPin(
  object: BpfObject,
  pinDirectory: string,
  sizes: Partial<Record<PinnedMapName, number>>,
): void {
  for (const name of PINNED_MAPS) {
    const path = join(pinDirectory, name);
    const size = pinnedSize(object, name, path, name in sizes) ?? sizes[name];
    if (size !== undefined) object.setMapSize(name, size);
    object.setPinPath(name, path);
  }
}

/** Size of the map pinned at `path`, undefined if there is none. */
function pinnedSize(
  object: BpfObject,
  name: PinnedMapName,
  path: string,
  isAnySize: boolean,
): number | undefined {
  const pinned = pinnedMapInfo(path);
  if (pinned === undefined) return undefined;
  const own = object.mapShape(name);
  const same =
    pinned.keyBytes === own.keyBytes &&
    pinned.valueBytes === own.valueBytes &&
    (isAnySize || pinned.maxEntries === own.maxEntries);
  if (!same) {
    throw new Error(
      `The map pinned at ${path} was made by another version of the agent: ` +
        "stop the VM's protection with that version first.",
    );
  }
  return pinned.maxEntries;
}

/** How many workers a data plane has that is pinned already, undefined if there is none. */
export function pinnedWorkers(pinDirectory: string): number | undefined {
  for (const name of WORKER_MAPS) {
    const pinned = pinnedMapInfo(join(pinDirectory, name));
    if (pinned !== undefined) return pinned.maxEntries;
  }
  return undefined;
}

function isBpfFs(path: string): boolean {
  return existsSync(path) && statfsSync(path).type === BPF_FS_MAGIC;
}

/** Makes the directory; mounts a BPF file system at /sys/fs/bpf if there is none. */
export function preparePinDirectory(path: string): void {
  let existing = path;
  while (!existsSync(existing)) existing = dirname(existing);
  if (!isBpfFs(existing)) {
    if (path !== BPF_FS && !path.startsWith(`${BPF_FS}/`)) {
      throw new Problem(`${path} is not on a BPF file system`, `use a directory under ${BPF_FS}`);
    }
    const arena = new Arena(4096);
    try {
      const [type, target] = [arena.string("bpf"), arena.string(BPF_FS)];
      check(libc.mount(type, target, type, 0, null), `Cannot mount a BPF file system at ${BPF_FS}`);
    } finally {
      arena.close();
    }
  }
  mkdirSync(path, { recursive: true, mode: 0o700 });
}
