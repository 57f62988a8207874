/**
 * A VM with three disks, each of another model and alternating in format: copied, replicated, failed over and
 * kept equal together.
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { primaryFailover, secondaryDisksCommitted, secondaryFailover } from "../../src/colo/index.ts";
import { type Disk, diskArguments, secondaryNodes } from "../../src/storage/disk_graph.ts";
import { probeNbdServer } from "../../src/storage/mirror.ts";
import { roundsOnDisk } from "../qmp/bios_writer.ts";
import {
  checkpoint,
  type DiskKind,
  freePorts,
  nodeNames,
  prepare,
  protect,
  qemuImg,
  removeTestDirectory,
  runState,
  SECONDARY_HOST,
  type Side,
  startSide,
} from "../qmp/pair.ts";
import { until } from "../until.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(120_000);
afterAll(removeTestDirectory);

const [raw, qcow2] = ["raw", "qcow2"] as const;

describe.each([
  [
    "raw, qcow2, raw",
    [
      { device: "virtio-blk", format: raw },
      { device: "scsi-hd", format: qcow2 },
      { device: "ide-hd", format: raw },
    ],
  ],
  [
    "qcow2, raw, qcow2",
    [
      { device: "virtio-blk", format: qcow2 },
      { device: "scsi-hd", format: raw },
      { device: "ide-hd", format: qcow2 },
    ],
  ],
] satisfies [string, DiskKind[]][])("virtio-blk, scsi-hd, ide-hd as %s", (_, kinds) => {
  const options = { guest: "bios_writer", disks: kinds } as const;
  const active = (side: Side) => side.disks.map((disk) => secondaryNodes(disk).active);

  /** Kills the VM; each of its disks holds every round that its guest had reported. */
  async function expectAllReported(side: Side): Promise<void> {
    // The BIOS does not flush; a stop does.
    await side.client.execute("stop");
    const reported = side.writes().at(-1)!;
    await side.kill();
    for (const disk of side.disks)
      expect([disk.name, roundsOnDisk(disk) > reported]).toEqual([disk.name, true]);
  }

  test("the secondary is lost, a new one takes its place and then the VM", async () => {
    const primary = await startSide("primary", options);
    let secondary = await startSide("secondary", options);
    await primary.untilWrites(3);
    const { disks, protection } = await protect(primary, secondary);
    expect(protection.diskBytes).toBeGreaterThanOrEqual(3 * 16 * 1024 * 1024);
    const exports = await secondary.client.execute<{ id: string }[]>("query-block-exports");
    expect(exports.map((one) => one.id).sort()).toEqual(["colo-export0", "colo-export1", "colo-export2"]);
    await checkpoint(primary);
    await Promise.all([primary.untilWrites(3), secondary.untilWrites(3)]);

    await secondary.kill();
    expect((await primaryFailover(primary.client, { disks })).leftovers).toEqual([]);
    expect(await runState(primary)).toBe("running");
    expect((await nodeNames(primary)).sort()).toEqual(
      primary.disks.flatMap((disk) => [disk.baseNode, disk.quorumNode]).sort(),
    );
    await primary.untilWrites(3);

    secondary = await startSide("secondary", options);
    await protect(primary, secondary);
    await checkpoint(primary);
    await primary.untilWrites(3);
    await checkpoint(primary);
    await expectAllReported(primary);
    await secondaryFailover(secondary.client);
    await until("the overlays are written back", () =>
      secondaryDisksCommitted(secondary.client, active(secondary)),
    );
    await secondary.untilWrites(3);
    await expectAllReported(secondary);
  });

  test("while the VM stands still, both hosts' disks are equal", async () => {
    const primary = await startSide("primary", options);
    const secondary = await startSide("secondary", options);
    await primary.untilWrites(3);
    await protect(primary, secondary);
    await checkpoint(primary);
    await primary.untilWrites(5);
    await primary.client.execute("stop");
    await Promise.all([primary.kill(), secondary.kill()]);
    for (const [index, { path, format }] of primary.disks.entries()) {
      const other = secondary.disks[index] as Disk;
      qemuImg("compare", "-f", format, "-F", other.format, path, other.path);
      expect(roundsOnDisk(other)).toBeGreaterThanOrEqual(5);
    }
  });
});

test("one disk that cannot be exported: nothing stays open on the secondary", async () => {
  const kinds: DiskKind[] = [
    { device: "virtio-blk", format: "raw" },
    { device: "ide-hd", format: "raw" },
  ];
  const secondary = await startSide("secondary", { guest: "bios", disks: kinds });
  const ports = await freePorts();
  const wrong = {
    ...secondary,
    disks: secondary.disks.map((disk, i) => (i === 0 ? disk : { ...disk, baseNode: "no" })),
  };
  await expect(prepare(wrong, ports)).rejects.toThrow("Exporting the disk no failed");
  await expect(probeNbdServer(SECONDARY_HOST, ports.nbd, 1_000)).rejects.toThrow("no connection");
  expect(await secondary.client.execute<object[]>("query-block-exports")).toEqual([]);
  await secondary.kill();
});

const disk = (name: string, device: Disk["device"], format: Disk["format"] = "raw"): Disk => ({
  ...{ name, device, format },
  ...{ path: `/images/${name}`, quorumNode: `colo-${name}`, baseNode: name },
});

test("a disk is a quorum over its image, on the secondary over replication and overlays", () => {
  const disks = [
    disk("root", "virtio-blk", "qcow2"),
    disk("a", "ide-hd"),
    disk("b", "ide-hd"),
    disk("c", "ide-hd"),
  ];
  const all = [...disks, disk("d", "scsi-hd"), disk("e", "scsi-hd")];
  const values = (role: "primary" | "secondary", option: string) => {
    const words = diskArguments(role, all, "/run/vm");
    return words.filter((_, index) => words[index - 1] === option);
  };
  const graph = (role: "primary" | "secondary") =>
    values(role, "-blockdev").map((text) => JSON.parse(text) as Record<string, unknown>);
  expect(graph("primary").slice(0, 2)).toEqual([
    { driver: "qcow2", "node-name": "root", file: { driver: "file", filename: "/images/root" } },
    {
      ...{ driver: "quorum", "node-name": "colo-root", children: ["root"] },
      ...{ "vote-threshold": 1, "read-pattern": "fifo" },
    },
  ]);
  const [, replication, quorum] = graph("secondary");
  expect(replication).toMatchObject({
    driver: "replication",
    mode: "secondary",
    "top-id": "colo-root",
    file: {
      "node-name": "root-active",
      file: { filename: "/run/vm/root-active.qcow2" },
      backing: {
        "node-name": "root-hidden",
        file: { filename: "/run/vm/root-hidden.qcow2" },
        backing: "root",
      },
    },
  });
  expect(quorum).toMatchObject({ children: ["root-secondary"] });
  expect(values("primary", "-device")).toEqual([
    "virtio-scsi-pci,id=scsi0",
    "virtio-blk-pci,id=root,drive=colo-root,bootindex=1",
    "ide-hd,bus=ide.0,unit=0,id=a,drive=colo-a",
    "ide-hd,bus=ide.0,unit=1,id=b,drive=colo-b",
    "ide-hd,bus=ide.1,unit=0,id=c,drive=colo-c",
    "scsi-hd,bus=scsi0.0,id=d,drive=colo-d",
    "scsi-hd,bus=scsi0.0,id=e,drive=colo-e",
  ]);
  expect(values("secondary", "-device")).toEqual(values("primary", "-device"));
});
