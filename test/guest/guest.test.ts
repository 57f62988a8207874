/**
 * Boots the lab's guest once, in a network namespace of its own, and has every service do its work over the
 * network.
 */
import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdirSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { guestKernel, qemuArgv, qemuEnvironment } from "../../src/host/installed.ts";
import { guestCommandLine, guestInitrd, guestReadyPattern } from "../../src/lab/assets.ts";
import { patternBytes as pattern } from "../../src/lab/pattern.ts";
import { until } from "../until.ts";
import { guestIp4, guestIp6 } from "./scenarios.ts";

const namespace = "colo-test-guest";
const directory = join(tmpdir(), namespace);
const disk = join(directory, "disk.raw");
const qmpSocket = join(directory, "qmp");
const console_ = join(directory, "console");
let guest: Bun.Subprocess | undefined;

function run(...command: string[]): void {
  const { exitCode, stderr } = Bun.spawnSync(command);
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
}

function consoleText(): string {
  return readFileSync(console_, "latin1");
}

/**
 * Ends what runs in the namespace and removes it and the files, also those of an earlier run that was killed.
 */
function removeLeftovers(): void {
  const pids = Bun.spawnSync(["ip", "netns", "pids", namespace]).stdout.toString().trim();
  for (const pid of pids ? pids.split("\n") : []) process.kill(Number(pid), "SIGKILL");
  Bun.spawnSync(["ip", "netns", "delete", namespace]);
  rmSync(directory, { recursive: true, force: true });
}

async function guestUntil(what: string, condition: () => boolean): Promise<void> {
  const isMet = () => {
    if (guest?.exitCode != null) throw new Error(`QEMU ended while waiting: ${what}:\n${consoleText()}`);
    return condition();
  };
  await until(what, isMet, { limitMs: 110_000, pollMs: 20, seen: () => consoleText().slice(-1_000) });
}

beforeAll(async () => {
  removeLeftovers();
  mkdirSync(directory);
  run("ip", "netns", "add", namespace);
  const inside = (...words: string[]) => run("ip", "-netns", namespace, ...words);
  inside("tuntap", "add", "tap0", "mode", "tap", "vnet_hdr");
  inside("address", "add", "198.18.0.1/24", "dev", "tap0");
  inside("address", "add", "2001:2::1/64", "dev", "tap0", "nodad");
  inside("link", "set", "tap0", "up");

  writeFileSync(disk, "");
  truncateSync(disk, 16 * 1024 * 1024);
  writeFileSync(console_, "");
  guest = Bun.spawn(
    [
      ...["ip", "netns", "exec", namespace, ...qemuArgv()],
      ...["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"],
      ...["-accel", "tcg", "-cpu", "max", "-m", "256", "-kernel", guestKernel(), "-initrd", guestInitrd()],
      ...["-append", guestCommandLine({ ip4: `${guestIp4}/24`, ip6: `${guestIp6}/64` })],
      ...["-serial", `file:${console_}`, "-qmp", `unix:${qmpSocket},server=on,wait=off`],
      ...["-netdev", "tap,id=net0,ifname=tap0,script=no,downscript=no,vhost=off"],
      ...["-device", "virtio-net-pci,netdev=net0,romfile="],
      ...["-drive", `file=${disk},format=raw,if=virtio`],
    ],
    { env: qemuEnvironment(), stdin: "ignore", stdout: "ignore", stderr: "inherit" },
  );
  await guestUntil("the guest says READY", () => guestReadyPattern.test(consoleText()));
}, 60_000);

afterAll(async () => {
  guest?.kill("SIGKILL");
  await guest?.exited;
  removeLeftovers();
});

async function scenario(name: string): Promise<void> {
  const client = Bun.spawn(
    ["ip", "netns", "exec", namespace, process.execPath, join(import.meta.dir, "scenarios.ts"), name],
    { stdout: "pipe", stderr: "pipe" },
  );
  const said = await new Response(client.stderr).text();
  if ((await client.exited) !== 0) throw new Error(`${said}\nthe guest's console:\n${consoleText()}`);
}

/** One command on a QMP connection of its own. */
async function qmp(command: string, arguments_: object = {}): Promise<Record<string, unknown>> {
  const { promise, resolve, reject } = Promise.withResolvers<Record<string, unknown>>();
  let text = "";
  const socket = await Bun.connect({
    unix: qmpSocket,
    socket: {
      data(_, chunk) {
        text += chunk.toString("latin1");
        for (const line of text.split("\r\n").slice(0, -1)) {
          const message = JSON.parse(line);
          if (message.error) reject(new Error(message.error.desc));
          if (message.id === "answer") resolve(message.return);
        }
      },
    },
  });
  const request = JSON.stringify({ execute: command, arguments: arguments_, id: "answer" });
  socket.write(`{"execute":"qmp_capabilities"}${request}`);
  try {
    return await promise;
  } finally {
    socket.end();
  }
}

/** MiB/s of guest memory that changes, sampled by QEMU over one second. */
async function dirtyRate(): Promise<number> {
  await qmp("calc-dirty-rate", { "calc-time": 1, "sample-pages": 4096 });
  const measured = async () => {
    const answer = await qmp("query-dirty-rate");
    return answer.status === "measured" && { rate: answer["dirty-rate"] as number };
  };
  return (await until("the dirty rate is measured", measured, { pollMs: 100 })).rate;
}

/** Bytes of anonymous memory, the guest's RAM among them, that QEMU has touched. */
function touchedBytes(): number {
  const status = readFileSync(`/proc/${guest!.pid}/status`, "latin1");
  return 1024 * Number(/^RssAnon:\s+(\d+) kB/m.exec(status)![1]);
}

for (const name of [
  "duplex",
  "many connections",
  "source",
  "sink",
  "random",
  "echo",
  "http",
  "not a request",
]) {
  test(name, () => scenario(name), 30_000);
}

test("a wrong byte is reported on the console", async () => {
  await scenario("wrong byte");
  expect(consoleText()).toContain(`WRONG BYTE service=duplex position=40001 peer=::ffff:198.18.0.1`);
  expect(consoleText()).toContain(`WRONG BYTE service=sink position=40001 peer=2001:2::1`);
}, 30_000);

test("disk: what is acknowledged is in the image", async () => {
  await scenario("disk");
  const image = readFileSync(disk);
  for (const block of [0, 3, image.length / 4096 - 1]) {
    expect(image.subarray(block * 4096, (block + 1) * 4096).equals(pattern(block * 4096, 4096))).toBe(true);
  }
  expect(image.subarray(4096, 8192).equals(Buffer.alloc(4096))).toBe(true);
}, 30_000);

test("memory: dirtied once, and at a rate", async () => {
  // Part of the 96 MiB is memory that the guest has used and freed before, so it does not count again.
  const before = touchedBytes();
  await scenario("dirty 96 MiB");
  expect(touchedBytes() - before).toBeGreaterThan(40 * 1024 * 1024);
  await scenario("dirty rate 24 MiB/s");
  const busy = await dirtyRate();
  await scenario("dirty rate 0");
  const idle = await dirtyRate();
  expect(busy).toBeGreaterThan(idle + 12);
}, 30_000);

test("no service died, and the guest switches itself off", async () => {
  expect(consoleText()).not.toContain("started again");
  await scenario("power off");
  expect(await guest!.exited).toBe(0);
}, 30_000);
