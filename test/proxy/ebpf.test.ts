/** A VM with two network interfaces on the agent's data plane: what is decided holds for both of them. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { addNamespace, ip, removeNamespaces } from "../bpf/network.ts";
import { Child } from "./child.ts";
import { arrive, isStopped, passes, send, stayAway, Taps, VM_TAPS } from "./taps.ts";

const NAMESPACE = "colo-test-nics";
const PEER_NAMESPACE = "colo-test-nicp";
const PEER_ADDRESS = "198.19.7.2";
const OBJECT = join(import.meta.dir, "../../build/colo.bpf.o");
const PINS = "/sys/fs/bpf/colo-test/nics";

let taps: Taps;
let agent: Child;

async function startAgent(how: "close" | "primary" | "secondary" = "close"): Promise<void> {
  agent = new Child(NAMESPACE, "ebpf_process.ts", OBJECT, PINS, PEER_ADDRESS, how, ...VM_TAPS);
  expect(await agent.hear()).toBe("open");
}

const say = async (command: string) => JSON.parse(await agent.say(command));

beforeAll(() => {
  removeNamespaces(PEER_NAMESPACE);
  taps = Taps.make(NAMESPACE);
  addNamespace(PEER_NAMESPACE);
  ip(`-n ${NAMESPACE} link add rep mtu 1600 type veth peer name rep mtu 1600 netns ${PEER_NAMESPACE}`);
  ip(`-n ${NAMESPACE} addr add 198.19.7.1/30 dev rep`);
  ip(`-n ${PEER_NAMESPACE} addr add ${PEER_ADDRESS}/30 dev rep`);
  for (const namespace of [NAMESPACE, PEER_NAMESPACE]) ip(`-n ${namespace} link set rep up`);
});

afterAll(() => {
  taps.remove();
  removeNamespaces(PEER_NAMESPACE);
  rmSync(PINS, { recursive: true, force: true });
});

beforeEach(() => startAgent());

afterEach(() => agent.kill());

test("both are closed at first, open with a lease for a VM alone, and closed without it", async () => {
  for (const tap of taps.vm) expect(await isStopped(tap, taps.network)).toBe(true);
  await say("lease 60000");
  expect(await say("alone")).toBe(0);
  for (const tap of taps.vm) {
    expect(await passes(tap, taps.network)).toBe(true);
    expect(await passes(taps.network, tap)).toBe(true);
  }
  await say("drop");
  for (const tap of taps.vm) expect(await isStopped(tap, taps.network)).toBe(true);
});

test("a primary's frames are held on both, and all of them are released", async () => {
  await say("lease 60000");
  const { epoch, nics } = await say("hold 7");
  expect([epoch, nics.length, await say("epoch")]).toEqual([7, 2, 7]);
  const before = await say("held");
  const sent = taps.vm.map(send);
  for (const number of sent) expect(await stayAway([number], taps.network)).toBe(true);
  expect(await say("held")).toEqual(
    VM_TAPS.map((tap, index) => [tap, before[index][1] + 1, before[index][2] + 1]),
  );
  expect(await say("alone")).toBe(2);
  expect(await arrive(sent, taps.network)).toBe(true);
  expect(await say("held")).toEqual(VM_TAPS.map((tap, index) => [tap, before[index][1] + 1, 0]));
});

test("diverted input of both is put back", async () => {
  await say("lease 60000");
  await say("hold 8");
  const sent = send(taps.network);
  for (const tap of taps.vm) expect(await stayAway([sent], tap)).toBe(true);
  expect(await say("replay")).toBe(2);
  for (const tap of taps.vm) expect(await arrive([sent], tap)).toBe(true);
});

test("a replica is shut off on both; a primary with another number of interfaces is refused", async () => {
  await say("lease 60000");
  const one = { mirroredFrames: 0, connections: "" };
  expect(await say(`follow ${JSON.stringify({ epoch: 3, nics: [one] })}`)).toContain(
    "the primary's VM has 1 network interfaces and this host's 2",
  );
  expect(await say(`follow ${JSON.stringify({ epoch: 3, nics: [one, one] })}`)).toBe("done");
  for (const tap of taps.vm) {
    expect(await isStopped(tap, taps.network)).toBe(true);
    expect(await isStopped(taps.network, tap)).toBe(true);
  }
});

test("an agent that comes back finds the epoch, and both closed until it says otherwise", async () => {
  await say("lease 60000");
  await say("hold 9");
  await agent.kill();
  await startAgent();
  expect(await say("epoch")).toBe(9);
  for (const tap of taps.vm) expect(await isStopped(tap, taps.network)).toBe(true);
  await say("lease 60000");
  await say("alone");
  for (const tap of taps.vm) expect(await passes(tap, taps.network)).toBe(true);
});

test("one that is asked to keep what is held keeps it until a checkpoint, on both", async () => {
  await say("lease 60000");
  await say("hold 9");
  await say("replay");
  await agent.kill();
  const sent = taps.vm.map(send); // nobody is there to read them
  await startAgent("primary");
  expect(await say("kept")).toBe(true);
  await say("resume 12");
  sent.push(...taps.vm.map(send));
  expect(await stayAway(sent.slice(0, 1), taps.network)).toBe(true);
  expect(await say("release 13")).toBe(4);
  expect(await arrive(sent, taps.network)).toBe(true);
  expect(await say("epoch")).toBe(12);
});

test.each([
  ["nothing was held", ["lease 60000", "alone"]],
  ["the VM was being handed over", ["lease 60000", "hold 9", "drop"]],
])("and closes both if %s", async (_, before) => {
  for (const command of before) await say(command);
  await agent.kill();
  await startAgent("primary");
  expect(await say("kept")).toBe(false);
  await say("lease 60000");
  for (const tap of taps.vm) expect(await isStopped(tap, taps.network)).toBe(true);
  for (const tap of taps.vm) expect(await isStopped(taps.network, tap)).toBe(true);
});
