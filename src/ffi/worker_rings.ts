/**
 * The rings of each worker: values of maps of maps (kernel/bpf/map_in_map.c), made here and kept by those
 * maps.
 */
import { BpfMap, createRing, mapInfo } from "./bpf_map.ts";
import { checkBpf, libbpf } from "./libbpf.ts";
import { closeFd } from "./libc.ts";
import type { WorkerMapName } from "./pinned_maps.ts";
import { DOORBELL_BYTES } from "./poll.ts";
import type { RingSetup } from "./ring.ts";

/** One worker's rings, and the one that wakes it (Waiter). */
export interface WorkerRings {
  primary: RingSetup;
  secondary: RingSetup;
  doorbellFd: number;
}

/**
 * Opens each worker's rings; makes those that are not there. Close them with {@link closeWorkerRings}.
 *
 * @param mapFd descriptor of a map of rings
 * @param ringBytes of a new ring for primary or secondary output
 */
export function openWorkerRings(
  mapFd: (name: WorkerMapName) => number,
  workers: number,
  ringBytes: number,
): WorkerRings[] {
  using opened = new DisposableStack();
  const open = (name: WorkerMapName, bytes: number): RingSetup[] => {
    const map = new BpfMap(mapFd(name), name);
    try {
      return Array.from({ length: workers }, (_, worker) => {
        const fd = openWorkerRing(map, worker, name.slice(0, -1), bytes);
        opened.defer(() => closeFd(fd));
        return { fd, bytes: mapInfo(fd).maxEntries };
      });
    } finally {
      map.close();
    }
  };
  const primary = open("primary_rings", ringBytes);
  const secondary = open("secondary_rings", ringBytes);
  const doorbell = open("doorbell_rings", DOORBELL_BYTES);
  opened.move();
  return primary.map((ring, worker) => ({
    primary: ring,
    secondary: secondary[worker],
    doorbellFd: doorbell[worker].fd,
  }));
}

export function closeWorkerRings(rings: readonly WorkerRings[]): void {
  for (const { primary, secondary, doorbellFd } of rings) {
    for (const fd of [primary.fd, secondary.fd, doorbellFd]) closeFd(fd);
  }
}

/** The ring of `worker` in a map of rings. A value is read as an id and written as a descriptor. */
function openWorkerRing(rings: BpfMap, worker: number, name: string, bytes: number): number {
  rings.view.setUint32(rings.key, worker, true);
  if (rings.lookup()) {
    const fd = libbpf().bpf_map_get_fd_by_id(rings.view.getUint32(rings.value, true));
    return checkBpf(fd, `Cannot open the ${name} of worker ${worker}`);
  }
  const fd = createRing(name, bytes);
  rings.view.setUint32(rings.value, fd, true);
  try {
    rings.update(`Cannot put the ${name} of worker ${worker} in its place`);
  } catch (error) {
    closeFd(fd);
    throw error;
  }
  return fd;
}
