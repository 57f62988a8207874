/** A QEMU that hangs keeps its socket open and says nothing: only asking tells. */
import { afterAll, afterEach, expect, test } from "bun:test";
import type { VmConfig } from "../../src/agent/config.ts";
import { QemuWatch } from "../../src/agent/qemu_watch.ts";
import type { Event } from "../../src/failover/state.ts";
import { removeTestDirectory, type Side, startSide } from "../qmp/pair.ts";

let side: Side;

afterEach(() => side.kill());
afterAll(removeTestDirectory);

const LOOK_MS = 50;

/** Looks until something is told; undefined after `rounds` of silence. */
async function watch(role: "primary" | "secondary", rounds: number, told: Event[], watched: QemuWatch) {
  for (let i = 0; i < rounds && told.length === 0; i++) {
    watched.look(role);
    await Bun.sleep(LOOK_MS);
  }
  return told[0];
}

test.each(["primary", "secondary"] as const)(
  "a stopped process is told on a %s, one that runs is not",
  async (role) => {
    side = await startSide("primary", { guest: "bios", disks: [] });
    const told: Event[] = [];
    const config = { qemu_timeout_ms: 500 } as VmConfig;
    const watched = new QemuWatch(side.client, config, (event) => told.push(event));
    expect(await watch(role, 40, told, watched)).toBeUndefined();
    side.hang();
    expect(await watch(role, 200, told, watched)).toMatchObject({ type: "qemu_silent" });
    process.kill(side.pid, "SIGCONT");
    told.length = 0;
    await Bun.sleep(200); // the open questions are answered
    expect(await watch(role, 40, told, watched)).toBeUndefined();
  },
);

test("an orderly end is told before the connection closes", async () => {
  side = await startSide("primary", { guest: "bios", disks: [] });
  const told: Event[] = [];
  new QemuWatch(side.client, { qemu_timeout_ms: 500 } as VmConfig, (event) => told.push(event));
  const shutdown = side.client.waitFor("SHUTDOWN", () => true, 10_000);
  await side.client.execute("quit").catch(() => undefined);
  await shutdown;
  expect(told).toEqual([{ type: "shutdown", reason: "the VM was shut down (host-qmp-quit)" }]);
});
