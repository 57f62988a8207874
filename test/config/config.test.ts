/** The configuration file: defaults, and a sentence for every mistake. */
import { describe, expect, test } from "bun:test";
import { streamTls } from "../../src/agent/stream_tls.ts";
import { ConfigError, loadConfig, parseConfig } from "../../src/config/load.ts";

const GOOD = `
[agent]
name = "host-a"
control = "198.18.1.1:7400"
[peer]
name = "host-b"
control = "198.18.1.2:7400"
[[vm]]
name = "vm1"
qmp = "/run/vm1/qmp.sock"
initial_role = "primary"
[[vm.nic]]
tap = "tap0"
`;

function mistake(text: string): string {
  try {
    parseConfig(text, "agent.toml");
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return (error as Error).message;
  }
  throw new Error("it was accepted");
}

describe("configuration", () => {
  test("the shortest one gets the documented defaults", () => {
    const config = parseConfig(GOOD, "agent.toml");
    expect(config.heartbeat).toEqual({
      interval_ms: 100,
      timeout_ms: 1000,
      lease_ms: 1100,
      margin_ms: 200,
      restart_ms: 10_000,
      clock_drift_ppm: 500,
    });
    expect(config.vm[0]).toMatchObject({
      proxy: "ebpf",
      nic: [{ tap: "tap0", tunnel_id: 1, tunnel_port: 4790, proxy_port: 7502 }],
      migrate_port: 7410,
      disk: [],
      nbd_port: 7420,
      checkpoint: { period_ms: 20_000, max_wait_ms: 250 },
    });
    expect(config.arbiter).toEqual({ type: "none" });
  });

  test("TLS of QEMU's streams names the peer", () => {
    expect(parseConfig(GOOD, "agent.toml").tls).toBeUndefined();
    expect(streamTls(parseConfig(GOOD, "agent.toml"))).toBeUndefined();
    const config = parseConfig(`${GOOD}[tls]\ndirectory = "/etc/a"\npriority = "NORMAL"\n`, "agent.toml");
    expect(streamTls(config)).toEqual({ directory: "/etc/a", priority: "NORMAL", peerName: "host-b" });
    expect(mistake(`${GOOD}[tls]\ndirectory = "a"\n`)).toContain("tls.directory: must be an absolute path");
  });

  test("disks are named by their place, and their nodes by their names", () => {
    const text =
      `${GOOD}[[vm.disk]]\n[[vm.disk]]\nname = "data"\n[[vm.disk]]\nquorum_node = "q"\nexport_node = ` +
      `"e"\n`;
    expect(parseConfig(text, "agent.toml").vm[0]!.disk).toEqual([
      { name: "disk0", quorum_node: "colo-disk0", export_node: "disk0" },
      { name: "data", quorum_node: "colo-data", export_node: "data" },
      { name: "disk2", quorum_node: "q", export_node: "e" },
    ]);
  });

  const mistakes: [string, string, RegExp][] = [
    [
      "a disk that is no table",
      GOOD.replace("[[vm.nic]]", "disk = false\n[[vm.nic]]"),
      /vm\.0\.disk: needs a \[\[vm\.disk\]\] table for each disk, and none for a VM without a disk/,
    ],
    [
      "two disks of one name",
      `${GOOD}[[vm.disk]]\n[[vm.disk]]\nname = "disk0"\n`,
      /two disks use the same disk disk0/,
    ],
    [
      "two disks with one node",
      `${GOOD}[[vm.disk]]\n[[vm.disk]]\nexport_node = "colo-nbd-disk0"\n`,
      /two disks use the same node colo-nbd-disk0/,
    ],
    [
      "a disk with a long name",
      `${GOOD}[[vm.disk]]\nname = "a-name-of-17-char"\n`,
      /vm\.0\.disk\.0\.name: must be 1-16/,
    ],
    ["an unknown key", GOOD.replace("[peer]", 'colour = "red"\n[peer]'), /agent: Unrecognized key: "colour"/],
    ["an unknown table", `${GOOD}\n[fencing]\n`, /Unrecognized key: "fencing"/],
    ["no TOML", "[agent", /not valid TOML/],
    ["no VM", GOOD.slice(0, GOOD.indexOf("[[vm]]")), /vm: /],
    [
      "a long tap name",
      GOOD.replace("tap0", "a-name-of-16-chars"),
      /vm\.0\.nic\.0\.tap: is longer than the 15/,
    ],
    [
      "a relative socket",
      GOOD.replace("/run/vm1/qmp.sock", "qmp.sock"),
      /vm\.0\.qmp: must be an absolute path/,
    ],
    [
      "a host name for control",
      GOOD.replace("198.18.1.1:7400", "host-a:7400"),
      /agent\.control: needs an IPv4 address/,
    ],
    [
      "an address out of range",
      GOOD.replace("198.18.1.2:7400", "198.18.1.300:7400"),
      /peer\.control: needs an IPv4 address/,
    ],
    ["no port", GOOD.replace("198.18.1.1:7400", "198.18.1.1"), /agent\.control: must be ADDRESS:PORT/],
    ["the same name twice", GOOD.replace("host-b", "host-a"), /both "host-a"/],
    [
      "a lease that no heartbeat can keep",
      `${GOOD}\n[heartbeat]\nlease_ms = 200\n`,
      /set lease_ms to at least 300/,
    ],
    ["a short timeout", `${GOOD}\n[heartbeat]\ntimeout_ms = 150\n`, /set timeout_ms to at least 200/],
    [
      "two VMs on one tap",
      `${GOOD}[[vm]]\nname = "vm2"\nqmp = "/q"\nmigrate_port = 1\nnbd_port = 2\ninitial_role = ` +
        `"primary"\n[[vm.nic]]\ntap = "tap0"\n`,
      /same tap \(tap0\)/,
    ],
    ["one tap twice in a VM", `${GOOD}[[vm.nic]]\ntap = "tap0"\ntunnel_id = 2\n`, /same tap \(tap0\)/],
    ["two interfaces on one tunnel id", `${GOOD}[[vm.nic]]\ntap = "tap1"\n`, /same tunnel_id \(1\)/],
    [
      "two interfaces on one port",
      `${GOOD}[[vm.nic]]\ntap = "tap1"\ntunnel_id = 2\ntunnel_port = 4790\n`,
      /same tunnel_port \(4790\)/,
    ],
    ["no interface", GOOD.replace(/\[\[vm\.nic\]\][\s\S]*$/, ""), /vm\.0\.nic: /],
  ];
  mistakes.push([
    "two VMs with disks and one port for them",
    `${GOOD}[[vm.disk]]\n[[vm]]\nname = "vm2"\nqmp = "/q"\nmigrate_port = 7411\ninitial_role = ` +
      `"primary"\n[[vm.nic]]\ntap = "tap1"\ntunnel_id = 2\n[[vm.disk]]\n`,
    /two VMs with disks have the same nbd_port/,
  ]);
  const witness = '[arbiter]\ntype = "witness"\n';
  const etcd = '[arbiter]\ntype = "etcd"\n';
  const files = 'ca = "/x/ca.pem"\ncertificate = "/x/a.pem"\nkey = "/x/a.key"\n';
  mistakes.push(
    [
      "an arbiter of no kind",
      `${GOOD}[arbiter]\ntype = "raft"\n`,
      /needs type = "witness", "etcd" or "none"/,
    ],
    ["an arbiter without an address", `${GOOD}${witness}`, /arbiter\.url/],
    ["an open witness", `${GOOD}${witness}url = "http://192.0.2.3:7300"\n`, /not encrypted.*insecure = true/],
    [
      "an open witness whose name only looks like loopback",
      `${GOOD}${witness}url = "http://127.example.org:7300"\n`,
      /not encrypted.*insecure = true/,
    ],
    [
      "a client path to a host name, whose datagrams would never be heard",
      `${GOOD}[client_path]\nlocal = "192.0.2.1:7402"\npeer = "host-b:7402"\nkey_file = "/k"\n`,
      /client_path\.peer: needs an IPv4 address/,
    ],
    [
      "a witness without keys",
      `${GOOD}${witness}url = "https://192.0.2.3:7300"\n`,
      /needs ca, certificate and key/,
    ],
    ["keys that are not used", `${GOOD}${witness}url = "http://127.0.0.1:7300"\n${files}`, /write https/],
    [
      "a certificate without its key",
      `${GOOD}${witness}url = "https://192.0.2.3:7300"\nca = "/x/ca.pem"\ncertificate = "/x/a.pem"\n`,
      /certificate and key go together/,
    ],
    ["an etcd without endpoints", `${GOOD}${etcd}endpoints = []\n`, /arbiter\.endpoints: needs at least one/],
    [
      "a user without a password",
      `${GOOD}${etcd}endpoints = ["http://127.0.0.1:2379"]\nuser = "a"\n`,
      /user and password_file go together/,
    ],
    [
      "a slow arbiter",
      `${GOOD}${witness}url = "http://127.0.0.1:7300"\ntimeout_ms = 5000\n`,
      /set arbiter\.timeout_ms to at most 1300/,
    ],
    [
      "a margin that clocks eat up",
      `${GOOD}[heartbeat]\nclock_drift_ppm = 90000\n`,
      /set margin_ms to at least 268/,
    ],
    [
      "a fence without a path",
      `${GOOD}[fence]\ncommand = ["off"]\n`,
      /fence\.command: must begin with the absolute/,
    ],
    [
      "a nervous watchdog",
      `${GOOD}[watchdog]\ntimeout_s = 1\n[heartbeat]\nlease_ms = 1500\n`,
      /timeout_s to at least 2/,
    ],
  );
  test.each([
    ["a witness with certificates", `${witness}url = "https://192.0.2.3:7300"\n${files}`],
    ["a witness on loopback", `${witness}url = "http://127.0.0.1:7300"\n`],
    ["an open witness that is meant", `${witness}url = "http://192.0.2.3:7300"\ninsecure = true\n`],
    ["etcd", `${etcd}endpoints = ["https://192.0.2.3:2379", "https://192.0.2.4:2379"]\nca = "/x/ca.pem"\n`],
    ["fence and watchdog", '[fence]\ncommand = ["/usr/sbin/fence_ipmilan", "--action=off"]\n[watchdog]\n'],
  ])("%s: good", (_, text) => {
    expect(parseConfig(`${GOOD}${text}`, "agent.toml").heartbeat.lease_ms).toBe(1100);
  });
  mistakes.push([
    "a rule that is none",
    GOOD.replace("[[vm.nic]]", 'passthrough = ["udp port ninety"]\n[[vm.nic]]'),
    /vm vm1: .*ninety/,
  ]);
  for (const [what, text, message] of mistakes) {
    test(`${what} is told`, () => expect(mistake(text)).toMatch(message));
  }

  test("each further interface has a tunnel of its own", () => {
    const config = parseConfig(`${GOOD}[[vm.nic]]\ntap = "tap1"\ntunnel_id = 2\n`, "agent.toml");
    expect(config.vm[0]!.nic).toEqual([
      { tap: "tap0", tunnel_id: 1, tunnel_port: 4790, proxy_port: 7502 },
      { tap: "tap1", tunnel_id: 2, tunnel_port: 4791, proxy_port: 7504 },
    ]);
  });

  test("all broken rules are named, a line each", () => {
    const text = GOOD.replace("host-b", "host-a").replace("tap0", 'tap0"\n[[vm.nic]]\ntap = "tap0');
    const lines = mistake(text).split("\n");
    expect(lines).toHaveLength(5);
    expect(lines[0]).toMatch(/^agent\.toml: agent\.name and peer\.name are both "host-a"/);
    for (const key of ["tap", "tunnel_id", "tunnel_port", "proxy_port"])
      expect(lines.some((line) => line.includes(`the same ${key} (`))).toBe(true);
  });

  test.each(["[::1]:7401", "localhost:7401"])("the API on %s", (api) => {
    const config = parseConfig(GOOD.replace("[peer]", `api = "${api}"\n[peer]`), "agent.toml");
    expect(config.agent.api).toEqual({ host: api.startsWith("[") ? "::1" : "localhost", port: 7401 });
  });

  test("a file that is not there is told", async () => {
    await expect(loadConfig("/nonexistent/agent.toml")).rejects.toThrow(/no such file/);
  });
});
