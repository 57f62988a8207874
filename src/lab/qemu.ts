/** Lab QEMUs: one command line for both roles, so that the machines are the same on both sides as migration needs it. */
import { spawn } from "node:child_process";
import { closeSync, existsSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { QmpClient } from "../qmp/client.ts";
import { createOverlays, type Disk, diskArguments, secondaryNodes } from "../storage/disk_graph.ts";
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

export interface LabQemuOptions {
  role: "primary" | "secondary";
  /** For sockets, logs, the pid file and the secondary's overlays. Created if missing; keep its path short (108 bytes). */
  directory: string;
  /** What starts qemu-system-x86_64, e.g. src/lab/assets.ts qemuArgv(). */
  qemuArgv: readonly string[];
  /** What starts qemu-img; needed by a secondary with a disk. */
  qemuImgArgv?: readonly string[];
  environment?: Readonly<Record<string, string>>;
  /** Default "tcg". */
  accelerator?: "tcg" | "kvm";
  /** Default 256. The secondary's QEMU takes twice as much once COLO runs. */
  memoryMib?: number;
  /** Without a kernel the machine stays in its BIOS: enough for QEMU's side of COLO. */
  kernel?: string;
  initrd?: string;
  /** Kernel command line. Default "console=ttyS0 quiet". */
  append?: string;
  /** Default none. */
  disks?: readonly Disk[];
  /** An existing tap (in `netns`, if that is given). The MAC must be the same on both sides. */
  network?: { tap: string; mac: string };
  /** Network namespace to run in. */
  netns?: string;
  /** `thread-name` and process title; default `lab-<role>`. */
  name?: string;
  /** A QEMU plugin; startQemu() adds tcgCheckpointPlugin() where it is needed. */
  plugin?: string;
  /** Put behind everything else. */
  extraArguments?: readonly string[];
}

/** Where a lab QEMU keeps its things. */
export interface LabPaths {
  /** For the agent, and only for it: QEMU serves one client per socket. */
  qmp: string;
  /** For people and tests. */
  qmpSpare: string;
  /** QEMU's own output. */
  log: string;
  /** The guest's first serial port. */
  serial: string;
  pidFile: string;
}

export function labPaths(directory: string): LabPaths {
  return {
    qmp: join(directory, "qmp.sock"),
    qmpSpare: join(directory, "qmp-spare.sock"),
    log: join(directory, "qemu.log"),
    serial: join(directory, "serial.log"),
    pidFile: join(directory, "qemu.pid"),
  };
}

/**
 * QEMU's arguments, without what starts it.
 * The clocks follow the guest's own time (clock=vm, no HPET), so that they do not jump on a checkpoint.
 */
export function qemuArguments(options: LabQemuOptions): string[] {
  const paths = labPaths(options.directory);
  const { role, disks = [], network, kernel, initrd } = options;
  const arguments_ = [
    "-name",
    options.name ?? `lab-${role}`,
    "-machine",
    "pc,hpet=off,usb=off",
    "-accel",
    options.accelerator ?? "tcg",
    "-cpu",
    options.accelerator === "kvm" ? "host" : "max",
    "-smp",
    "1",
    "-m",
    `${options.memoryMib ?? 256}M`,
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-rtc",
    "base=utc,clock=vm",
    "-serial",
    `file:${paths.serial}`,
    "-qmp",
    `unix:${paths.qmp},server=on,wait=off`,
    "-qmp",
    `unix:${paths.qmpSpare},server=on,wait=off`,
    "-pidfile",
    paths.pidFile,
  ];
  if (kernel !== undefined) {
    arguments_.push("-kernel", kernel, "-append", options.append ?? "console=ttyS0 quiet");
    if (initrd !== undefined) arguments_.push("-initrd", initrd);
  }
  if (network !== undefined) {
    // guest_announce: else the guest sends ARP after each checkpoint on one side only (src/qmp/check.ts).
    arguments_.push(
      "-netdev",
      `tap,id=net0,ifname=${network.tap},script=no,downscript=no,vnet_hdr=on,vhost=off`,
      "-device",
      `virtio-net-pci,id=nic0,netdev=net0,mac=${network.mac},romfile=,guest_announce=off`,
    );
  }
  arguments_.push(...diskArguments(role, disks, options.directory));
  if (role === "secondary") arguments_.push("-incoming", "defer");
  if (options.plugin !== undefined) arguments_.push("-plugin", `file=${options.plugin}`);
  return [...arguments_, ...(options.extraArguments ?? [])];
}

/** The whole command, with the namespace in front. */
export function qemuCommand(options: LabQemuOptions): string[] {
  const netns = options.netns === undefined ? [] : ["ip", "netns", "exec", options.netns];
  return [...netns, ...options.qemuArgv, ...qemuArguments(options)];
}

export interface LabQemu extends LabPaths {
  /** Also the process group's id. */
  pid: number;
  command: readonly string[];
}

/**
 * Starts QEMU in a session of its own, so that it outlives the caller, and returns once QMP answers.
 * A guest of role primary runs at once; one of role secondary waits for `migrate-incoming`.
 * @throws Error with the end of QEMU's log if it exits, or does not answer within `timeoutMs` (default 20 000)
 */
export async function startQemu(options: LabQemuOptions, timeoutMs = 20_000): Promise<LabQemu> {
  const paths = labPaths(options.directory);
  mkdirSync(options.directory, { recursive: true });
  for (const path of [paths.qmp, paths.qmpSpare, paths.pidFile]) rmSync(path, { force: true });
  if (options.role === "secondary") await makeOverlays(options);

  const needsPlugin = (options.accelerator ?? "tcg") === "tcg";
  const command = qemuCommand(needsPlugin ? { plugin: tcgCheckpointPlugin(), ...options } : options);
  const log = openSync(paths.log, "a");
  let exit: string | undefined;
  const child = spawn(command[0] as string, command.slice(1), {
    detached: true,
    stdio: ["ignore", log, log],
    env: { ...process.env, ...options.environment },
  });
  closeSync(log);
  child.once("error", (error) => {
    exit = error.message;
  });
  child.once("exit", (code, signal) => {
    exit = signal === null ? `exit status ${code}` : `signal ${signal}`;
  });
  child.unref();

  const deadlineMs = performance.now() + timeoutMs;
  for (;;) {
    await Bun.sleep(20);
    const fail = (what: string) => new Error(`The lab's QEMU (${options.role}) ${what}\n${tail(paths.log)}`);
    if (exit !== undefined || child.pid === undefined) throw fail(`ended at once: ${exit ?? "not started"}.`);
    if (existsSync(paths.qmpSpare)) {
      try {
        const probe = await QmpClient.connect(paths.qmpSpare, { connectTimeoutMs: 2_000 });
        probe.close();
        return { ...paths, pid: child.pid, command };
      } catch (error) {
        if (performance.now() > deadlineMs) throw fail(`does not answer: ${(error as Error).message}`);
      }
    }
    if (performance.now() > deadlineMs) {
      process.kill(child.pid, "SIGKILL");
      throw fail(`did not open its QMP socket within ${timeoutMs} ms.`);
    }
  }
}

/** Ends a QEMU with SIGKILL, as a host's death would, and waits until it is gone. */
export async function killQemu(pid: number): Promise<void> {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    return;
  }
  while (isRunning(pid)) await Bun.sleep(5);
}

function isRunning(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    // A zombie holds neither files nor sockets once its other threads are gone too; its parent, if that is us, reaps it later.
    const zombie = stat.slice(stat.lastIndexOf(")") + 2, stat.lastIndexOf(")") + 3) === "Z";
    return !zombie || readdirSync(`/proc/${pid}/task`).length > 1;
  } catch {
    return false;
  }
}

async function makeOverlays(options: LabQemuOptions): Promise<void> {
  const { disks = [], directory, qemuImgArgv, environment } = options;
  if (disks.length === 0) return;
  if (qemuImgArgv === undefined) throw new Error("A lab secondary with a disk needs qemuImgArgv.");
  await createOverlays(disks, directory, { argv: qemuImgArgv, environment });
}

function tail(path: string): string {
  try {
    return readFileSync(path, "utf8").trimEnd().split("\n").slice(-10).join("\n");
  } catch {
    return "(no log)";
  }
}
