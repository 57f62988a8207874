/** What `colo-agent status` prints, against a golden file (COLO_UPDATE_GOLDEN=1 writes it). */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { join } from "node:path";
import type { VmStatus } from "../../src/api/status.ts";
import { goldenText } from "../golden.ts";

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");

const PROTECTED: VmStatus = {
  name: "vm1",
  phase: "protected",
  role: "primary",
  protected: true,
  reason: undefined,
  words: {
    now: "host-a is the primary, protected by host-b for 3 min",
    ifThisHostDies:
      "host-b would take over 1300 ms after the last heartbeat, with disk, memory and connections",
    ifPeerDies: "this host would continue alone at once",
  },
  epoch: 42,
  term: 3,
  generation: 2,
  proxy: "ebpf",
  taps: ["tap0"],
  qmp: "/run/vm1.qmp",
  off: false,
  heartbeatAgeMs: 11,
  resync: undefined,
  tuning: { periodMs: 10_000, resyncBytesPerSecond: 0 },
  framesHeld: 17,
  counters: {},
};

const COPYING: VmStatus = {
  ...PROTECTED,
  name: "database",
  phase: "protecting",
  protected: false,
  epoch: 1,
  framesHeld: 0,
  words: {
    now: "host-a runs the VM and is making a replica on host-b, for 12 s",
    ifThisHostDies: "the VM would be lost, because there is no replica",
    ifPeerDies: "nothing would change",
  },
  resync: {
    copiedBytes: 300 << 20,
    totalBytes: 1024 << 20,
    bytesPerSecond: 100 << 20,
    remainingSeconds: 7.24,
    disks: [
      { disk: "disk0", copiedBytes: 300 << 20, totalBytes: 512 << 20, follows: false },
      { disk: "disk1", copiedBytes: 0, totalBytes: 512 << 20, follows: false },
    ],
  },
};

let server: ReturnType<typeof Bun.serve>;

beforeAll(() => {
  const peer = { name: "host-b", connected: false };
  server = Bun.serve({
    hostname: "127.0.0.1",
    port: 0,
    fetch: () =>
      Response.json({ agent: "host-a", version: "1.2.3", pid: 4711, peer, vms: [PROTECTED, COPYING] }),
  });
});

afterAll(() => server.stop(true));

test("two VMs, one of them not protected, and a peer that is not there", async () => {
  const child = Bun.spawn([process.execPath, MAIN, "status", "--api", `http://127.0.0.1:${server.port}`], {
    env: { ...process.env, NO_COLOR: "1" },
    stderr: "pipe",
  });
  const [text, complaint, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  const whole = `${text}${complaint}exit status ${status}\n`;
  expect(whole).toBe(await goldenText("status.txt", whole));
});
