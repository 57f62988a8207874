/** The configuration file: defaults, and a sentence for every mistake. */
import { describe, expect, test } from "bun:test";
import { ConfigError, loadConfig, parseConfig } from "../../src/agent/config.ts";

const GOOD = `
[agent]
name = "host-a"
control = "198.18.1.1:7400"
[peer]
name = "host-b"
control = "198.18.1.2:7400"
[[vm]]
name = "vm1"
tap = "tap0"
qmp = "/run/vm1/qmp.sock"
initial_role = "primary"
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
    expect(config.heartbeat).toEqual({ interval_ms: 100, timeout_ms: 1000, lease_ms: 1000, margin_ms: 200 });
    expect(config.vm[0]).toMatchObject({
      tunnel_id: 1,
      tunnel_port: 4790,
      migrate_port: 7410,
      disk: { quorum_node: "colo-disk0", export_node: "parent0", nbd_port: 7420 },
      checkpoint: { period_ms: 20_000, max_wait_ms: 250 },
    });
    expect(config.arbiter).toEqual({ type: "none" });
  });

  const mistakes: [string, string, RegExp][] = [
    ["an unknown key", GOOD.replace("[peer]", 'colour = "red"\n[peer]'), /agent: Unrecognized key: "colour"/],
    ["an unknown table", `${GOOD}\n[fence]\n`, /Unrecognized key: "fence"/],
    ["no TOML", "[agent", /not valid TOML/],
    ["no VM", GOOD.slice(0, GOOD.indexOf("[[vm]]")), /vm: /],
    ["a long tap name", GOOD.replace("tap0", "a-name-of-16-chars"), /vm\.0\.tap: is longer than the 15/],
    [
      "a relative socket",
      GOOD.replace("/run/vm1/qmp.sock", "qmp.sock"),
      /vm\.0\.qmp: must be an absolute path/,
    ],
    ["a host name for control", GOOD.replace("198.18.1.1:7400", "host-a:7400"), /need IPv4 addresses/],
    ["an address out of range", GOOD.replace("198.18.1.2:7400", "198.18.1.300:7400"), /need IPv4 addresses/],
    ["no port", GOOD.replace("198.18.1.1:7400", "198.18.1.1"), /agent\.control: must be ADDRESS:PORT/],
    ["the same name twice", GOOD.replace("host-b", "host-a"), /both "host-a"/],
    [
      "a lease that no heartbeat can keep",
      `${GOOD}\n[heartbeat]\nlease_ms = 200\n`,
      /lease_ms must be at least three times/,
    ],
    ["a short timeout", `${GOOD}\n[heartbeat]\ntimeout_ms = 150\n`, /timeout_ms must be at least twice/],
    [
      "two VMs on one tap",
      `${GOOD}[[vm]]\nname = "vm2"\ntap = "tap0"\nqmp = "/q"\ninitial_role = "primary"\n`,
      /same tap/,
    ],
  ];
  mistakes.push(["a rule that is none", `${GOOD}passthrough = ["udp port ninety"]\n`, /vm vm1: .*ninety/]);
  for (const [what, text, message] of mistakes) {
    test(`${what} is told`, () => expect(mistake(text)).toMatch(message));
  }

  test("a file that is not there is told", async () => {
    await expect(loadConfig("/nonexistent/agent.toml")).rejects.toThrow(/no such file/);
  });
});
