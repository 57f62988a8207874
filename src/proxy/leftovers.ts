/**
 * The data planes of VMs that have left the configuration. Their programs go on holding the gate at the tap,
 * as after the death of an agent. They are removed when no process has the tap open any more; while a VM runs
 * behind it, its gate stays shut: without it the VM would send unprotected, perhaps beside the one that has
 * taken over.
 *
 * The pins tell what there is: PIN_ROOT/AGENT/VM/nicN, with N the tunnel id. The tap is the interface whose
 * filter uses the state map that is pinned there.
 */
import { existsSync, readdirSync, readFileSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { pinnedMapInfo } from "../ffi/bpf_map.ts";
import { programInfoOf } from "../ffi/bpf_program.ts";
import { DataPlane } from "../ffi/data_plane.ts";
import { attachedProgram, TC_EGRESS, TC_INGRESS } from "../ffi/filters.ts";
import { ifindex } from "../ffi/libc.ts";
import type { Logger } from "../host/log.ts";
import { tapHolders } from "../host/tap_holders.ts";
import { removeDevices } from "./devices.ts";
import { nicPinDirectory } from "./pins.ts";

/** A VM of the configuration. */
export interface ConfiguredVm {
  vm: string;
  /** Of its interfaces with the agent's own data plane; undefined if it has another one. */
  tunnelIds: readonly number[] | undefined;
}

/** The data plane of an interface that is not in the configuration. */
export interface Leftover {
  vm: string;
  tunnelId: number;
  /** Interfaces with its gate; normally the VM's tap. */
  taps: string[];
  /** Processes that have one of them open. */
  holders: string[];
}

/**
 * Looks in this network namespace.
 *
 * @param pinDirectory of the agent: PIN_ROOT/AGENT
 */
export async function findLeftovers(
  pinDirectory: string,
  configured: readonly ConfiguredVm[],
): Promise<Leftover[]> {
  const leftovers: Leftover[] = [];
  for (const { vm, tunnelId } of pinnedNics(pinDirectory)) {
    const known = configured.find((each) => each.vm === vm);
    // Another data plane removes this one when it is opened.
    if (known !== undefined && known.tunnelIds?.includes(tunnelId) !== false) continue;
    const taps = gatedInterfaces(nicPinDirectory(join(pinDirectory, vm), tunnelId));
    const holders = (await Promise.all(taps.map(tapHolders))).flat();
    leftovers.push({ vm, tunnelId, taps, holders });
  }
  return leftovers;
}

/**
 * Removes leftovers whose taps nobody has open: filters, pins and devices. The others stay, and are logged.
 */
export async function removeLeftovers(
  pinDirectory: string,
  configured: readonly ConfiguredVm[],
  log: Logger,
): Promise<void> {
  for (const { vm, tunnelId, taps, holders } of await findLeftovers(pinDirectory, configured)) {
    if (holders.length > 0) {
      log.warn("a VM that is not in the configuration runs: its gate stays shut", { vm, taps, holders });
      continue;
    }
    const directory = join(pinDirectory, vm);
    DataPlane.remove(
      nicPinDirectory(directory, tunnelId),
      taps.map((tap) => ifindex(tap)),
    );
    // Another VM of the configuration may have the tunnel id now.
    if (!configured.some(({ tunnelIds }) => tunnelIds?.includes(tunnelId))) await removeDevices(tunnelId);
    if (readdirSync(directory).length === 0) rmdirSync(directory);
    log.info("the data plane of a VM that is not in the configuration is removed", { vm, tunnelId, taps });
  }
}

/** Removes the data plane of a VM that has another one now: its filters, pins and devices. */
export async function removeDataPlane(
  pinDirectory: string,
  vm: string,
  tapIfindexes: readonly number[],
): Promise<void> {
  const directory = join(pinDirectory, vm);
  // A host with QEMU's proxy need not have libbpf.
  if (!existsSync(directory)) return;
  const nics = pinnedNics(pinDirectory).filter((nic) => nic.vm === vm);
  DataPlane.remove(directory, tapIfindexes);
  for (const { tunnelId } of nics) await removeDevices(tunnelId);
}

function pinnedNics(pinDirectory: string): { vm: string; tunnelId: number }[] {
  if (!existsSync(pinDirectory)) return [];
  return readdirSync(pinDirectory).flatMap((vm) =>
    readdirSync(join(pinDirectory, vm)).flatMap((entry) => {
      const [, tunnelId] = /^nic(\d+)$/.exec(entry) ?? [];
      return tunnelId === undefined ? [] : [{ vm, tunnelId: Number(tunnelId) }];
    }),
  );
}

/**
 * The interfaces whose filters use the state map pinned in `directory`, but for the tunnel and the injection
 * pair.
 */
function gatedInterfaces(directory: string): string[] {
  const state = pinnedMapInfo(join(directory, "state_map"))?.id;
  if (state === undefined) return [];
  const usesState = (index: number, point: number) => {
    const program = attachedProgram(index, point);
    return program !== undefined && programInfoOf(program)?.mapIds.includes(state) === true;
  };
  return readFileSync("/proc/self/net/dev", "latin1")
    .split("\n")
    .flatMap((line) => /^\s*([^:\s]+):/.exec(line)?.slice(1) ?? [])
    .filter((name) => {
      const index = ifindex(name);
      return !name.startsWith("colo-") && (usesState(index, TC_INGRESS) || usesState(index, TC_EGRESS));
    });
}
