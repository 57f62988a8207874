/**
 * A VM on a QEMU that cannot do COLO: the agents leave it running and reachable, unprotected, and say why.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { WRONG_QEMUS } from "../../src/lab/assets.ts";
import { GUEST_IPV4 } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { labUnderTest } from "./lab_under_test.ts";

describe.each(WRONG_QEMUS)("on QEMU %s", (name) => {
  const lab = labUnderTest("wrong", { wrongQemu: name });

  test("the VM is reachable and unprotected, the other host offers no replica, both say why", async () => {
    await lab().waitFor(
      "a runs the VM alone",
      ({ a, b }) => a?.phase === "alone" && b?.phase === "stopped",
      30_000,
    );
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 500_000 });
    // Several leases long, so that it is not one that was left over.
    await connection.until("traffic", (report) => report.received > 2_000_000, 60_000);
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
    const [a, b] = await Promise.all([lab().agentStatus("a"), lab().agentStatus("b")]);
    expect(a).toMatchObject({ phase: "alone", protected: false });
    expect(a?.words.now).toContain(`cannot be protected: QEMU ${name}.`);
    expect(a?.words.now).toContain("Use QEMU 11.1");
    expect(b?.words.now).toContain("can keep no replica");
    const log = readFileSync(join(lab().directory, "a", "agent.log"), "utf8");
    expect(log).toContain("this VM cannot be protected and runs alone");
    const command = await fetch("http://agent/v1/vm/vm1/protect", {
      unix: lab().agentSocket("a"),
      method: "POST",
    });
    expect(command.ok).toBe(false);
    expect(await command.text()).toContain("Use QEMU 11.1");
  });
});
