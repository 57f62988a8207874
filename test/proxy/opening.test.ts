/** A data plane that cannot be opened leaves nothing in use: the agent tries again for as long as it runs. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { rmSync } from "node:fs";
import { join } from "node:path";
import { addNamespace, ip, removeNamespaces, run } from "../bpf/network.ts";
import type { Resources } from "../resources.ts";
import { until } from "../until.ts";
import { Child } from "./child.ts";

const NAMESPACE = "colo-test-opening";
const PEER_ADDRESS = "198.19.7.2";
const OBJECT = join(import.meta.dir, "../../build/colo.bpf.o");
const PINS = "/sys/fs/bpf/colo-test/opening";

let agent: Child;

const say = async (command: string) => JSON.parse(await agent.say(command));
const open = (limits = {}): Promise<string> => say(`open ${JSON.stringify(limits)}`);
/** Sets something of the injection interface; with this mount namespace, which has the pins. */
const link = (...setting: string[]) =>
  run("nsenter", `--net=/run/netns/${NAMESPACE}`, "ip", "link", "set", "dev", "colo-i203", ...setting);

beforeAll(() => {
  removeNamespaces(NAMESPACE);
  addNamespace(NAMESPACE);
  run("ip", "-n", NAMESPACE, "tuntap", "add", "dev", "vm0", "mode", "tap", "vnet_hdr");
  ip(`-n ${NAMESPACE} link add rep mtu 1600 type veth peer name peer`);
  ip(`-n ${NAMESPACE} addr add 198.19.7.1/30 dev rep`);
  for (const name of ["vm0", "rep", "peer"]) ip(`-n ${NAMESPACE} link set ${name} up`);
});

afterAll(() => {
  removeNamespaces(NAMESPACE);
  rmSync(PINS, { recursive: true, force: true });
});

beforeEach(async () => {
  agent = new Child(NAMESPACE, "opening_process.ts", OBJECT, PINS, PEER_ADDRESS, "vm0");
  expect(await agent.hear()).toBe("started");
  // What the runtime opens once, for its first worker and its first command.
  expect(await open()).toBe("open");
});

afterEach(() => agent.kill());

/** Tries ten times and waits for the threads that have ended to be gone. */
async function staysTheSame(attempt: () => Promise<void>): Promise<void> {
  await attempt();
  const before: Resources = await say("usage");
  for (let i = 0; i < 10; i++) await attempt();
  const after = await until("the threads that ended are gone", async () => {
    const now: Resources = await say("usage");
    return now.threads <= before.threads && now;
  });
  expect(after.descriptors).toBeLessThanOrEqual(before.descriptors);
  expect(after.mappings).toBeLessThanOrEqual(before.mappings);
}

test("opened and closed", () =>
  staysTheSame(async () => {
    expect(await open()).toBe("open");
  }));

test("the programs cannot be attached", async () => {
  // The kernel refuses a generic XDP program beside one in the driver (net/core/dev.c, dev_xdp_attach).
  link("xdpgeneric", "off");
  link("xdpdrv", "pinned", join(PINS, "nic203/release_frames"));
  try {
    await staysTheSame(async () => {
      expect(await open()).toContain("Cannot attach an XDP program");
    });
  } finally {
    link("xdpdrv", "off");
  }
  expect(await open()).toBe("open");
});

test("the workers do not start", async () => {
  await staysTheSame(async () => {
    expect(await open({ flowsMax: 0 })).toContain("flowsMax is 0");
  });
  expect(await open()).toBe("open");
});
