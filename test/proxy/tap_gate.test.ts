/** The gate at a VM's taps, in a network of its own, with frames that go through the kernel. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { join } from "node:path";
import { inNamespace } from "../../src/ffi/netns.ts";
import { Tap } from "../../src/ffi/tap.ts";
import { addNamespace, ip, removeNamespaces, run } from "../bpf/network.ts";

const NAMESPACE = "colo-test-gate";
const TABLE = "colo-test";
const VNET_HEADER_BYTES = 10;

/** The taps of one VM, and one of somebody else on the same bridge. */
let taps: Tap[];
let network: Tap;
let keeper: Keeper;

/** The process that holds the gate. */
class Keeper {
  readonly #child;
  readonly #lines: AsyncIterator<string>;

  constructor(...names: string[]) {
    this.#child = Bun.spawn(
      [
        ...["nsenter", `--net=/run/netns/${NAMESPACE}`, process.execPath],
        ...[join(import.meta.dir, "gate_process.ts"), TABLE, ...names],
      ],
      { stdin: "pipe", stdout: "pipe", stderr: "inherit" },
    );
    this.#lines = lines(this.#child.stdout);
  }

  async ready(): Promise<void> {
    expect((await this.#lines.next()).value).toBe("open");
  }

  async say(command: string): Promise<string> {
    this.#child.stdin.write(`${command}\n`);
    this.#child.stdin.flush();
    return (await this.#lines.next()).value as string;
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of stream) {
    const parts = (rest + Buffer.from(chunk).toString()).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}

beforeAll(() => {
  removeNamespaces(NAMESPACE);
  addNamespace(NAMESPACE);
  ip(`-n ${NAMESPACE} link add br0 type bridge mcast_snooping 0`);
  ip(`-n ${NAMESPACE} link set br0 up`);
  const names = ["vm0", "vm1", "net0"];
  for (const name of names)
    run("ip", "-n", NAMESPACE, "tuntap", "add", "dev", name, "mode", "tap", "vnet_hdr");
  const opened = inNamespace(NAMESPACE, () => names.map((name) => new Tap(name, { offload: false })));
  for (const name of names) ip(`-n ${NAMESPACE} link set ${name} master br0 up`);
  [taps, network] = [opened.slice(0, 2), opened[2]!];
});

afterAll(() => {
  for (const tap of [...taps, network]) tap.close();
  removeNamespaces(NAMESPACE);
});

beforeEach(async () => {
  keeper = new Keeper("vm0", "vm1");
  await keeper.ready();
});

afterEach(() => keeper.kill());

let count = 0;

/** Sends a broadcast frame of its own kind (RFC 5342: an EtherType for experiments) and tells whether it arrives. */
async function passes(from: Tap, to: Tap): Promise<boolean> {
  const frame = new Uint8Array(VNET_HEADER_BYTES + 64);
  const view = new DataView(frame.buffer, VNET_HEADER_BYTES);
  frame.fill(0xff, VNET_HEADER_BYTES, VNET_HEADER_BYTES + 6);
  frame.set([2, 0, 0, 0, 7, 1], VNET_HEADER_BYTES + 6);
  view.setUint16(12, 0x88b5);
  view.setUint32(14, ++count);
  from.write(frame);
  // The bridge forwards within the sender's call; other frames may be in front of it.
  for (const deadline = performance.now() + 100; performance.now() < deadline; await Bun.sleep(1)) {
    for (let read = to.read(); read !== undefined; read = to.read()) {
      const seen = new DataView(read.buffer, read.byteOffset + VNET_HEADER_BYTES);
      if (seen.getUint16(12) === 0x88b5 && seen.getUint32(14) === count) return true;
    }
  }
  return false;
}

test("a frame leaves each tap while the lease holds, and none before or after", async () => {
  for (const tap of taps) expect(await passes(tap, network)).toBe(false);
  expect(await keeper.say("lease 60000")).toBe("done");
  for (const tap of taps) expect(await passes(tap, network)).toBe(true);
  expect(await keeper.say("drop")).toBe("done");
  for (const tap of taps) expect(await passes(tap, network)).toBe(false);
});

test("the lease runs out with nobody there", async () => {
  expect(await keeper.say("lease 1000")).toBe("done");
  expect(await passes(taps[0]!, network)).toBe(true);
  await keeper.kill();
  while (await passes(taps[0]!, network)) await Bun.sleep(10); // ends, or the test is out of time
  expect(run("ip", "netns", "exec", NAMESPACE, "nft", "list", "ruleset")).toContain("policy drop");
});

test("a lease that is renewed goes on beyond its time", async () => {
  const begun = performance.now();
  while (performance.now() - begun < 1_000) {
    expect(await keeper.say("lease 300")).toBe("done");
    expect(await passes(taps[1]!, network)).toBe(true);
  }
});

test("what the bridge floods gets in only if it may", async () => {
  expect(await keeper.say("lease 60000")).toBe("done");
  expect(await passes(network, taps[0]!)).toBe(false);
  expect(await keeper.say("input")).toBe("done");
  expect(await passes(network, taps[0]!)).toBe(true);
  expect(await keeper.say("no-input")).toBe("done");
  expect(await passes(network, taps[0]!)).toBe(false);
});

test("a new agent begins with everything closed", async () => {
  expect(await keeper.say("lease 60000")).toBe("done");
  expect(await keeper.say("input")).toBe("done");
  await keeper.kill();
  keeper = new Keeper("vm0", "vm1");
  await keeper.ready();
  expect(await passes(taps[0]!, network)).toBe(false);
  expect(await passes(network, taps[0]!)).toBe(false);
});

test("a table that somebody has taken away is noticed by a renewal, and made again without a lease", async () => {
  run("ip", "netns", "exec", NAMESPACE, "nft", "flush", "ruleset");
  expect(await keeper.say("lease 60000")).toContain("No such file or directory");
  expect(await keeper.say("check")).toContain("made anew");
  expect(await passes(taps[0]!, network)).toBe(false);
  expect(await keeper.say("lease 70000")).toBe("done");
  expect(await passes(taps[0]!, network)).toBe(true);
});
