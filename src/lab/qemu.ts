/**
 * The lab's machine: what a user would write into vm.qemu.arguments. The rest of its QEMUs' command lines
 * comes from src/qemu/.
 */
import { join } from "node:path";
import { startQemu } from "../qemu/instance.ts";
import { endProcess, identify } from "../qemu/process.ts";
import {
  type ManagedNic,
  type QemuPaths,
  type QemuRole,
  type QemuSettings,
  qemuPaths,
} from "../qemu/settings.ts";
import { type Disk, secondaryNodes } from "../storage/disk_graph.ts";
import { tcgCheckpointPlugin } from "./tcg_checkpoint.ts";

/** The one disk of a VM that does not need others. */
export function labDisk(path: string): Disk {
  const nodes = { quorumNode: "colo-disk0", baseNode: "disk0" };
  return { name: "disk0", path, format: "raw", device: "virtio-blk", ...nodes };
}

/** Block node names of {@link labDisk}; the agent is configured with them. */
export const LAB_NODES = {
  quorum: labDisk("").quorumNode,
  disk: labDisk("").baseNode,
  active: secondaryNodes(labDisk("")).active,
} as const;

function labNic({ tap, mac }: { tap: string; mac: string }): ManagedNic {
  return { tap, mac, model: "virtio-net-pci", queues: 1, vhost: false };
}

export interface LabMachine {
  /** For the second QMP socket and the serial port's log. */
  directory: string;
  /** Default "tcg". */
  accelerator?: "tcg" | "kvm";
  /** Default 256. The secondary's QEMU takes twice as much once COLO runs. */
  memoryMib?: number;
  /** Processors. Default 1. */
  cpus?: number;
  /** Without a kernel the machine stays in its BIOS: enough for QEMU's side of COLO. */
  kernel?: string;
  initrd?: string;
  /** Kernel command line. Default "console=ttyS0 quiet". */
  append?: string;
  /** A QEMU plugin, or none; default under TCG: tcgCheckpointPlugin(). */
  plugin?: string | false;
  /** Put behind everything else. */
  extraArguments?: readonly string[];
}

/** Where a lab QEMU keeps its things. */
interface LabPaths extends QemuPaths {
  /** For people and tests. */
  qmpSpare: string;
  /** The guest's first serial port. */
  serial: string;
}

export function labPaths(directory: string): LabPaths {
  return {
    ...qemuPaths(directory),
    qmpSpare: join(directory, "qmp-spare.sock"),
    serial: join(directory, "serial.log"),
  };
}

/** The clocks follow the guest's own time (clock=vm, no HPET), so that they do not jump on a checkpoint. */
export function labArguments(machine: LabMachine): string[] {
  const paths = labPaths(machine.directory);
  const { accelerator = "tcg", kernel, initrd } = machine;
  const plugin = machine.plugin ?? (accelerator === "tcg" ? tcgCheckpointPlugin() : false);
  return [
    ...["-machine", "pc,hpet=off,usb=off"],
    ...["-accel", accelerator],
    ...["-cpu", accelerator === "kvm" ? "host" : "max"],
    ...["-smp", String(machine.cpus ?? 1)],
    ...["-m", `${machine.memoryMib ?? 256}M`],
    ...["-nodefaults", "-no-user-config"],
    ...["-display", "none"],
    ...["-rtc", "base=utc,clock=vm"],
    ...["-serial", `file:${paths.serial}`],
    ...["-qmp", `unix:${paths.qmpSpare},server=on,wait=off`],
    ...(kernel === undefined ? [] : ["-kernel", kernel, "-append", machine.append ?? "console=ttyS0 quiet"]),
    ...(kernel === undefined || initrd === undefined ? [] : ["-initrd", initrd]),
    ...(plugin === false ? [] : ["-plugin", `file=${plugin}`]),
    ...(machine.extraArguments ?? []),
  ];
}

export interface LabQemuOptions extends LabMachine {
  role: QemuRole;
  /** What starts qemu-system-x86_64, e.g. src/lab/assets.ts qemuArgv(). */
  qemuArgv: readonly string[];
  /** What starts qemu-img; needed with a disk. */
  qemuImgArgv?: readonly string[];
  environment?: Readonly<Record<string, string>>;
  /** Default none. */
  disks?: readonly Disk[];
  /** An existing tap (in `netns`, if that is given). The MAC must be the same on both sides. */
  network?: { tap: string; mac: string };
  /** Network namespace to run in. */
  netns?: string;
  /** `thread-name` and process title; default `lab-<role>`. */
  name?: string;
}

function labSettings(options: LabQemuOptions): QemuSettings {
  const { netns, disks = [], network, directory } = options;
  return {
    name: options.name ?? `lab-${options.role}`,
    command: [...(netns === undefined ? [] : ["ip", "netns", "exec", netns]), ...options.qemuArgv],
    imgCommand: options.qemuImgArgv ?? ["qemu-img"],
    arguments: labArguments(options),
    environment: options.environment ?? {},
    directory,
    overlayDirectory: directory,
    overlayBytes: 0,
    disks,
    nics: network === undefined ? [] : [labNic(network)],
  };
}

export interface LabQemu extends LabPaths {
  /** Also the process group's id. */
  pid: number;
}

/** Starts one QEMU without an agent, and returns once QMP answers; throws as src/qemu/instance.ts does. */
export async function startLabQemu(options: LabQemuOptions): Promise<LabQemu> {
  const { pid } = await startQemu(labSettings(options), options.role);
  return { ...labPaths(options.directory), pid };
}

/** Ends a QEMU with SIGKILL, as a host's death would, and waits until it is gone. */
export async function killQemu(pid: number): Promise<void> {
  try {
    await endProcess(identify(pid));
  } catch {
    // It is gone already.
  }
}
