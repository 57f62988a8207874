/** An agent that is restarted as announced: its VM's protection goes on, for the price of one checkpoint. */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, type HostLetter } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { isAlive } from "../../src/qemu/process.ts";
import { labUnderTest, operate } from "./lab_under_test.ts";

const logOf = (lab: Lab, host: HostLetter) => readFileSync(join(lab.directory, host, "agent.log"), "utf8");
const phasesOf = (log: string) => [...log.matchAll(/"from":"(\w+)","to":"(\w+)"/g)].map(([, , to]) => to);

/** Has the agent end, and starts it again. Returns what both agents have logged since. */
async function restart(lab: Lab, host: HostLetter): Promise<{ a: string; b: string }> {
  const before = { a: logOf(lab, "a").length, b: logOf(lab, "b").length };
  const old = lab.host(host).agent!;
  const { out, exitCode } = await operate(lab, host, "restart");
  expect({ out, exitCode }).toEqual({
    out: expect.stringContaining("goes on if it begins again"),
    exitCode: 0,
  });
  for (const deadline = performance.now() + 10_000; isAlive(old); await Bun.sleep(10)) {
    expect(performance.now()).toBeLessThan(deadline);
  }
  lab.startAgent(host);
  await lab.waitFor("protected", ({ a, b }) => a?.protected === true && b !== undefined, 60_000);
  return { a: logOf(lab, "a").slice(before.a), b: logOf(lab, "b").slice(before.b) };
}

describe("the primary's agent", () => {
  const lab = labUnderTest("restart");

  test("finds everything as it was, and goes on after one checkpoint", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    using datagrams = new LabTraffic(lab(), "udp", { host: GUEST_IPV4, pauseMs: 20 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    for (let round = 0; round < 3; round++) {
      const { generation } = (await lab().agentStatus("a"))!;
      const logs = await restart(lab(), "a");
      expect(phasesOf(logs.a)).toEqual(["resuming", "protected"]);
      expect(phasesOf(logs.b)).toEqual([]);
      expect(logs.a.match(/"cause":"\w+"/)?.[0]).toBe('"cause":"restart"');
      expect((await lab().agentStatus("a"))!.generation).toBe(generation);
      const { received } = connection.last!;
      await connection.until("traffic", (report) => report.received > received + 100_000, 30_000);
    }
    // Held and diverted meanwhile, not dropped.
    expect((await datagrams.finish()).lost).toBe(0);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
  }, 180_000);

  test("knows still what the replica's disks lack, should it be lost", async () => {
    await restart(lab(), "a");
    const before = logOf(lab(), "a").length;
    await lab().kill("b", "both");
    await lab().waitFor("a goes on alone", ({ a }) => a?.phase === "alone", 60_000);
    await lab().bringBack("b");
    await lab().waitFor("protected", ({ a }) => a?.protected === true, 60_000);
    expect(logOf(lab(), "a").slice(before)).toMatch(/"disks":1,"wholeDisks":0/);
  }, 180_000);

  test("keeps a replica that takes over when its host is lost", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    await restart(lab(), "a");
    await lab().kill("a", "both");
    await lab().waitFor("b has the VM", ({ b }) => b?.role === "primary", 30_000);
    const { received } = connection.last!;
    await connection.until("traffic", (report) => report.received > received + 200_000, 30_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
  }, 180_000);
});
