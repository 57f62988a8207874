/** The gate at a VM's taps, in a network of its own, with frames that go through the kernel. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { run } from "../bpf/network.ts";
import { until } from "../until.ts";
import { Child } from "./child.ts";
import { isStopped, passes, Taps, VM_TAPS } from "./taps.ts";

const NAMESPACE = "colo-test-gate";
const TABLE = "colo-test";

let taps: Taps;
let keeper: Child;

async function startKeeper(): Promise<void> {
  keeper = new Child(NAMESPACE, "gate_process.ts", TABLE, ...VM_TAPS);
  expect(await keeper.hear()).toBe("open");
}

beforeAll(() => {
  taps = Taps.make(NAMESPACE);
});

afterAll(() => taps.remove());

beforeEach(startKeeper);

afterEach(() => keeper.kill());

test("a frame leaves each tap while the lease holds, and none before or after", async () => {
  for (const tap of taps.vm) expect(await isStopped(tap, taps.network)).toBe(true);
  expect(await keeper.say("lease 60000")).toBe("done");
  for (const tap of taps.vm) expect(await passes(tap, taps.network)).toBe(true);
  expect(await keeper.say("drop")).toBe("done");
  for (const tap of taps.vm) expect(await isStopped(tap, taps.network)).toBe(true);
});

test("the lease runs out with nobody there", async () => {
  expect(await keeper.say("lease 3000")).toBe("done");
  expect(await passes(taps.vm[0], taps.network)).toBe(true);
  await keeper.kill();
  await until("the lease has run out", () => isStopped(taps.vm[0], taps.network));
  expect(run("ip", "netns", "exec", NAMESPACE, "nft", "list", "ruleset")).toContain("policy drop");
});

test("a lease that is renewed goes on beyond its time", async () => {
  const begun = performance.now();
  while (performance.now() - begun < 3_000) {
    expect(await keeper.say("lease 2000")).toBe("done");
    expect(await passes(taps.vm[1], taps.network)).toBe(true);
  }
});

test("what the bridge floods gets in only if it may", async () => {
  expect(await keeper.say("lease 60000")).toBe("done");
  expect(await isStopped(taps.network, taps.vm[0])).toBe(true);
  expect(await keeper.say("input")).toBe("done");
  expect(await passes(taps.network, taps.vm[0])).toBe(true);
  expect(await keeper.say("no-input")).toBe("done");
  expect(await isStopped(taps.network, taps.vm[0])).toBe(true);
});

test("a new agent begins with everything closed", async () => {
  expect(await keeper.say("lease 60000")).toBe("done");
  expect(await keeper.say("input")).toBe("done");
  await keeper.kill();
  await startKeeper();
  expect(await isStopped(taps.vm[0], taps.network)).toBe(true);
  expect(await isStopped(taps.network, taps.vm[0])).toBe(true);
});

test("a renewal notices that the table is missing and makes it again, without a lease", async () => {
  run("ip", "netns", "exec", NAMESPACE, "nft", "flush", "ruleset");
  expect(await keeper.say("lease 60000")).toContain("No such file or directory");
  expect(await keeper.say("check")).toContain("made again");
  expect(await isStopped(taps.vm[0], taps.network)).toBe(true);
  expect(await keeper.say("lease 70000")).toBe("done");
  expect(await passes(taps.vm[0], taps.network)).toBe(true);
});
