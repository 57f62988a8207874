/** Real QEMUs as processes: started, found again, ended; overlays made and written back. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { existsSync, mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { qemuArgv, qemuEnvironment, qemuImgArgv } from "../../src/host/installed.ts";
import { labDisk } from "../../src/lab/qemu.ts";
import { commitOverlays, createOverlays, diskBytes } from "../../src/qemu/images.ts";
import { endQemu, findQemu, startQemu } from "../../src/qemu/instance.ts";
import { isAlive } from "../../src/qemu/process.ts";
import { type QemuSettings, qemuPaths } from "../../src/qemu/settings.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { overlayPaths } from "../../src/storage/disk_graph.ts";
import { removeTestDirectory, TEST_NETNS, testDirectory } from "../qmp/pair.ts";

// Not a claim: emulated machines take their time on a busy one.
setDefaultTimeout(120_000);
afterAll(removeTestDirectory);

const DISK_BYTES = 4 << 20;

function bios(name: string, changes: Partial<QemuSettings> = {}): QemuSettings {
  const directory = join(testDirectory(), name);
  return {
    name,
    command: qemuArgv(),
    imgCommand: qemuImgArgv(),
    arguments: ["-m", "32M", "-nodefaults", "-display", "none"],
    environment: { QEMU_MODULE_DIR: qemuEnvironment().QEMU_MODULE_DIR! },
    directory,
    overlayDirectory: join(directory, "overlays"),
    overlayBytes: 0,
    disks: [],
    nics: [],
    ...changes,
  };
}

function withDisk(name: string, bytes = DISK_BYTES): QemuSettings {
  const settings = bios(name);
  mkdirSync(settings.directory, { recursive: true });
  const path = join(settings.directory, "disk.raw");
  writeFileSync(path, Buffer.alloc(64 << 10, "old"));
  truncateSync(path, bytes);
  return { ...settings, disks: [labDisk(path)] };
}

const session = (pid: number) => {
  const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
  return Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[3]);
};

test("it runs in a session of its own, is found again, and ended for good", async () => {
  const settings = bios("session");
  expect(findQemu(settings)).toBeUndefined();
  const qemu = await startQemu(settings, "primary");
  expect(session(qemu.pid)).toBe(qemu.pid);
  expect(findQemu(settings)).toEqual(qemu);
  // What an agent has not written down is found by QEMU's own pid file.
  rmSync(qemuPaths(settings.directory).identity);
  expect(findQemu(settings)).toEqual(qemu);
  const again = await startQemu(settings, "primary").catch((reason: Error) => reason);
  expect((again as Error).message).toContain("runs already");
  const client = await QmpClient.connect(qemuPaths(settings.directory).qmp);
  await client.execute("query-status");
  client.close();

  await endQemu(settings);
  expect(isAlive(qemu)).toBe(false);
  expect(existsSync(qemuPaths(settings.directory).qmp)).toBe(false);
  await endQemu(settings); // what is gone is gone
});

test("a pid that belongs to another process now is left alone", async () => {
  const settings = bios("other");
  mkdirSync(settings.directory, { recursive: true });
  const other = Bun.spawn(["sleep", "60"]);
  try {
    const { identity, pidFile } = qemuPaths(settings.directory);
    writeFileSync(identity, JSON.stringify({ pid: other.pid, startTicks: 1 }));
    writeFileSync(pidFile, `${other.pid}\n`);
    expect(findQemu(settings)).toBeUndefined();
    await endQemu(settings);
    expect(other.exitCode).toBeNull();
    process.kill(other.pid, 0);
  } finally {
    other.kill();
  }
});

test("it runs in the network namespace of its starter, under its own pid", async () => {
  testDirectory(); // removes what a run that was killed has left
  const ip = (...words: string[]) => Bun.spawnSync(["ip", ...words], { stderr: "inherit" }).exitCode;
  expect(ip("netns", "add", TEST_NETNS)).toBe(0);
  const settings = bios("netns", {
    command: ["ip", "netns", "exec", TEST_NETNS, ...qemuArgv()],
    nics: [{ tap: "tap0", mac: "52:54:00:00:00:01", model: "rtl8139", queues: 1, vhost: false }],
  });
  try {
    expect(ip("-n", TEST_NETNS, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")).toBe(0);
    const { pid } = await startQemu(settings, "primary");
    const pids = Bun.spawnSync(["ip", "netns", "pids", TEST_NETNS]).stdout.toString().trim();
    expect(pids).toBe(String(pid));
  } finally {
    await endQemu(settings);
    ip("netns", "delete", TEST_NETNS);
  }
});

test("a QEMU that cannot start is reported with its own words", async () => {
  const fail = (settings: QemuSettings) =>
    startQemu(settings, "primary").then(
      () => "",
      (reason: Error) => reason.message,
    );
  const wrong = bios("wrong");
  const message = await fail({ ...wrong, arguments: [...wrong.arguments, "-device", "no-such-device"] });
  expect(message).toContain("ended at once");
  expect(message).toContain("no-such-device");
  expect(await fail(bios("missing", { command: ["/does/not/exist"] }))).toContain("ended at once");
  expect(await fail(bios("disk", { disks: [labDisk("/does/not/exist.raw")] }))).toContain(
    "there is no image /does/not/exist.raw: make one of the same size",
  );
});

test("a disk that replication cannot copy in whole pieces is refused", async () => {
  const settings = withDisk("odd", DISK_BYTES + 512);
  const refused = await diskBytes(settings, settings.disks[0]!).catch((reason: Error) => reason);
  expect((refused as Error).message).toContain("give it a multiple of 65536 on both hosts");
});

test("a secondary of each kind of disk starts with fresh overlays and waits", async () => {
  const settings = withDisk("secondary");
  const second = join(settings.directory, "second.qcow2");
  const made = Bun.spawnSync([...qemuImgArgv(), "create", "-q", "-f", "qcow2", second, "8M"]);
  expect(made.exitCode).toBe(0);
  const scsi = { ...labDisk(second), name: "log", format: "qcow2", device: "scsi-hd" } as const;
  const two = {
    ...settings,
    disks: [...settings.disks, { ...scsi, quorumNode: "colo-log", baseNode: "log" }],
  };
  try {
    await startQemu(two, "secondary");
    const client = await QmpClient.connect(qemuPaths(two.directory).qmp);
    expect(await client.execute("query-status")).toMatchObject({ status: "inmigrate" });
    const nodes =
      await client.execute<{ "node-name": string; image: { "virtual-size": number } }[]>(
        "query-named-block-nodes",
      );
    const sizes = new Map(nodes.map((node) => [node["node-name"], node.image["virtual-size"]]));
    expect(sizes.get("disk0-active")).toBe(DISK_BYTES);
    expect(sizes.get("log-hidden")).toBe(8 << 20);
    client.close();
  } finally {
    await endQemu(two);
  }
});

test("what a VM has left in its overlays is written into its disk", async () => {
  const settings = withDisk("commit");
  await createOverlays(settings);
  const [disk] = settings.disks;
  const { active, hidden } = overlayPaths(settings.overlayDirectory, disk!);
  const [...qemuIo] = qemuImgArgv();
  qemuIo.push(qemuIo.pop()!.replace(/qemu-img$/, "qemu-io"));
  const write = (path: string, pattern: string, at: string) => {
    const words = ["-f", "qcow2", "-c", `write -P ${pattern} ${at} 64k`, path];
    expect(Bun.spawnSync([...qemuIo, ...words]).stdout.toString()).toContain("wrote 65536");
  };
  // The hidden one holds what the disk had before the primary's last writes, the active one what the VM has
  // written since.
  write(hidden, "0x68", "1M");
  write(hidden, "0x68", "2M");
  write(active, "0x61", "2M");
  expect((await commitOverlays(settings)).map(({ name }) => name)).toEqual(["disk0"]);
  expect(existsSync(active)).toBe(false);
  const content = readFileSync(disk!.path);
  const at = (offset: number) => content.subarray(offset, offset + (64 << 10));
  expect(at(0).equals(Buffer.alloc(64 << 10, "old"))).toBe(true);
  expect(at(1 << 20).every((byte) => byte === 0x68)).toBe(true);
  expect(at(2 << 20).every((byte) => byte === 0x61)).toBe(true);
  expect(at(3 << 20).every((byte) => byte === 0)).toBe(true);
  expect(await commitOverlays(settings)).toEqual([]);
});
