/** A secondary that was lost and comes back with its images gets only what changed since. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { type PrimaryDisk, primaryFailover } from "../../src/colo/index.ts";
import { bitmapsOn, coveringBitmap, dirtyBytes, ReplicaBitmaps } from "../../src/storage/dirty_bitmaps.ts";
import { roundsOnDisk } from "../qmp/bios_writer.ts";
import {
  checkpoint,
  type DiskKind,
  protect,
  qemuImg,
  removeTestDirectory,
  type Side,
  startSide,
} from "../qmp/pair.ts";
import { until } from "../until.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(60_000);
afterAll(removeTestDirectory);

const DISK_BYTES = 64 << 20;
const kinds: DiskKind[] = [
  { device: "virtio-blk", format: "raw" },
  { device: "scsi-hd", format: "qcow2" },
];
const options = { guest: "bios_writer", disks: kinds, diskBytes: DISK_BYTES } as const;

let primary: Side;
let secondary: Side;
let disks: PrimaryDisk[];
let epoch = 1;

const quorums = () => primary.disks.map((disk) => disk.quorumNode);
const names = async () =>
  Promise.all(quorums().map(async (node) => (await bitmapsOn(primary.client, node)).map(({ name }) => name)));

/** What the agent does when a VM has become protected, as `generation`. */
async function begin(generation: number, rotateMs = 0): Promise<ReplicaBitmaps> {
  const bitmaps = new ReplicaBitmaps(primary.client, quorums(), generation, rotateMs);
  await bitmaps.begin(epoch);
  for (let i = 0; i < 3; i++) await checkpointed(bitmaps);
  return bitmaps;
}

async function checkpointed(bitmaps: ReplicaBitmaps): Promise<void> {
  await checkpoint(primary);
  epoch++;
  bitmaps.checkpointed(
    epoch,
    () => epoch,
    (message) => expect(message).toBe(""),
  );
  await until("what changes from here on is recorded on each disk", async () =>
    (await Promise.all(quorums().map((node) => bitmapsOn(primary.client, node)))).every(
      (bitmaps) => bitmaps.at(-1)?.epoch === epoch,
    ),
  );
}

async function covering(generation: number): Promise<(string | undefined)[]> {
  return Promise.all(quorums().map((node) => coveringBitmap(primary.client, node, generation)));
}

/** Stops the VM, whose disks are then equal on both hosts, byte for byte. */
async function expectEqualDisks(): Promise<void> {
  await primary.client.execute("stop");
  const reported = primary.writes().at(-1)!;
  await Promise.all([primary.kill(), secondary.kill()]);
  for (const [index, { path, format }] of primary.disks.entries()) {
    const other = secondary.disks[index]!;
    qemuImg("compare", "-f", format, "-F", other.format, path, other.path);
    expect(roundsOnDisk(other)).toBeGreaterThan(reported);
  }
}

describe("a pair whose secondary is lost", () => {
  beforeAll(async () => {
    [primary, secondary] = await Promise.all([
      startSide("primary", options),
      startSide("secondary", options),
    ]);
    await primary.untilWrites(3);
    const result = await protect(primary, secondary);
    disks = result.disks;
    expect(result.protection.diskBytes).toBeGreaterThanOrEqual(2 * DISK_BYTES);
  });

  test("bitmaps do not pile up over 25 checkpoints, and the oldest is older than the last two", async () => {
    const bitmaps = await begin(7);
    for (let i = 0; i < 25; i++) await checkpointed(bitmaps);
    for (const list of await names()) {
      expect(list.length).toBeGreaterThanOrEqual(2);
      expect(list.length).toBeLessThanOrEqual(4);
      expect(Number(list[0]!.split("-")[2])).toBeLessThanOrEqual(epoch - 2);
    }
    bitmaps.end();
  });

  test("only changes are sent when it comes back, the disks are equal, older bitmaps go", async () => {
    await primary.untilWrites(5);
    await secondary.kill();
    await primary.untilWrites(2);
    expect((await primaryFailover(primary.client, { disks })).leftovers).toEqual([]);
    await primary.untilWrites(5);

    expect(await covering(6)).toEqual([undefined, undefined]); // a marker of another replica fits nothing
    const bitmaps = await covering(7);
    expect(bitmaps).toEqual([expect.stringMatching(/^colo-7-/), expect.stringMatching(/^colo-7-/)]);
    for (const [index, node] of quorums().entries()) {
      expect(await dirtyBytes(primary.client, node, bitmaps[index]!)).toBeGreaterThan(0);
    }
    // An attempt that fails in the middle changes nothing about that.
    secondary = await startSide("secondary", { ...options, imagesOf: secondary });
    const jobsAndMigration: string[] = [];
    const stopListening = primary.client.on("*", ({ name, data }) => {
      if (name === "JOB_STATUS_CHANGE") jobsAndMigration.push(`${data.id} ${data.status}`);
      if (name === "MIGRATION") jobsAndMigration.push(`migration ${data.status}`);
    });
    const hook = async () => {
      throw new Error("no");
    };
    await expect(protect(primary, secondary, { bitmaps, hooks: { onStopped: hook } })).rejects.toThrow("no");
    expect(await covering(7)).toEqual(bitmaps);
    stopListening();
    // A copy that ends while the migration begins can block both QEMUs for each other.
    const setup = jobsAndMigration.indexOf("migration setup");
    const ended = (id: string) => jobsAndMigration.slice(0, setup).findLast((one) => one.startsWith(id));
    expect([ended("changes-nbd0"), ended("changes-nbd1")]).toEqual([
      "changes-nbd0 null",
      "changes-nbd1 null",
    ]);
    expect(jobsAndMigration[setup + 1]).toBe("migration active");
    await secondary.kill();
    await primary.untilWrites(3);

    secondary = await startSide("secondary", { ...options, imagesOf: secondary });
    const { protection } = await protect(primary, secondary, { bitmaps });
    expect(protection.diskBytes).toBeGreaterThan(0);
    expect(protection.diskBytes).toBeLessThan(DISK_BYTES / 16);
    console.log(`${protection.diskBytes} of ${2 * DISK_BYTES} bytes were sent`);
    await begin(8);
    for (const list of await names()) {
      expect(list.filter((name) => !name.startsWith("colo-8-"))).toEqual([]);
      expect(list.length).toBeGreaterThan(0);
    }
    await primary.untilWrites(5);
    await expectEqualDisks();
  });
});
