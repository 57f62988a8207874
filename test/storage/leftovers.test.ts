/** Whatever becomes of a copy of disks, QEMU's lists are afterwards as they were before it. */
import { afterAll, afterEach, beforeEach, expect, setDefaultTimeout, test } from "bun:test";
import { clearProtection, type PrimaryDisk, primaryFailover } from "../../src/colo/index.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import {
  checkpoint,
  type DiskKind,
  freePorts,
  primaryDisk,
  protect,
  removeTestDirectory,
  runState,
  type Side,
  startSide,
} from "../qmp/pair.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(60_000);
afterAll(removeTestDirectory);

const MIB = 1 << 20;
const DISK_BYTES = 64 * MIB;
const kinds: DiskKind[] = [
  { device: "virtio-blk", format: "raw" },
  { device: "ide-hd", format: "qcow2" },
];
const options = { guest: "bios_writer", disks: kinds, diskBytes: DISK_BYTES } as const;

let primary: Side;
let secondary: Side;
let before: object;

beforeEach(async () => {
  [primary, secondary] = await Promise.all([startSide("primary", options), startSide("secondary", options)]);
  await primary.untilWrites(3);
  before = await lists(primary.client);
});
afterEach(async () => {
  await Promise.all([primary.kill(), secondary.kill()]);
});

/** Everything of a QEMU that a protection adds to; the numbers in names that QEMU gives are left out. */
async function lists(client: QmpClient): Promise<object> {
  const names = async (command: string, key: string, arguments_?: Record<string, unknown>) =>
    (await client.execute<Record<string, unknown>[]>(command, arguments_))
      .map((one) => String(one[key]).replace(/^#block\d+$/, "#block"))
      .sort();
  const capabilities = await client.execute<{ capability: string; state: boolean }[]>(
    "query-migrate-capabilities",
  );
  const nodes = await client.execute<{ "node-name": string; "dirty-bitmaps"?: { name?: string }[] }[]>(
    "query-named-block-nodes",
    { flat: true },
  );
  return {
    nodes: await names("query-named-block-nodes", "node-name", { flat: true }),
    bitmaps: nodes.flatMap((node) => node["dirty-bitmaps"] ?? []).map(({ name }) => name),
    jobs: await names("query-jobs", "id"),
    blockJobs: await names("query-block-jobs", "device"),
    exports: await names("query-block-exports", "id"),
    chardevs: await names("query-chardev", "label"),
    objects: await names("qom-list", "name", { path: "/objects" }),
    connections: await names("query-yank", "type"),
    capabilities: capabilities
      .filter(({ capability, state }) => state && capability !== "events")
      .map(({ capability }) => capability),
  };
}

/** Begins to protect, slowly; resolves in the middle of the copy. */
async function inTheMiddle(
  signal?: AbortSignal,
): Promise<{ attempt: Promise<unknown>; copied: () => number }> {
  const { promise, resolve } = Promise.withResolvers<void>();
  let copiedBytes = 0;
  const attempt = protect(primary, secondary, {
    resyncBytesPerSecond: () => 4 * MIB,
    stallMs: 5_000,
    commandMs: 5_000,
    ...(signal && { signal }),
    hooks: {
      onDiskProgress: (progress) => {
        copiedBytes = progress.reduce((sum, one) => sum + one.copiedBytes, 0);
        if (copiedBytes > 4 * MIB) resolve();
      },
    },
  });
  attempt.catch(() => undefined);
  await Promise.race([promise, attempt]);
  return { attempt, copied: () => copiedBytes };
}

async function expectAsBefore(client = primary.client): Promise<void> {
  expect(await lists(client)).toEqual(before);
  expect(await runState({ ...primary, client })).toBe("running");
  await primary.untilWrites(3);
}

test("protected and let run alone", async () => {
  const { disks } = await protect(primary, secondary);
  await checkpoint(primary);
  expect(await lists(primary.client)).not.toEqual(before);
  expect((await primaryFailover(primary.client, { disks })).leftovers).toEqual([]);
  await expectAsBefore();
});

test("given up in the middle of the copy", async () => {
  const abort = new AbortController();
  const { attempt, copied } = await inTheMiddle(abort.signal);
  expect(copied()).toBeLessThan(2 * DISK_BYTES);
  abort.abort(new Error("unprotect"));
  await expect(attempt).rejects.toThrow("unprotect");
  await expectAsBefore();
});

test.each(["SIGKILL", "SIGSTOP"] as const)(
  "the secondary is lost (%s) in the middle of the copy",
  async (signal) => {
    const { attempt } = await inTheMiddle();
    process.kill(secondary.pid, signal);
    await expect(attempt).rejects.toThrow();
    await expectAsBefore();
  },
);

test("the agent dies in the middle of the copy; the next one clears up and protects", async () => {
  const { attempt } = await inTheMiddle();
  primary.client.close();
  await expect(attempt).rejects.toThrow();
  const client = await QmpClient.connect(primary.qmp);
  expect(await lists(client)).not.toEqual(before);
  const ports = await freePorts();
  const disks: PrimaryDisk[] = kinds.map((_, index) => primaryDisk(ports, index));
  expect(await clearProtection(client, disks)).toEqual([]);
  await expectAsBefore(client);
  expect(await clearProtection(client, disks)).toEqual([]); // nothing is there
  await secondary.kill();
  secondary = await startSide("secondary", options);
  primary = { ...primary, client };
  await protect(primary, secondary);
  await checkpoint(primary);
});

test("the limit holds, can be lifted while it runs, and the progress is told for each disk", async () => {
  let limit = 4 * MIB;
  const begunMs = performance.now();
  const seen = new Set<string>();
  let limitedBytes = 0;
  let limitedMs = 0;
  await protect(primary, secondary, {
    resyncBytesPerSecond: () => limit,
    hooks: {
      onDiskProgress: (progress) => {
        for (const one of progress) seen.add(one.quorumNode);
        if (limit === 0) return;
        limitedBytes = progress.reduce((sum, one) => sum + one.copiedBytes, 0);
        limitedMs = performance.now() - begunMs;
        if (limitedMs > 2_000) limit = 0;
      },
    },
  });
  expect(limit).toBe(0); // it was not over before
  expect([...seen].sort()).toEqual(["colo-disk0", "colo-disk1"]);
  expect(limitedBytes).toBeLessThan(2 * DISK_BYTES);
  expect(limitedBytes).toBeGreaterThan(0);
});
