/**
 * Overlays that run full cost checkpoints, and overlays that are full the replica: never the VM. On real file
 * systems, in memory.
 */
import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, statfsSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4 } from "../../src/lab/network.ts";
import { verifyBlocks } from "../../src/lab/scenario.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { run } from "../bpf/network.ts";
import { total } from "../metrics_text.ts";
import { labUnderTest } from "./lab_under_test.ts";

const TIMEOUT_MS = 60_000;
const MIB = 2 ** 20;
const OVERLAY_MIB = 8;

/** A small file system for the overlays of each host, gone with the tests. */
function ramDisks(): string {
  const directory = mkdtempSync(join(tmpdir(), "colo-test-overlays-"));
  beforeAll(() => {
    for (const letter of ["a", "b"]) {
      mkdirSync(join(directory, letter));
      run("mount", "-t", "tmpfs", "-o", `size=${OVERLAY_MIB + 2}m`, "colo-overlays", join(directory, letter));
    }
  });
  afterAll(() => {
    for (const letter of ["a", "b"]) Bun.spawnSync(["umount", "--lazy", join(directory, letter)]);
    rmSync(directory, { recursive: true, force: true });
  });
  return directory;
}

/** Leaves `bytes` of a file system free, or less: an overlay may grow meanwhile. */
function fill(directory: string, bytes: number): void {
  const { bavail, bsize } = statfsSync(directory);
  try {
    appendFileSync(join(directory, "filler"), Buffer.alloc(Math.max(0, bavail * bsize - bytes)));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOSPC") throw error;
  }
}

const config = (directory: string, percents: string) => ({
  vmConfig:
    `[vm.overlay]\ndirectory = "${directory}/%h"\nsize_bytes = ` +
    `${OVERLAY_MIB * MIB}\n${percents}\n[vm.checkpoint]\nperiod_ms = 600000`,
});

const untilProtected = (lab: Lab) =>
  lab.waitFor("protected", ({ a, b }) => a?.phase === "protected" && b?.phase === "standby", TIMEOUT_MS);
const untilGivenUp = (lab: Lab) =>
  lab.waitFor("a goes on alone", ({ a, b }) => a?.phase === "alone" && b?.phase !== "standby", TIMEOUT_MS);

function goesOnWriting(disk: LabTraffic): Promise<void> {
  const written = disk.last!.answers;
  return disk.until("blocks go on", ({ answers }) => answers > written + 100, TIMEOUT_MS);
}

/** Every byte of the connection has come back, every acknowledged block is on the disk. */
async function finishWhole(lab: Lab, connection: LabTraffic, disk: LabTraffic): Promise<void> {
  const { answers } = await disk.finish();
  const ended = await connection.finish();
  expect(ended.received).toBe(ended.sent);
  expect(verifyBlocks(lab.host("a").disk, answers)).toBe(answers);
}

describe("overlays that are watched", () => {
  const directory = ramDisks();
  const lab = labUnderTest("overlay", config(directory, ""));

  test(
    "a writer costs checkpoints, a full file system the replica, until there is room again",
    async () => {
      using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 100_000 });
      using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 0 });
      const { generation } = (await lab().agentStatus("a"))!;
      // More than would fit.
      const blocks = (OVERLAY_MIB * MIB) / 4096;
      await disk.until("blocks", ({ answers }) => answers > blocks, 2 * TIMEOUT_MS);
      expect(await lab().agentStatus("a")).toMatchObject({ phase: "protected", generation });
      expect(
        total(await lab().metrics("a"), "colo_checkpoints_total", 'cause="overflow"'),
      ).toBeGreaterThanOrEqual(1);
      expect(total(await lab().metrics("b"), "colo_overlay_bytes")).toBeGreaterThan(0);

      // A checkpoint empties the overlays. Whoever else writes there takes that room as well, or checkpoints
      // could go on for ever.
      const others = setInterval(() => fill(join(directory, "b"), 0.3 * MIB), 20);
      try {
        await untilGivenUp(lab());
      } finally {
        clearInterval(others);
      }
      await goesOnWriting(disk);
      await lab().waitFor(
        "b says why it offers no replica",
        ({ b }) => /of the 8 MiB left that overlays need/.test(b?.reason ?? ""),
        TIMEOUT_MS,
      );
      rmSync(join(directory, "b", "filler"));
      await untilProtected(lab());

      await finishWhole(lab(), connection, disk);
    },
    5 * TIMEOUT_MS,
  );
});

describe("overlays that nobody watches", () => {
  const directory = ramDisks();
  const lab = labUnderTest("overlay", config(directory, "checkpoint_percent = 100\ngive_up_percent = 100"));

  test(
    "a file system that is full ends the replica by QEMU's own word, and not the VM",
    async () => {
      using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 100_000 });
      using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 0 });
      await disk.until("blocks", ({ answers }) => answers > 10, TIMEOUT_MS);
      fill(join(directory, "b"), 0);
      await untilGivenUp(lab());
      expect((await lab().agentStatus("a"))!.reason).toMatch(
        /error of the disk|quorum reports an error|disk .*error/,
      );
      await goesOnWriting(disk);
      await finishWhole(lab(), connection, disk);
    },
    3 * TIMEOUT_MS,
  );
});
