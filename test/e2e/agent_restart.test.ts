/** An agent that is restarted as announced: its VM's protection goes on, for the price of one checkpoint. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, type HostLetter } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { isAlive } from "../../src/qemu/process.ts";
import { until } from "../until.ts";
import { labUnderTest, operate } from "./lab_under_test.ts";

/** Time for an agent to begin again on a busy machine, behind a lease that has run out. */
const RESTART_MS = 10_000;
const LEASE_MS = 1_000;

const logOf = (lab: Lab, host: HostLetter) => readFileSync(join(lab.directory, host, "agent.log"), "utf8");
const phasesOf = (log: string) => [...log.matchAll(/"from":"(\w+)","to":"(\w+)"/g)].map(([, , to]) => to);

/** Has the agent end as announced; resolves when it has. */
async function end(lab: Lab, host: HostLetter): Promise<void> {
  const agent = lab.host(host).agent!;
  const { out, exitCode } = await operate(lab, host, "restart");
  expect({ out, exitCode }).toEqual({
    out: expect.stringContaining("protection continues if it starts again"),
    exitCode: 0,
  });
  await until("the agent has ended", () => !isAlive(agent));
}

const protectedOnA = (lab: Lab) =>
  lab.waitFor("protected", ({ a, b }) => a?.protected === true && b?.phase === "standby", 60_000);

/** A connection and all its bytes live through `loss`, after which `survivor` has the VM. */
async function takesOver(lab: Lab, survivor: HostLetter, loss: () => Promise<void>): Promise<void> {
  using connection = new LabTraffic(lab, "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
  await connection.until("traffic", (report) => report.received > 100_000, 30_000);
  await loss();
  await lab.waitFor(`${survivor} has the VM`, (status) => status[survivor]?.role === "primary", 30_000);
  const { received } = connection.last!;
  await connection.until("traffic", (report) => report.received > received + 200_000, 30_000);
  const ended = await connection.finish();
  expect(ended.received).toBe(ended.sent);
}

/** Has the agent end, and starts it again after `meanwhile`. Returns what both agents have logged since. */
async function restart(
  lab: Lab,
  host: HostLetter,
  meanwhile: () => Promise<void> = () => Promise.resolve(),
): Promise<{ a: string; b: string }> {
  const before = { a: logOf(lab, "a").length, b: logOf(lab, "b").length };
  await end(lab, host);
  await meanwhile();
  lab.startAgent(host);
  await protectedOnA(lab);
  return { a: logOf(lab, "a").slice(before.a), b: logOf(lab, "b").slice(before.b) };
}

const causesOf = (log: string) => [...log.matchAll(/"cause":"(\w+)"/g)].map(([, cause]) => cause);

describe("a restart that was announced", () => {
  const lab = labUnderTest("restart", {
    agentConfig: `[heartbeat]\nlease_ms = ${LEASE_MS}\nrestart_ms = ${RESTART_MS}`,
    // No other checkpoint than those of the restarts: a VM that is slow to get a processor does not cause one
    // either.
    vmConfig: "checkpoint = { period_ms = 600000, max_wait_ms = 10000 }",
  });

  /** `host`'s agent is away for longer than the primary's lease. */
  const leaseRunsOut = (host: HostLetter) => () =>
    lab().waitFor(
      "the lease has run out",
      (status) => (status[host === "a" ? "b" : "a"]?.heartbeatAgeMs ?? 0) > LEASE_MS,
      RESTART_MS,
    );

  test.each([
    ["a", { a: ["resuming", "protected"], b: [] }],
    ["b", { a: [], b: ["standby"] }],
  ] as const)(
    "of %s's agent costs one checkpoint",
    async (host, phases) => {
      using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
      using datagrams = new LabTraffic(lab(), "udp", { host: GUEST_IPV4, pauseMs: 50 });
      await connection.until("traffic", (report) => report.received > 100_000, 30_000);
      for (let round = 0; round < 3; round++) {
        const { generation, epoch } = (await lab().agentStatus("a"))!;
        const logs = await restart(lab(), host, round === 0 ? leaseRunsOut(host) : undefined);
        expect({ a: phasesOf(logs.a), b: phasesOf(logs.b) }).toEqual(phases as never);
        await lab().waitFor("the checkpoint", ({ a }) => a!.epoch > epoch, 30_000);
        expect((await lab().agentStatus("a"))!).toMatchObject({ generation, epoch: epoch + 1 });
        const { received } = connection.last!;
        await connection.until("traffic", (report) => report.received > received + 100_000, 30_000);
        expect((await lab().agentStatus("a"))!.epoch).toBe(epoch + 1);
      }
      // Held and diverted meanwhile, not dropped; and the client's own socket had room for all of them at
      // once.
      expect(await datagrams.finish()).toMatchObject({ lost: 0, noRoom: 0 });
      const ended = await connection.finish();
      expect(ended.received).toBe(ended.sent);
      expect(new Set(causesOf(logOf(lab(), "a")).slice(-3))).toEqual(new Set(["restart"]));
    },
    180_000,
  );

  test("is refused while the other agent is away, and nothing is changed by that", async () => {
    const { generation } = (await lab().agentStatus("a"))!;
    for (const [host, other] of [
      ["b", "a"],
      ["a", "b"],
    ] as const) {
      await end(lab(), other);
      const refused = await operate(lab(), host, "restart");
      expect(refused).toMatchObject({ exitCode: 1, out: "" });
      expect(refused.error).toContain("ask for the restart when it is protected");
      lab().startAgent(other);
      await protectedOnA(lab());
      // Both are there for it again.
      await restart(lab(), host);
    }
    expect((await lab().agentStatus("a"))!.generation).toBe(generation);
  }, 180_000);

  test("leaves the primary with what it knows of the replica's disks, should that be lost", async () => {
    await restart(lab(), "a");
    const before = logOf(lab(), "a").length;
    await lab().kill("b", "both");
    await lab().waitFor("a goes on alone", ({ a }) => a?.phase === "alone", 60_000);
    await lab().bringBack("b");
    await lab().waitFor("protected", ({ a }) => a?.protected === true, 60_000);
    expect(logOf(lab(), "a").slice(before)).toMatch(/"disks":1,"wholeDisks":0/);
  }, 180_000);

  test("of the secondary's agent, which does not come back: the primary goes on alone, and not " +
    "before", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    await end(lab(), "b");
    const begun = performance.now();
    await lab().waitFor("a goes on alone", ({ a }) => a?.phase === "alone", 60_000);
    expect(performance.now() - begun).toBeGreaterThan(RESTART_MS / 2);
    const { received } = connection.last!;
    await connection.until("traffic", (report) => report.received > received + 100_000, 30_000);
    // What it had left in order is not what the VM is any more.
    const before = logOf(lab(), "b").length;
    lab().startAgent("b");
    await lab().waitFor("protected", ({ a }) => a?.protected === true, 60_000);
    expect(phasesOf(logOf(lab(), "b").slice(before))).toEqual(["stopped", "waiting", "incoming", "standby"]);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
  }, 180_000);

  test("of both agents leaves a replica that takes over when the primary's host is lost", async () => {
    await takesOver(lab(), "b", async () => {
      await restart(lab(), "a");
      await restart(lab(), "b");
      await lab().kill("a", "both");
    });
  }, 180_000);

  test("of the secondary's agent, while which the primary's host is lost, ends in a takeover", async () => {
    await lab().bringBack("a");
    await lab().waitFor("b is protected", ({ b }) => b?.protected === true, 60_000);
    await takesOver(lab(), "a", async () => {
      await end(lab(), "a");
      await lab().kill("b", "both");
      lab().startAgent("a");
    });
  }, 180_000);
});
