/** Two real QEMUs on loopback, for the tests of the COLO procedures. */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  type PrimaryDisk,
  type Protection,
  type ProtectionHooks,
  type ProtectionOptions,
  prepareSecondary,
  requestCheckpoint,
  startProtection,
} from "../../src/colo/index.ts";
import { guestKernel, qemuArgv, qemuEnvironment, qemuImgArgv } from "../../src/host/installed.ts";
import { killQemu, type LabQemu, type LabQemuOptions, labDisk, startLabQemu } from "../../src/lab/qemu.ts";
import { QmpClient, type QmpEvent } from "../../src/qmp/client.ts";
import type { StreamTls } from "../../src/qmp/tls.ts";
import type { Disk, DiskDevice, DiskFormat } from "../../src/storage/disk_graph.ts";
import { until } from "../until.ts";
import { installBiosWriter, roundsReported } from "./bios_writer.ts";
import { makeWriterInitrd, reportedWrites } from "./writer_guest.ts";

const PREFIX = "colo-test-qmp-";
export const DISK_BYTES = 16 * 1024 * 1024;
/** Loopback addresses of the two hosts. */
export const PRIMARY_HOST = "127.66.0.1";
export const SECONDARY_HOST = "127.66.0.2";

let root: string | undefined;
let started = 0;

/** This run's network namespace, for the test that needs one. */
export const TEST_NETNS = `${PREFIX}${process.pid}`;

/** A folder for this run; what a run that was killed has left behind is removed first. */
export function testDirectory(): string {
  if (root !== undefined) return root;
  for (const name of readdirSync(tmpdir())) {
    const owner = name.startsWith(PREFIX) ? Number(name.slice(PREFIX.length)) : 0;
    if (owner > 0 && owner !== process.pid && !exists(owner)) removeDirectory(join(tmpdir(), name));
  }
  for (const name of (existsSync("/run/netns") ? readdirSync("/run/netns") : []).filter((one) =>
    one.startsWith(PREFIX),
  )) {
    if (!exists(Number(name.slice(PREFIX.length)))) Bun.spawnSync(["ip", "netns", "delete", name]);
  }
  root = join(tmpdir(), `${PREFIX}${process.pid}`);
  mkdirSync(root, { recursive: true });
  return root;
}

/** Ends every QEMU of this run and removes its folder. */
export function removeTestDirectory(): void {
  if (root !== undefined) removeDirectory(root);
  root = undefined;
}

function removeDirectory(directory: string): void {
  for (const pid of readdirSync("/proc")
    .map(Number)
    .filter((number) => number > 0)) {
    if (commandLine(pid).includes(`${directory}/`)) {
      try {
        process.kill(pid, "SIGKILL");
      } catch {
        // It ended meanwhile.
      }
    }
  }
  rmSync(directory, { recursive: true, force: true });
}

function commandLine(pid: number): string {
  try {
    return pid === process.pid ? "" : readFileSync(`/proc/${pid}/cmdline`, "latin1");
  } catch {
    return "";
  }
}

function exists(pid: number): boolean {
  return readdirSync("/proc").includes(String(pid));
}

/** One host's VM with the agent's connection to it. */
export interface Side extends LabQemu {
  client: QmpClient;
  /** Of the first disk. */
  disk: string;
  disks: readonly Disk[];
  /** STOP, RESUME, COLO_EXIT and MIGRATION, in the order they came. */
  events: QmpEvent[];
  /** SIGKILL, as if the host had died. */
  kill(): Promise<void>;
  /** SIGSTOP, as if the host had hung. */
  hang(): void;
  /** The guest's reports of writes so far. */
  writes(): number[];
  /** Waits until the guest has reported `count` more writes than now. */
  untilWrites(count: number): Promise<void>;
}

export interface DiskKind {
  device: DiskDevice;
  format: DiskFormat;
}

export interface SideOptions {
  /**
   * Default: the disk-writing guest. "bios_writer" boots in a second and writes to all disks, "bios" does
   * nothing.
   */
  guest?: "writer" | "bios_writer" | "bios";
  /** Default: one raw virtio-blk. */
  disks?: readonly DiskKind[];
  diskBytes?: number;
  /** A VM that has been killed: its images are used again. */
  imagesOf?: Pick<Side, "disks">;
  extraArguments?: readonly string[];
  /** MiB of memory that the guest keeps changing. */
  dirtyMib?: number;
  memoryMib?: number;
  /** A static executable that the guest runs too. */
  selfModifying?: Buffer<ArrayBuffer>;
}

export async function startSide(role: "primary" | "secondary", options: SideOptions = {}): Promise<Side> {
  const { guest = "writer", dirtyMib = 0, memoryMib = guest === "writer" ? 192 : 32 } = options;
  const { disks: kinds = [{ device: "virtio-blk", format: "raw" }], diskBytes = DISK_BYTES } = options;
  const directory = join(testDirectory(), `${role}${started++}`);
  mkdirSync(directory, { recursive: true });
  const initrd = join(directory, "initrd.img");
  if (guest === "writer") makeWriterInitrd(initrd, options.selfModifying);
  const disks =
    options.imagesOf?.disks ??
    kinds.map(({ device, format }, index) => {
      const name = `disk${index}`;
      const path = join(directory, `${name}.${format}`);
      return { ...labDisk(path), name, format, device, quorumNode: `colo-${name}`, baseNode: name };
    });
  if (options.imagesOf === undefined) {
    // The secondary's disks hold something else, so that only a real copy makes the two the same.
    for (const [index, disk] of disks.entries()) makeImage(disk, diskBytes, `${role}${index} `);
  }
  if (guest === "bios_writer" && role === "primary") installBiosWriter(disks[0] as Disk);
  const qemuOptions: LabQemuOptions = {
    role,
    directory,
    qemuArgv: qemuArgv(),
    qemuImgArgv: qemuImgArgv(),
    environment: qemuEnvironment(),
    memoryMib,
    disks,
    ...(options.extraArguments && { extraArguments: options.extraArguments }),
    ...(guest === "writer" && {
      kernel: guestKernel(),
      initrd,
      append: `console=ttyS0 quiet panic=-1${dirtyMib > 0 ? ` writer.dirty=${dirtyMib}` : ""}`,
    }),
  };
  const qemu = await startLabQemu(qemuOptions);
  const client = await QmpClient.connect(qemu.qmp);
  const events: QmpEvent[] = [];
  for (const name of ["STOP", "RESUME", "COLO_EXIT", "MIGRATION"])
    client.on(name, (event) => events.push(event));
  const writes = () => (guest === "writer" ? reportedWrites : roundsReported)(qemu.serial);
  return {
    ...qemu,
    client,
    disk: disks[0]?.path ?? "",
    disks,
    events,
    writes,
    kill: () => killQemu(qemu.pid),
    hang: () => {
      process.kill(qemu.pid, "SIGSTOP");
    },
    untilWrites: async (count) => {
      const goal = writes().length + count;
      await until(`the guest has written ${goal} records`, () => writes().length >= goal, {
        limitMs: 90_000,
        pollMs: 20,
        seen: () => writes().length,
      });
    },
  };
}

/** Fills the image's first 64 KiB with `text`. */
function makeImage({ path, format }: Disk, bytes: number, text: string): void {
  const raw = format === "raw" ? path : `${path}.raw`;
  writeFileSync(raw, Buffer.alloc(64 * 1024, text));
  truncateSync(raw, bytes);
  if (format === "raw") return;
  qemuImg("convert", "-f", "raw", "-O", format, raw, path);
  rmSync(raw);
}

/** Runs qemu-img. Throws if it fails, also for `compare` when the images differ. */
export function qemuImg(...words: string[]): void {
  const { exitCode, stdout, stderr } = Bun.spawnSync([...qemuImgArgv(), ...words], {
    env: qemuEnvironment(),
  });
  if (exitCode !== 0) throw new Error(`qemu-img ${words.join(" ")}: ${stdout}${stderr}`);
}

export interface Ports {
  nbd: number;
  migrate: number;
}

/** Two ports that nobody listens on. */
export async function freePorts(): Promise<Ports> {
  const take = () =>
    new Promise<{ port: number; free: () => void }>((resolve) => {
      const server = createServer();
      server.listen(0, SECONDARY_HOST, () => {
        const { port } = server.address() as { port: number };
        resolve({ port, free: () => server.close() });
      });
    });
  const [one, two] = await Promise.all([take(), take()]);
  one.free();
  two.free();
  return { nbd: one.port, migrate: two.port };
}

export function primaryDisk(ports: Ports, index = 0): PrimaryDisk {
  return {
    quorumNode: `colo-disk${index}`,
    replicationNode: `replication${index}`,
    nbdNode: `nbd${index}`,
    nbdHost: SECONDARY_HOST,
    nbdPort: ports.nbd,
    exportName: `export${index}`,
  };
}

export function prepare(secondary: Side, ports: Ports, tls?: StreamTls): Promise<void> {
  const exports = secondary.disks.map((disk, index) => ({ name: `export${index}`, node: disk.baseNode }));
  return prepareSecondary(secondary.client, {
    nbd: exports.length === 0 ? undefined : { host: SECONDARY_HOST, port: ports.nbd, exports },
    migrateHost: SECONDARY_HOST,
    migratePort: ports.migrate,
    tls,
  });
}

/** Both halves of protection. */
export async function protect(
  primary: Side,
  secondary: Side,
  {
    hooks = {},
    bitmaps = [],
    secondaryTls,
    ...options
  }: {
    hooks?: ProtectionHooks;
    bitmaps?: (string | undefined)[];
    secondaryTls?: StreamTls;
  } & Partial<ProtectionOptions> = {},
): Promise<{ disks: PrimaryDisk[]; protection: Protection }> {
  const ports = await freePorts();
  await prepare(secondary, ports, secondaryTls);
  const disks = primary.disks.map((_, index) => ({
    ...primaryDisk(ports, index),
    bitmap: bitmaps[index],
  }));
  const protection = await startProtection(
    primary.client,
    { disks, migrateHost: SECONDARY_HOST, migratePort: ports.migrate, ...options },
    hooks,
  );
  return { disks, protection };
}

/** Asks for a checkpoint and waits for its end. */
export async function checkpoint(
  primary: Side,
): Promise<{ stop: QmpEvent; resume: QmpEvent; pauseMs: number }> {
  const stopped = primary.client.waitFor("STOP", () => true, 20_000);
  const resumed = primary.client.waitFor("RESUME", () => true, 20_000);
  await requestCheckpoint(primary.client);
  const [stop, resume] = await Promise.all([stopped, resumed]);
  return { stop, resume, pauseMs: Number(resume.timestampNs - stop.timestampNs) / 1e6 };
}

/** Asks for a checkpoint whose end, and even whose answer, may never come. */
export async function requestQuietly(primary: Side): Promise<void> {
  await requestCheckpoint(primary.client, 500).catch(() => undefined);
}

export async function runState(side: Side): Promise<string> {
  return (await side.client.execute<{ status: string }>("query-status")).status;
}

/** Block nodes that a failed or ended protection must not leave behind. */
export async function nodeNames(side: Side): Promise<string[]> {
  const nodes = await side.client.execute<{ "node-name": string }[]>("query-named-block-nodes", {
    flat: true,
  });
  return nodes.map((node) => node["node-name"]).filter((name) => !name.startsWith("#"));
}
