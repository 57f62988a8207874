/** A QEMU that hangs keeps its socket open and says nothing: only asking tells. */
import { afterAll, afterEach, expect, test } from "bun:test";
import { disksOf } from "../../src/agent/machine.ts";
import { QemuWatch } from "../../src/agent/qemu_watch.ts";
import { primaryFailover, startProtection } from "../../src/colo/index.ts";
import type { VmConfig } from "../../src/config/config.ts";
import type { Event } from "../../src/failover/events.ts";
import {
  freePorts,
  prepare,
  primaryDisk,
  removeTestDirectory,
  SECONDARY_HOST,
  type Side,
  startSide,
} from "../qmp/pair.ts";
import { quiet, until } from "../until.ts";

let side: Side;

afterEach(() => side.kill());
afterAll(removeTestDirectory);

const LOOK_MS = 50;
const CONFIG = {
  qemu_timeout_ms: 2_000,
  disk: [{ name: "disk0", quorum_node: "colo-disk0", export_node: "disk0" }],
} as unknown as VmConfig;

/** Looks until something is told; undefined after `rounds` of silence. */
async function watch(role: "primary" | "secondary", rounds: number, told: Event[], watched: QemuWatch) {
  for (let i = 0; i < rounds && told.length === 0; i++) {
    watched.look(role);
    await quiet(LOOK_MS);
  }
  return told[0];
}

test.each(["primary", "secondary"] as const)(
  "a stopped process is told on a %s, one that runs is not",
  async (role) => {
    side = await startSide("primary", { guest: "bios", disks: [] });
    const told: Event[] = [];
    const config = CONFIG;
    const watched = new QemuWatch(side.client, config, (event) => told.push(event));
    expect(await watch(role, 60, told, watched)).toBeUndefined();
    side.hang();
    expect(await watch(role, 200, told, watched)).toMatchObject({ type: "qemu_silent" });
    process.kill(side.pid, "SIGCONT");
    told.length = 0;
    // Answers come in order: those to the open questions are in front of this one.
    await side.client.execute("query-status");
    expect(await watch(role, 60, told, watched)).toBeUndefined();
  },
);

test("an orderly end is told before the connection closes", async () => {
  side = await startSide("primary", { guest: "bios", disks: [] });
  const told: Event[] = [];
  new QemuWatch(side.client, CONFIG, (event) => told.push(event));
  const shutdown = side.client.waitFor("SHUTDOWN", () => true, 10_000);
  await side.client.execute("quit").catch(() => undefined);
  await shutdown;
  expect(told).toEqual([{ type: "shutdown", reason: "the VM was shut down (host-qmp-quit)" }]);
});

/** Waits for the first event. */
function first(told: readonly Event[]): Promise<Event> {
  return until("an event is told", () => told[0]);
}

// Its nodes have names that begin as those of a replica do.
test("a disk of the VM that fails is told as its own", async () => {
  const fault = { event: "none", iotype: "write", errno: 5 };
  const graph = [
    { driver: "null-co", "node-name": "medium", size: 16 << 20 },
    { driver: "blkdebug", "node-name": "colo-base", image: "medium", "inject-error": [fault] },
    { driver: "quorum", "node-name": "colo-faulty", children: ["colo-base"], "vote-threshold": 1 },
  ];
  side = await startSide("primary", {
    guest: "bios_writer",
    extraArguments: [
      ...graph.flatMap((node) => ["-blockdev", JSON.stringify(node)]),
      ...["-device", "virtio-blk-pci,drive=colo-faulty,werror=stop"],
    ],
  });
  const told: Event[] = [];
  new QemuWatch(side.client, CONFIG, (event) => told.push(event));
  expect(await first(told)).toMatchObject({ type: "disk_error", disk: "own" });
  expect(told.filter((event) => event.type === "disk_error" && event.disk === "replica")).toEqual([]);
});

test("a replica's disk that fails is told as the replica's, and the VM runs on", async () => {
  const options = { guest: "bios_writer" } as const;
  side = await startSide("primary", options);
  const secondary = await startSide("secondary", options);
  try {
    await side.untilWrites(2);
    const ports = await freePorts();
    await prepare(secondary, ports);
    const names = disksOf(CONFIG)[0]!;
    const disk = { ...primaryDisk(ports), replicationNode: names.replicationNode, nbdNode: names.nbdNode };
    await startProtection(side.client, {
      disks: [disk],
      migrateHost: SECONDARY_HOST,
      migratePort: ports.migrate,
    });
    const told: Event[] = [];
    new QemuWatch(side.client, CONFIG, (event) => told.push(event));
    await secondary.kill();
    expect(await first(told)).toMatchObject({ type: "disk_error", disk: "replica" });
    await primaryFailover(side.client, { disks: [disk] });
    await side.untilWrites(3);
    expect(told.filter((event) => event.type === "disk_error" && event.disk === "own")).toEqual([]);
  } finally {
    await secondary.kill();
  }
});
