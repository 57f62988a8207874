/** A secondary under TCG runs the code and the clock that a checkpoint brought, not what was there before. */
import { afterAll, expect, setDefaultTimeout, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { compileCommand, tcgCheckpointPlugin } from "../../src/lab/tcg_checkpoint.ts";
import { until } from "../until.ts";
import { checkpoint, protect, removeTestDirectory, type Side, startSide, testDirectory } from "./pair.ts";
import { lastUptimeMs } from "./writer_guest.ts";

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

function selfModifyingProgram(): Buffer<ArrayBuffer> {
  const path = join(testDirectory(), "self_modifying");
  const options = ["-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-o", path];
  const { exitCode, stderr } = Bun.spawnSync([
    "clang",
    ...options,
    join(import.meta.dir, "self_modifying.c"),
  ]);
  if (exitCode !== 0) throw new Error(stderr.toString());
  return Buffer.from(readFileSync(path));
}

test("a guest whose code changes all the time survives checkpoints", async () => {
  const selfModifying = selfModifyingProgram();
  const [primary, secondary] = await Promise.all([
    startSide("primary", { selfModifying }),
    startSide("secondary", { selfModifying }),
  ]);
  const count = (side: Side, word: RegExp) => readFileSync(side.serial, "latin1").match(word)?.length ?? 0;
  await primary.untilWrites(5);
  await protect(primary, secondary);
  for (let i = 0; i < 40; i++) {
    const rounds = count(secondary, /rounds/g);
    await checkpoint(primary);
    // The two drift apart between checkpoints; only then does a checkpoint change the code.
    await until("the secondary's guest goes round", () => count(secondary, /rounds/g) > rounds);
  }
  expect(count(secondary, /STALE/g)).toBe(0);
  expect(count(primary, /STALE/g)).toBe(0);
});

test("the secondary's clock does not run ahead of the primary's", async () => {
  const [primary, secondary] = await Promise.all([startSide("primary"), startSide("secondary")]);
  await primary.untilWrites(5);
  await protect(primary, secondary);
  let aheadMs = 0;
  for (let i = 0; i < 60; i++) {
    const { resume } = await checkpoint(primary);
    // The last two of the secondary's events are this checkpoint's STOP and RESUME.
    aheadMs += Number(resume.timestampNs - secondary.events.at(-1)!.timestampNs) / 1e6;
    await Bun.sleep(20);
  }
  await Promise.all([primary.untilWrites(2), secondary.untilWrites(2)]);
  // That long has the secondary run while the primary still stood. Without the plugin its clock keeps it.
  expect(lastUptimeMs(secondary.serial) - lastUptimeMs(primary.serial)).toBeLessThan(aheadMs / 2);
});

test("the plugin is built once", () => {
  const path = tcgCheckpointPlugin();
  expect(tcgCheckpointPlugin()).toBe(path);
  expect(compileCommand("clang", "a.c", "a.so").slice(-3)).toEqual(["-o", "a.so", "a.c"]);
});
