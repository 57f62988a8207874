/** From the configuration to the arbiter: what is refused and what is warned of at start. */
import { afterEach, beforeEach, expect, test } from "bun:test";
import { writeFileSync } from "node:fs";
import { openArbiter } from "../../src/arbiter/index.ts";
import { agentPair } from "../../src/config/config.ts";
import { parseConfig } from "../../src/config/load.ts";
import type { Logger } from "../../src/host/log.ts";
import { until } from "../until.ts";
import { etcd, etcdMember, freePort, siteCertificates, tlsPaths, Workplace, witness } from "./servers.ts";

let workplace: Workplace;
let warnings: string[];
const log: Logger = {
  error: () => undefined,
  warn: (message) => void warnings.push(message),
  info: () => undefined,
  debug: () => undefined,
  child: () => log,
};

beforeEach(async () => {
  workplace = new Workplace();
  warnings = [];
  await siteCertificates(workplace, ["host-a", "host-b"]);
});
afterEach(async () => await workplace[Symbol.asyncDispose]());

const config = (arbiter: string) =>
  parseConfig(
    `[agent]
name = "host-a"
control = "198.18.1.1:7400"
[peer]
name = "host-b"
control = "198.18.1.2:7400"
${arbiter}
[[vm]]
name = "vm1"
qmp = "/q"
initial_role = "primary"
[[vm.nic]]
tap = "tap0"
`,
    "agent.toml",
  );

const opened = (arbiter: string) => {
  const parsed = config(arbiter);
  return openArbiter(parsed.arbiter, agentPair(parsed), log);
};

function files(name: string): string {
  const { ca, certificate, key } = tlsPaths(workplace, name);
  return `ca = "${ca}"\ncertificate = "${certificate}"\nkey = "${key}"\n`;
}

const record = { term: 1, generation: 1, holder: "host-a", replicaValid: false };

test("none, said or not said, is no arbiter, with a loud warning", async () => {
  for (const text of ["", '[arbiter]\ntype = "none"\n']) {
    warnings = [];
    const arbiter = await opened(text);
    expect(arbiter.configured).toBe(false);
    expect(await arbiter.compareAndSwap("vm1", 0, record)).toEqual({ swapped: false, current: undefined });
    expect(await arbiter.read("vm1")).toBeUndefined();
    expect(warnings.join()).toContain("NO AUTOMATIC PROMOTION");
  }
});

test("a witness: another agent's certificate is refused, one that expires soon is warned of", async () => {
  const port = await freePort();
  await witness(workplace, port, { tls: true }).start();
  const text = `[arbiter]\ntype = "witness"\nurl = "https://127.0.0.1:${port}"\n`;
  const arbiter = await opened(`${text}${files("host-a")}`);
  expect((await arbiter.compareAndSwap("vm1", 0, record)).swapped).toBe(true);
  expect(await arbiter.read("vm1")).toEqual({ ...record, revision: 1 });
  expect(warnings.join()).toContain("expires soon"); // the test's certificates are made for two days
  await expect(opened(`${text}${files("host-b")}`)).rejects.toThrow(
    /certificate of "host-b", but this agent is "host-a"/,
  );
});

test("plain HTTP is warned of at every start", async () => {
  const port = await freePort();
  await witness(workplace, port, { tls: false }).start();
  const text = `[arbiter]\ntype = "witness"\nurl = "http://127.0.0.1:${port}"\n`;
  const arbiter = await opened(text);
  expect(await arbiter.read("vm1")).toBeUndefined();
  expect(warnings.join()).toContain("plain HTTP");
});

test("etcd with any certificate that etcd takes, and a password from a file", async () => {
  const member = await etcdMember("one");
  await etcd(workplace, member, [member], { tls: true }).start();
  const text =
    `[arbiter]\ntype = "etcd"\nendpoints = ["https://127.0.0.1:${member.clientPort}"]\ntimeout_ms = ` +
    "1200\n";
  const arbiter = await opened(`${text}${files("server")}`);
  const ready = () =>
    arbiter.read("vm1").then(
      () => true,
      () => false,
    );
  await until("etcd, which has just started, answers", ready);
  expect((await arbiter.compareAndSwap("vm1", 0, record)).swapped).toBe(true);
  const password = workplace.path("password");
  const user = `user = "colo"\npassword_file = "${password}"\n`;
  await expect(opened(`${text}${files("server")}${user}`)).rejects.toThrow(
    /cannot read arbiter\.password_file/,
  );
  writeFileSync(password, "secret\n");
  const withUser = await opened(`${text}${files("server")}${user}`);
  await expect(withUser!.read("vm1")).rejects.toThrow(/authentication is not enabled/);
});
