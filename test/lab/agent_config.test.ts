/** The configuration that the lab writes for its agents is one that the agent accepts. */
import { expect, test } from "bun:test";
import { parseConfig } from "../../src/config/load.ts";
import { agentConfig } from "../../src/lab/agent_config.ts";
import type { LabOptions } from "../../src/lab/lab_options.ts";
import type { HostState, LabState } from "../../src/lab/lab_state.ts";

/** A lab whose agents attach to QEMUs: its configuration names no installed program. */
function stateOf(options: Partial<LabOptions> = {}): LabState {
  const host = (letter: "a" | "b"): HostState => {
    const directory = `/run/colo-agent-lab/test/${letter}`;
    const [qmp, serial] = [`${directory}/qmp-spare.sock`, `${directory}/serial.log`];
    const [disk, secondDisk] = [`${directory}/disk.raw`, `${directory}/disk1.raw`];
    return {
      letter,
      netns: letter,
      directory,
      qmp,
      serial,
      disk,
      secondDisk,
      socket: `${directory}/api.sock`,
    };
  };
  return {
    name: "test",
    namespaces: { client: "client", switch: "switch", a: "a", b: "b" },
    options: { name: "test", memoryMib: 256, proxy: "agent", attached: true, ...options },
    ownGuest: true,
    hosts: { a: host("a"), b: host("b") },
  };
}

test("each host's names itself and its peer, and the same witness", () => {
  const state = stateOf();
  const [a, b] = (["a", "b"] as const).map((letter) => parseConfig(agentConfig(state, letter), letter));
  expect([a?.agent.name, a?.peer.name]).toEqual(["test-a", "test-b"]);
  expect([b?.agent.name, b?.peer.name]).toEqual(["test-b", "test-a"]);
  expect(a?.arbiter).toMatchObject({ type: "witness", url: "https://198.18.0.1:7300" });
  expect(b?.arbiter).toMatchObject({ type: "witness", url: "https://198.18.0.1:7300" });
  expect([a?.vm[0]?.initial_role, b?.vm[0]?.initial_role]).toEqual(["primary", "secondary"]);
});

test("lines of the options go into the agent's and the VM's tables, with the host's letter", () => {
  const state = stateOf({
    agentConfig: "\n[heartbeat]\ntimeout_ms = 15000\nlease_ms = 15000",
    vmConfig: "checkpoint = { period_ms = 250 } # on host %h",
  });
  const text = agentConfig(state, "b");
  expect(text).toContain("period_ms = 250 } # on host b\n");
  const config = parseConfig(text, "b");
  expect(config.heartbeat.timeout_ms).toBe(15_000);
  expect(config.vm[0]?.checkpoint.period_ms).toBe(250);
});
