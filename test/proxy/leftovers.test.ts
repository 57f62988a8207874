/**
 * VMs that leave the configuration: gates, pins and devices are removed, unless a process has the tap open.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from "bun:test";
import { existsSync, rmSync } from "node:fs";
import { join } from "node:path";
import { PIN_ROOT } from "../../src/host/pin_root.ts";
import { addNamespace, ip, removeNamespaces, run } from "../bpf/network.ts";
import { Child } from "./child.ts";

const NAMESPACE = "colo-test-leftovers";
const AGENT = "colo-test-leftovers";
const PINS = join(PIN_ROOT, AGENT);
const PEER_ADDRESS = "198.19.7.2";
const OBJECT = join(import.meta.dir, "../../build/colo.bpf.o");
/** By VM: tunnel id and tap. */
const VMS = { stays: [204, "vm0"], leaves: [205, "vm1"] } as const;

let agent: Child;

const say = async (command: string, ...words: string[]) =>
  JSON.parse(await agent.say(JSON.stringify({ command, words })));

/** A configuration with one VM; its interface has this tunnel id. */
const configuration = (vm: string, tunnelId: number) => `
[agent]
name = "${AGENT}"
control = "198.19.7.1:7400"
[peer]
name = "colo-test-other"
control = "${PEER_ADDRESS}:7400"
[[vm]]
name = "${vm}"
qmp = "/run/${vm}/qmp.sock"
initial_role = "primary"
[[vm.nic]]
tap = "${VMS.stays[1]}"
tunnel_id = ${tunnelId}
`;

/** Names of our programs at a tap, in and out. */
function gate(tap: string): string[] {
  return ["ingress", "egress"].flatMap((way) => {
    const filters = JSON.parse(run("tc", "-j", "-n", NAMESPACE, "filter", "show", "dev", tap, way)) as {
      options?: { prog?: { name: string } };
    }[];
    return filters.flatMap(({ options }) => options?.prog?.name ?? []);
  });
}

function devices(): string[] {
  const links = JSON.parse(run("ip", "-j", "-n", NAMESPACE, "link")) as { ifname: string }[];
  return links
    .map(({ ifname }) => ifname)
    .filter((name) => /^colo-[ti]/.test(name))
    .sort();
}

const GATE = ["from_vm", "to_vm"];
const ALL_DEVICES = ["colo-i204", "colo-i205", "colo-t204", "colo-t205"];

beforeAll(() => {
  removeNamespaces(NAMESPACE);
  addNamespace(NAMESPACE);
  ip(`-n ${NAMESPACE} link add rep mtu 1600 type veth peer name peer`);
  ip(`-n ${NAMESPACE} addr add 198.19.7.1/30 dev rep`);
  for (const [, tap] of Object.values(VMS))
    run("ip", "-n", NAMESPACE, "tuntap", "add", "dev", tap, "mode", "tap", "vnet_hdr");
  for (const name of ["rep", "peer", "vm0", "vm1"]) ip(`-n ${NAMESPACE} link set ${name} up`);
});

afterAll(() => {
  removeNamespaces(NAMESPACE);
  rmSync(PINS, { recursive: true, force: true });
});

beforeEach(async () => {
  agent = new Child(NAMESPACE, "leftovers_process.ts", OBJECT, AGENT, PEER_ADDRESS);
  expect(await agent.hear()).toBe("started");
  for (const [vm, [tunnelId, tap]] of Object.entries(VMS))
    expect(await say("open", vm, String(tunnelId), tap)).toBe("opened");
  expect(devices()).toEqual(ALL_DEVICES);
});

afterEach(() => agent.kill());

test("a tap that nobody has open: everything is removed, and nothing of a VM that stays", async () => {
  const config = configuration("stays", 204);
  expect(await say("doctor", config)).toMatchObject([
    { status: "warn", subject: "leaves", found: "the gate at vm1 is left of a VM that nobody runs" },
  ]);
  expect(await say("start", config)).toEqual([
    "the data plane of a VM that is not in the configuration is removed " +
      '{"vm":"leaves","tunnelId":205,"taps":["vm1"]}',
  ]);
  expect(gate("vm1")).toEqual([]);
  expect(gate("vm0")).toEqual(GATE);
  expect(devices()).toEqual(["colo-i204", "colo-t204"]);
  expect(existsSync(join(PINS, "leaves"))).toBe(false);
  expect(existsSync(join(PINS, "stays/nic204"))).toBe(true);
  expect(await say("doctor", config)).toMatchObject([{ status: "ok", found: "none" }]);
  expect(await say("start", config)).toEqual([]);
});

test("a tap that a process has open: the gate stays and is reported until the process ends", async () => {
  const config = configuration("stays", 204);
  const vm = new Child(NAMESPACE, "holder_process.ts", "vm1");
  try {
    expect(await vm.hear()).toBe("open");
    const [line] = await say("start", config);
    expect(line).toMatch(
      /^a VM that is not in the configuration runs: its gate stays shut .*"\S+ \(pid \d+\)"/,
    );
    expect(gate("vm1")).toEqual(GATE);
    expect(devices()).toEqual(ALL_DEVICES);
    expect(existsSync(join(PINS, "leaves/nic205"))).toBe(true);
    const [finding] = await say("doctor", config);
    expect(finding).toMatchObject({ status: "warn", subject: "leaves" });
    expect(finding.found).toMatch(/^the gate at vm1 stays shut, because \S+ \(pid \d+\) has it open$/);
    expect(finding.fix).toContain("put VM leaves back into the configuration");
  } finally {
    await vm.kill();
  }
  expect(await say("start", config)).toHaveLength(1);
  expect(gate("vm1")).toEqual([]);
  expect(devices()).toEqual(["colo-i204", "colo-t204"]);
});

test("a tunnel id that has gone to another VM: its devices stay", async () => {
  await say("start", configuration("renamed", 204));
  expect(gate("vm0")).toEqual([]);
  expect(existsSync(join(PINS, "stays"))).toBe(false);
  expect(devices()).toEqual(["colo-i204", "colo-t204"]);
});
