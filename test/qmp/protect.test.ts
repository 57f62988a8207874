/**
 * The life of a protected VM with a disk: protected while it runs and writes, checkpointed, failed over,
 * protected again.
 */
import { afterAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import {
  type PrimaryDisk,
  primaryFailover,
  secondaryDisksCommitted,
  secondaryFailover,
} from "../../src/colo/index.ts";
import { LAB_NODES } from "../../src/lab/qemu.ts";
import { until } from "../until.ts";
import {
  checkpoint,
  nodeNames,
  protect,
  removeTestDirectory,
  runState,
  type Side,
  startSide,
} from "./pair.ts";
import { recordsOnDisk } from "./writer_guest.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

const names = (side: Side) => side.events.map((event) => event.name).filter((name) => name !== "MIGRATION");

async function committed(side: Side): Promise<void> {
  await until("the overlays are written back", () =>
    secondaryDisksCommitted(side.client, [LAB_NODES.active]),
  );
}

describe("a VM that writes to its disk", () => {
  let primary: Side;
  let secondary: Side;
  let disks: PrimaryDisk[];

  test("is protected while it runs", async () => {
    [primary, secondary] = await Promise.all([startSide("primary"), startSide("secondary")]);
    await primary.untilWrites(10);
    const steps: string[] = [];
    let runningInHook: boolean | undefined;
    const result = await protect(primary, secondary, {
      hooks: {
        onStep: (step) => steps.push(step),
        onStopped: async () => {
          runningInHook = (await runState(primary)) === "running";
        },
      },
    });
    disks = result.disks;
    expect(runningInHook).toBe(false);
    expect(steps).toEqual([
      "Checking the VM's state",
      "Reaching the secondary's disks",
      "Copying the disks",
      "Copying the memory",
      "Switching the data plane",
      "Completing the disk copy",
      "Attaching the disk replication",
      "Entering COLO",
    ]);
    expect(result.protection.pauseMs).toBeGreaterThan(0);
    expect(result.protection.diskBytes).toBeGreaterThanOrEqual(16 * 1024 * 1024);
    expect([await runState(primary), await runState(secondary)]).toEqual(["running", "running"]);
    const migrate = await primary.client.execute<{ status: string }>("query-migrate");
    expect(migrate.status).toBe("colo");
    // Both VMs write from now on, each to its own disk.
    await Promise.all([primary.untilWrites(5), secondary.untilWrites(5)]);
  });

  test("takes 40 checkpoints on demand, each stopping and resuming both in order", async () => {
    primary.events.length = 0;
    secondary.events.length = 0;
    const pausesMs: number[] = [];
    for (let i = 0; i < 42; i++) {
      const before = { primary: primary.events.length, secondary: secondary.events.length };
      const { stop, resume, pauseMs } = await checkpoint(primary);
      pausesMs.push(pauseMs);
      expect(names(primary).slice(before.primary)).toEqual(["STOP", "RESUME"]);
      expect(names(secondary).slice(before.secondary)).toEqual(["STOP", "RESUME"]);
      const [secondaryStop, secondaryResume] = secondary.events.slice(-2);
      expect(secondaryStop!.timestampNs).toBeLessThanOrEqual(stop.timestampNs);
      expect(secondaryResume!.timestampNs).toBeGreaterThan(stop.timestampNs);
      expect(secondaryResume!.timestampNs).toBeLessThanOrEqual(resume.timestampNs);
    }
    const sorted = pausesMs.slice(2).sort((a, b) => a - b);
    const at = (share: number) => sorted[Math.floor(share * (sorted.length - 1))]?.toFixed(1);
    console.log(
      `primary's pause over 40 checkpoints: median ${at(0.5)} ms, 90 % ${at(0.9)} ms, most ${at(1)} ms`,
    );
    // A checkpoint makes the secondary a copy of the primary: from here both report the same numbers.
    await Promise.all([primary.untilWrites(3), secondary.untilWrites(3)]);
    expect(Math.abs(primary.writes().at(-1)! - secondary.writes().at(-1)!)).toBeLessThan(100);
  });

  test("runs alone after its secondary was killed, and is protected again by a new one", async () => {
    await secondary.kill();
    const failover = await primaryFailover(primary.client, { disks });
    expect(failover.leftovers).toEqual([]);
    expect(await runState(primary)).toBe("running");
    expect((await nodeNames(primary)).sort()).toEqual([LAB_NODES.quorum, LAB_NODES.disk].sort());
    await primary.untilWrites(5);
    // Once more, on a VM that is not protected: nothing happens.
    await primaryFailover(primary.client, { disks });
    expect(await runState(primary)).toBe("running");

    secondary = await startSide("secondary");
    ({ disks } = await protect(primary, secondary));
    await checkpoint(primary);
    await checkpoint(primary);
    await Promise.all([primary.untilWrites(5), secondary.untilWrites(5)]);
  });

  test("goes on in the secondary after the primary was killed, with all it has written", async () => {
    await checkpoint(primary);
    await primary.kill();
    const failover = await secondaryFailover(secondary.client);
    expect(failover).toMatchObject({ checkpointInProgress: false, loadedPending: false });
    expect(failover.resumedTimestampNs).toBeGreaterThan(0n);
    expect(await runState(secondary)).toBe("running");
    await secondary.untilWrites(5);
    await committed(secondary);
  });

  test("and from there it is protected again, the other way round", async () => {
    const survivor = secondary;
    secondary = await startSide("secondary");
    ({ disks } = await protect(survivor, secondary));
    await checkpoint(survivor);
    await checkpoint(survivor);
    await Promise.all([survivor.untilWrites(5), secondary.untilWrites(5)]);

    await survivor.kill();
    await secondaryFailover(secondary.client);
    await committed(secondary);
    await secondary.untilWrites(5);
    const lastReported = secondary.writes().at(-1)!;
    await secondary.kill();
    // Every record that any VM of this line has reported is there, from the first one on, across four QEMUs.
    expect(recordsOnDisk(secondary.disk)).toBeGreaterThan(lastReported);
  });
});

test("a VM without a disk is protected and fails over both ways", async () => {
  const options = { guest: "bios", disks: [] } as const;
  const primary = await startSide("primary", options);
  let secondary = await startSide("secondary", options);
  await protect(primary, secondary);
  await checkpoint(primary);
  await secondary.kill();
  await primaryFailover(primary.client);
  expect(await runState(primary)).toBe("running");

  secondary = await startSide("secondary", options);
  await protect(primary, secondary);
  await checkpoint(primary);
  await primary.kill();
  await secondaryFailover(secondary.client, { disks: false });
  expect(await runState(secondary)).toBe("running");
});
