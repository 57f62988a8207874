import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { qemuArgv, qemuEnvironment } from "../../src/lab/assets.ts";
import {
  killQemu,
  type LabQemuOptions,
  labDisk,
  qemuArguments,
  qemuCommand,
  startQemu,
} from "../../src/lab/qemu.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { removeTestDirectory, TEST_NETNS, testDirectory } from "./pair.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

const options = (role: "primary" | "secondary"): LabQemuOptions => ({
  role,
  directory: "/run/lab",
  qemuArgv: ["qemu-system-x86_64"],
  kernel: "/boot/vmlinuz",
  initrd: "/boot/initrd.img",
  append: "console=ttyS0 quiet",
  disks: [labDisk("/var/disk.raw")],
  network: { tap: "tap0", mac: "52:54:00:00:00:01" },
});

/** The values of an option that may be repeated. */
const values = (arguments_: string[], option: string) =>
  arguments_.flatMap((word, i) => (word === option ? [arguments_[i + 1]!] : []));

test("both roles build the same machine", () => {
  const primary = qemuArguments(options("primary"));
  const secondary = qemuArguments(options("secondary"));
  for (const option of [
    "-machine",
    "-accel",
    "-cpu",
    "-smp",
    "-m",
    "-device",
    "-kernel",
    "-append",
    "-rtc",
  ]) {
    expect(values(primary, option), option).toEqual(values(secondary, option));
    expect(values(primary, option).length, option).toBeGreaterThan(0);
  }
  expect(values(primary, "-incoming")).toEqual([]);
  expect(values(secondary, "-incoming")).toEqual(["defer"]);
});

test("the network card is on the given tap, without vhost and without announcements by the guest", () => {
  const arguments_ = qemuArguments(options("primary"));
  expect(values(arguments_, "-netdev")).toEqual([
    "tap,id=net0,ifname=tap0,script=no,downscript=no,vnet_hdr=on,vhost=off",
  ]);
  expect(values(arguments_, "-device")).toContain(
    "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,romfile=,guest_announce=off",
  );
});

test("what is not wanted is not there", () => {
  const { kernel: _kernel, initrd: _initrd, disks: _disks, network: _network, ...bare } = options("primary");
  const arguments_ = qemuArguments(bare);
  for (const option of ["-kernel", "-initrd", "-append", "-netdev", "-device", "-blockdev"]) {
    expect(arguments_).not.toContain(option);
  }
  expect(qemuCommand({ ...bare, extraArguments: ["-S"] }).at(-1)).toBe("-S");
  expect(qemuCommand({ ...bare, netns: "blue" }).slice(0, 5)).toEqual([
    "ip",
    "netns",
    "exec",
    "blue",
    "qemu-system-x86_64",
  ]);
});

const bios = (name: string, extraArguments: string[] = []): LabQemuOptions => ({
  role: "primary",
  directory: join(testDirectory(), name),
  qemuArgv: qemuArgv(),
  environment: qemuEnvironment(),
  memoryMib: 32,
  extraArguments,
});

test("it runs in a session of its own and answers on both sockets", async () => {
  const qemu = await startQemu(bios("session"));
  const stat = readFileSync(`/proc/${qemu.pid}/stat`, "latin1");
  const [, , processGroup, session] = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  expect([processGroup, session]).toEqual([qemu.pid, qemu.pid]);
  expect(Number(readFileSync(qemu.pidFile, "latin1"))).toBe(qemu.pid);
  const clients = await Promise.all([QmpClient.connect(qemu.qmp), QmpClient.connect(qemu.qmpSpare)]);
  for (const client of clients) {
    await client.execute("query-status");
    client.close();
  }
  await killQemu(qemu.pid);
  await killQemu(qemu.pid); // what is gone is gone
});

test("it runs in the given network namespace under its own pid", async () => {
  const netns = TEST_NETNS;
  testDirectory(); // removes what a run that was killed has left
  const ip = (...words: string[]) => Bun.spawnSync(["ip", ...words], { stderr: "inherit" }).exitCode;
  expect(ip("netns", "add", netns)).toBe(0);
  try {
    expect(ip("-n", netns, "tuntap", "add", "tap0", "mode", "tap", "vnet_hdr")).toBe(0);
    const network = { tap: "tap0", mac: "52:54:00:00:00:01" };
    const qemu = await startQemu({ ...bios("netns"), netns, network });
    const pids = Bun.spawnSync(["ip", "netns", "pids", netns]).stdout.toString().trim();
    expect(pids).toBe(String(qemu.pid));
    await killQemu(qemu.pid);
  } finally {
    ip("netns", "delete", netns);
  }
});

test("a QEMU that cannot start is reported with its own words", async () => {
  const error = await startQemu(bios("wrong", ["-device", "no-such-device"])).catch(
    (reason: unknown) => reason as Error,
  );
  expect((error as Error).message).toContain("ended at once");
  expect((error as Error).message).toContain("no-such-device");
  const missing = await startQemu({ ...bios("missing"), qemuArgv: ["/does/not/exist"] }).catch(
    (reason: unknown) => reason as Error,
  );
  expect((missing as Error).message).toContain("ended at once");
});

test("a secondary with a disk needs qemu-img for its overlays", async () => {
  const options = { ...bios("overlays"), role: "secondary", disks: [labDisk("/dev/null")] } as const;
  await expect(startQemu(options)).rejects.toThrow("needs qemuImgArgv");
});
