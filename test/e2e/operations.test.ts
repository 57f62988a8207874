/** What an administrator asks of a running pair: hand-over, end and return of protection, state in words. */
import { describe, expect, test } from "bun:test";
import { GUEST_IPV4, inNamespace } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { total } from "../metrics_text.ts";
import { labUnderTest, operate } from "./lab_under_test.ts";

describe("operations", () => {
  const lab = labUnderTest("operations");

  const words = async (host: "a" | "b") => (await lab().agentStatus(host))!.words;

  test("a hand-over loses nothing, not even a datagram", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    using datagrams = new LabTraffic(lab(), "udp", { host: GUEST_IPV4, pauseMs: 10 });
    await connection.until("traffic", (report) => report.received > 100_000, 30_000);
    const refused = await operate(lab(), "b", "failover", "vm1");
    expect(refused).toMatchObject({ exitCode: 1 });
    expect(refused.error).toContain('this host says "standby"');
    expect((await words("a")).ifThisHostDies).toContain("would take over");

    const { out, exitCode } = await operate(lab(), "a", "failover", "vm1");
    expect({ out, exitCode }).toMatchObject({
      exitCode: 0,
      out: expect.stringContaining("handing the VM over"),
    });
    await lab().waitFor("b has the VM", ({ b }) => b?.role === "primary", 30_000);
    const { received } = connection.last!;
    await connection.until("traffic with b", (report) => report.received > received + 200_000, 30_000);
    expect((await datagrams.finish()).lost).toBe(0);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    // a's QEMU, which had the VM, is replaced by one that waits.
    await lab().waitFor("b is protected", ({ b }) => b?.protected === true, 60_000);
  }, 180_000);

  test("protection ends and returns as asked", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 50_000, 30_000);
    expect((await operate(lab(), "b", "unprotect", "vm1")).exitCode).toBe(0);
    await lab().waitFor("both know", ({ a, b }) => a?.phase === "waiting" && b?.phase === "alone", 30_000);
    expect((await words("b")).now).toContain("until `colo-agent protect`");
    const { received } = connection.last!;
    await connection.until("traffic", (report) => report.received > received + 200_000, 30_000);
    // It would have been protected by now, several times over.
    expect((await lab().agentStatus("b"))!.phase).toBe("alone");
    expect((await operate(lab(), "b", "protect", "vm1")).exitCode).toBe(0);
    await lab().waitFor("b is protected", ({ b }) => b?.protected === true, 60_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    expect(total(await lab().metrics("b"), "colo_failovers_total", 'survivor="primary"')).toBe(1);
  }, 180_000);

  test("a primary that loses the clients' network hands the VM over", async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await connection.until("traffic", (report) => report.received > 50_000, 30_000);
    const link = (state: string) =>
      Bun.spawnSync([...inNamespace(lab().namespaces.switch), "ip", "link", "set", "to-b", state]);
    link("down");
    await lab().waitFor("a has the VM", ({ a }) => a?.role === "primary", 30_000);
    link("up");
    await lab().waitFor(
      "b is its replica",
      ({ a, b }) => a?.protected === true && b?.phase === "standby",
      60_000,
    );
    const { received } = connection.last!;
    await connection.until("traffic with a", (report) => report.received > received + 200_000, 30_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
  }, 120_000);
});
