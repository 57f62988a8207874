/** QEMU's command line: the same machine in both roles, another graph below its disks. */
import { expect, test } from "bun:test";
import { qemuArguments } from "../../src/qemu/arguments.ts";
import { qemuCommand, scopeCommand } from "../../src/qemu/instance.ts";
import type { ManagedNic, QemuSettings } from "../../src/qemu/settings.ts";
import type { Disk } from "../../src/storage/disk_graph.ts";

const disk = (name: string, changes: Partial<Disk> = {}): Disk => ({
  name,
  path: `/var/${name}.raw`,
  format: "raw",
  device: "virtio-blk",
  quorumNode: `colo-${name}`,
  baseNode: name,
  ...changes,
});

const nic = (changes: Partial<ManagedNic> = {}): ManagedNic => ({
  tap: "tap0",
  mac: "52:54:00:00:00:01",
  model: "virtio-net-pci",
  queues: 1,
  vhost: false,
  ...changes,
});

const settings = (changes: Partial<QemuSettings> = {}): QemuSettings => ({
  name: "db1",
  command: ["qemu-system-x86_64"],
  imgCommand: ["qemu-img"],
  arguments: ["-m", "1G", "-machine", "q35"],
  environment: {},
  directory: "/run/db1",
  overlayDirectory: "/ram",
  overlayBytes: 0,
  disks: [disk("disk0")],
  nics: [nic()],
  ...changes,
});

/** The values of an option that may be repeated. */
const values = (words: string[], option: string) =>
  words.flatMap((word, i) => (word === option ? [words[i + 1]!] : []));
const graph = (words: string[]) =>
  values(words, "-blockdev").map((text) => JSON.parse(text) as Record<string, unknown>);

test("both roles build the same machine; only the secondary waits", () => {
  const [primary, secondary] = [qemuArguments(settings(), "primary"), qemuArguments(settings(), "secondary")];
  for (const option of ["-machine", "-m", "-device", "-netdev", "-name", "-qmp"]) {
    expect(values(primary, option), option).toEqual(values(secondary, option));
    expect(values(primary, option).length, option).toBeGreaterThan(0);
  }
  expect(values(primary, "-incoming")).toEqual([]);
  expect(values(secondary, "-incoming")).toEqual(["defer"]);
});

test("each disk is a quorum over its image, on the secondary over replication and overlays", () => {
  const two = settings({ disks: [disk("disk0"), disk("log", { format: "qcow2" })] });
  expect(graph(qemuArguments(two, "primary")).map((node) => node["node-name"])).toEqual([
    "disk0",
    "colo-disk0",
    "log",
    "colo-log",
  ]);
  const [base, replication, quorum] = graph(qemuArguments(two, "secondary")).slice(3);
  expect(base).toMatchObject({ driver: "qcow2", "node-name": "log", file: { filename: "/var/log.raw" } });
  expect(replication).toMatchObject({
    driver: "replication",
    mode: "secondary",
    "top-id": "colo-log",
    file: {
      "node-name": "log-active",
      file: { filename: "/ram/log-active.qcow2" },
      backing: { "node-name": "log-hidden", file: { filename: "/ram/log-hidden.qcow2" }, backing: "log" },
    },
  });
  expect(quorum).toMatchObject({
    driver: "quorum",
    "node-name": "colo-log",
    children: ["log-secondary"],
    "vote-threshold": 1,
  });
});

test("cards are on their taps, without vhost and without announcements by the guest", () => {
  const nics = [
    nic(),
    nic({ tap: "tap1", queues: 4, vhost: true, mac: "52:54:00:00:00:02" }),
    nic({ tap: "tap2", model: "e1000", queues: 4, mac: "52:54:00:00:00:03" }),
  ];
  const words = qemuArguments(settings({ nics, disks: [] }), "primary");
  expect(values(words, "-netdev")).toEqual([
    "tap,id=net0,ifname=tap0,script=no,downscript=no,vnet_hdr=on,vhost=off",
    "tap,id=net1,ifname=tap1,script=no,downscript=no,vnet_hdr=on,vhost=on,queues=4",
    "tap,id=net2,ifname=tap2,script=no,downscript=no,vnet_hdr=on,vhost=off",
  ]);
  expect(values(words, "-device")).toEqual([
    "virtio-net-pci,id=nic0,netdev=net0,mac=52:54:00:00:00:01,romfile=,guest_announce=off",
    "virtio-net-pci,id=nic1,netdev=net1,mac=52:54:00:00:00:02,romfile=,guest_announce=off,mq=on,vectors=10",
    "e1000,id=nic2,netdev=net2,mac=52:54:00:00:00:03,romfile=",
  ]);
});

test("a name of the user's stays, and a scope's command ends where QEMU's begins", () => {
  const named = qemuCommand(settings({ arguments: ["-name", "mine"] }), "primary");
  expect(values(named, "-name")).toEqual(["mine"]);
  expect(named[0]).toBe("qemu-system-x86_64");
  expect(scopeCommand("db1").slice(0, 2)).toEqual(["systemd-run", "--scope"]);
  expect(scopeCommand("db1")).toContain("--unit=colo-db1");
  expect(scopeCommand("db1").at(-1)).toBe("--");
});
