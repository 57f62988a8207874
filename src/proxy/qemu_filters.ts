/**
 * QEMU's packet proxy for one network interface, made and taken away over QMP on a QEMU that runs
 * (docs/system/qemu-colo.rst; options of QEMU 11.1):
 *
 *   primary    tap ─▶ mirror copies input ────────── port N ───▶ follow ──▶ rewriter ─▶ SVM   secondary
 *              PVM ─▶ capture ─▶ colo-compare ◀───── port N+1 ◀─ forward ◀─ rewriter ◀─┘
 *              tap ◀─ release ◀───┘ (in a thread of its own)
 *
 * A VM that took over keeps its rewriter, which the connections of that time need: between the tap and what
 * it gets as a primary, so that both VMs are shown, and compared in, the numbers of the VM. (QEMU's document
 * puts it behind them. Then the new secondary gets acknowledgements of bytes that it has never sent, and such
 * a connection stands still: seen with 11.1.2.)
 */

import { rmSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { Problem } from "../errors/problem.ts";
import type { QmpClient } from "../qmp/client.ts";
import { chardevInfo, qomEntries, query } from "../qmp/query.ts";

export interface FilterNic {
  /** Distinguishes the interfaces of a VM. */
  index: number;
  tap: string;
  /** QEMU's name of the netdev; left out: the one that has opened the tap. */
  netdev: string | undefined;
  /** First of two TCP ports at which the primary's QEMU listens. */
  port: number;
}

export interface CompareLimits {
  maxWaitMs: number;
  queuedFramesMax: number;
}

/** The object whose thread all of a VM's comparisons run in. */
const THREAD = "colo-compare-thread";

const nameOf = (what: string, { index }: FilterNic) => `colo-${what}-${index}`;

/** Sockets of the parts that are in the same QEMU, and of the agent's line to it. */
const INNER = ["captured", "released", "notices"] as const;
const PRIMARY_CHARDEVS = [
  "mirrored",
  "forwarded",
  "captured",
  "captured-in",
  "released",
  "released-out",
  "notices",
] as const;
const SECONDARY_CHARDEVS = ["input", "output"] as const;

export function noticesPath(directory: string, nic: FilterNic): string {
  return socketPath(directory, "notices", nic);
}

/** The netdev of QEMU that has opened `tap`. */
async function netdevOf(qmp: QmpClient, { tap, netdev }: FilterNic): Promise<string> {
  if (netdev !== undefined) return netdev;
  // QMP has no command for that.
  const text = await query(qmp, z.string(), "human-monitor-command", { "command-line": "info network" });
  for (const line of text.split("\n")) {
    const found = /^\s*(?:\\\s*)?([^\s:]+): .*\btype=tap\b.*\bifname=([^,\s]+)/.exec(line);
    const [, netdevFound, tapFound] = found ?? [];
    if (netdevFound !== undefined && tapFound === tap) return netdevFound;
  }
  throw new Problem(
    `QEMU has no netdev that opened the tap ${tap}`,
    "if it was handed over as a file descriptor, give the netdev's id as netdev in [[vm.nic]]",
  );
}

/**
 * Makes the primary's side of all interfaces; the VM stands still.
 *
 * @param address where the secondary's QEMU finds this one
 * @param directory that this QEMU may make sockets in
 */
export async function addPrimaryFilters(
  qmp: QmpClient,
  nics: readonly FilterNic[],
  options: { address: string; directory: string; limits: CompareLimits },
): Promise<void> {
  const { address, directory, limits } = options;
  await addObject(qmp, "iothread", THREAD, {});
  for (const nic of nics) {
    const name = (what: string) => nameOf(what, nic);
    const inner = (what: (typeof INNER)[number], isServer: boolean) => {
      const path = socketPath(directory, what, nic);
      if (isServer) rmSync(path, { force: true }); // left behind by a QEMU that was killed
      return socket({ type: "unix", data: { path } }, isServer);
    };
    await addChardev(qmp, name("mirrored"), socket(inet(address, nic.port), true));
    await addChardev(qmp, name("forwarded"), socket(inet(address, nic.port + 1), true));
    await addChardev(qmp, name("captured"), inner("captured", true));
    await addChardev(qmp, name("captured-in"), inner("captured", false));
    await addChardev(qmp, name("released"), inner("released", true));
    await addChardev(qmp, name("released-out"), inner("released", false));
    await addChardev(qmp, name("notices"), inner("notices", true));
    const filter = { netdev: await netdevOf(qmp, nic), vnet_hdr_support: true };
    await addObject(qmp, "filter-mirror", name("mirror"), {
      ...filter,
      queue: "tx",
      outdev: name("mirrored"),
    });
    await addObject(qmp, "filter-redirector", name("release"), {
      ...filter,
      queue: "rx",
      indev: name("released"),
    });
    await addObject(qmp, "colo-compare", name("compare"), {
      primary_in: name("captured-in"),
      secondary_in: name("forwarded"),
      outdev: name("released-out"),
      notify_dev: name("notices"),
      iothread: THREAD,
      vnet_hdr_support: true,
      compare_timeout: limits.maxWaitMs,
      expired_scan_cycle: Math.max(10, Math.ceil(limits.maxWaitMs / 4)),
      max_queue_size: limits.queuedFramesMax,
    });
    await addObject(qmp, "filter-redirector", name("capture"), {
      ...filter,
      queue: "rx",
      outdev: name("captured"),
    });
  }
}

/** Makes the secondary's side; the primary's listens at `address` already. */
export async function addSecondaryFilters(
  qmp: QmpClient,
  nics: readonly FilterNic[],
  address: string,
): Promise<void> {
  for (const nic of nics) {
    const name = (what: string) => nameOf(what, nic);
    const filter = { netdev: await netdevOf(qmp, nic), vnet_hdr_support: true };
    await addChardev(qmp, name("input"), socket(inet(address, nic.port), false));
    await addChardev(qmp, name("output"), socket(inet(address, nic.port + 1), false));
    await addObject(qmp, "filter-redirector", name("follow"), {
      ...filter,
      queue: "tx",
      indev: name("input"),
    });
    await addObject(qmp, "filter-redirector", name("forward"), {
      ...filter,
      queue: "rx",
      outdev: name("output"),
    });
    await addObject(qmp, "filter-rewriter", name("rewriter"), { ...filter, queue: "all" });
  }
}

/** Which side's filters are there. */
interface FiltersPresent {
  primary: boolean;
  secondary: boolean;
}

export async function filtersPresent(qmp: QmpClient, nics: readonly FilterNic[]): Promise<FiltersPresent> {
  const [names, labels] = await Promise.all([objects(qmp), chardevs(qmp)]);
  const has = (kinds: readonly string[], present: { has(name: string): boolean }) =>
    nics.some((nic) => kinds.some((kind) => present.has(nameOf(kind, nic))));
  return {
    primary: names.has(THREAD) || has(PRIMARY_CHARDEVS, labels),
    secondary: has(["follow", "forward"], names) || has(SECONDARY_CHARDEVS, labels),
  };
}

/** Input is copied no more. */
export async function removeMirrors(qmp: QmpClient, nics: readonly FilterNic[]): Promise<void> {
  for (const nic of nics) await removeObject(qmp, nameOf("mirror", nic));
}

/** From now on the VM's output leaves at once; packets captured before stay held. */
export async function removeCaptures(qmp: QmpClient, nics: readonly FilterNic[]): Promise<void> {
  for (const nic of nics) await removeObject(qmp, nameOf("capture", nic));
}

/**
 * Removes the rest of the primary's side. Packets that colo-compare then holds are lost
 * (colo_compare_finalize).
 */
export async function removePrimaryFilters(
  qmp: QmpClient,
  nics: readonly FilterNic[],
  directory: string,
): Promise<void> {
  for (const nic of nics) {
    for (const object of ["mirror", "capture", "compare", "release"])
      await removeObject(qmp, nameOf(object, nic));
    for (const chardev of PRIMARY_CHARDEVS) await removeChardev(qmp, nameOf(chardev, nic));
    for (const inner of INNER) rmSync(socketPath(directory, inner, nic), { force: true });
  }
  await removeObject(qmp, THREAD);
}

/** Removes the secondary's side, but for the rewriters. */
export async function removeSecondaryFilters(qmp: QmpClient, nics: readonly FilterNic[]): Promise<void> {
  for (const nic of nics) {
    for (const object of ["forward", "follow"]) await removeObject(qmp, nameOf(object, nic));
    for (const chardev of ["output", "input"]) await removeChardev(qmp, nameOf(chardev, nic));
  }
}

/** Labels of the connections between the two QEMUs, which a hung one can keep the other waiting on. */
export function peerChardevs(nics: readonly FilterNic[]): string[] {
  return nics.flatMap((nic) => ["mirrored", "forwarded", "input", "output"].map((what) => nameOf(what, nic)));
}

/** Which of the primary's connections to the secondary are not there. */
export async function disconnected(qmp: QmpClient, nics: readonly FilterNic[]): Promise<string[]> {
  const present = await chardevs(qmp);
  return nics
    .flatMap((nic) => [nameOf("mirrored", nic), nameOf("forwarded", nic)])
    .filter((label) => present.get(label)?.startsWith("disconnected") !== false);
}

type Address =
  | { type: "inet"; data: { host: string; port: string } }
  | { type: "unix"; data: { path: string } };

const inet = (host: string, port: number): Address => ({ type: "inet", data: { host, port: String(port) } });

function socket(addr: Address, isServer: boolean) {
  const { type } = addr;
  return {
    type: "socket",
    data: {
      addr,
      server: isServer,
      ...(isServer ? { wait: false } : {}),
      ...(type === "inet" ? { nodelay: true } : {}),
    },
  };
}

function socketPath(directory: string, what: string, nic: FilterNic): string {
  return join(directory, `${nameOf(what, nic)}.sock`);
}

async function objects(qmp: QmpClient): Promise<Set<string>> {
  const list = await query(qmp, qomEntries, "qom-list", { path: "/objects" });
  return new Set(list.map(({ name }) => name));
}

/** Labels and what they are connected to. */
async function chardevs(qmp: QmpClient): Promise<Map<string, string>> {
  const list = await query(qmp, chardevInfo, "query-chardev");
  return new Map(list.map(({ label, filename }) => [label, filename]));
}

async function addObject(qmp: QmpClient, type: string, id: string, properties: object): Promise<void> {
  await qmp.execute("object-add", { "qom-type": type, id, ...properties });
}

async function addChardev(qmp: QmpClient, id: string, backend: object): Promise<void> {
  await qmp.execute("chardev-add", { id, backend });
}

async function removeObject(qmp: QmpClient, id: string): Promise<void> {
  if ((await objects(qmp)).has(id)) await qmp.execute("object-del", { id });
}

async function removeChardev(qmp: QmpClient, id: string): Promise<void> {
  if ((await chardevs(qmp)).has(id)) await qmp.execute("chardev-remove", { id });
}
