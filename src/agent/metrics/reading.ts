/**
 * What a scrape reads of a VM: once, before any metric is written, so that all metrics are of the same
 * moment.
 */
import type { StatName } from "../../datapath/shared.ts";
import type { Phase } from "../../failover/state.ts";
import type { NicReading } from "../../proxy/proxy.ts";
import type { ResyncReading } from "../../storage/resync_progress.ts";

export interface VmReading {
  phase: Phase;
  epoch: number;
  heartbeatAgeMs: number | undefined;
  resync: ResyncReading | undefined;
  /** Size of the overlays of the replica on this host. */
  overlayBytes: number | undefined;
  nics: readonly NicReading[];
}

/** The VMs of the agent, and their readings at the newest scrape. */
export class Readings {
  readonly #sources = new Map<string, () => VmReading>();
  #taken = new Map<string, VmReading>();

  add(vm: string, read: () => VmReading): void {
    this.#sources.set(vm, read);
  }

  remove(vm: string): void {
    this.#sources.delete(vm);
  }

  /** Reads each VM once. The workers go on counting, so their numbers are copied. */
  take(): void {
    this.#taken = new Map(
      [...this.#sources].map(([vm, read]) => {
        const reading = read();
        const nics = reading.nics.map((nic) => ({ ...nic, shared: nic.shared.snapshot() }));
        return [vm, { ...reading, nics }];
      }),
    );
  }

  /** Name of the VM and its reading. */
  vms(): IterableIterator<[string, VmReading]> {
    return this.#taken.entries();
  }
}

/** A worker's number, over all interfaces of the VM. */
export function stat({ nics }: VmReading, name: StatName): number {
  return nics.reduce((sum, { shared }) => sum + shared.stat(name), 0);
}
