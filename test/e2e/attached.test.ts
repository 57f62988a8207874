/**
 * Agents that attach to QEMUs of somebody else: they say what to start, take what comes, and protect the VM
 * again.
 */
import { expect, test } from "bun:test";
import { otherHost } from "../../src/lab/faults.ts";
import { GUEST_IPV4, type HostLetter } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { labUnderTest } from "./lab_under_test.ts";

const TIMEOUT_MS = 60_000;
const lab = labUnderTest("attached", { attached: true });

test(
  "a VM changes hosts twice, with a fresh QEMU where the agent asked for one",
  async () => {
    using connection = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    const goesOn = () => {
      const wanted = (connection.last?.received ?? 0) + 100_000;
      return connection.until("it goes on", ({ received }) => received > wanted, TIMEOUT_MS);
    };
    await goesOn();
    let primary: HostLetter = "a";
    for (let round = 0; round < 2; round++) {
      const survivor = otherHost(primary);
      await lab().kill(primary, "qemu");
      await lab().waitFor("a takeover", (s) => s[survivor]?.phase === "alone", TIMEOUT_MS);
      await goesOn();
      await lab().waitFor(
        "the agent says what to start",
        (s) => /start the VM's QEMU with -incoming defer and -qmp unix:/.test(s[primary]?.reason ?? ""),
        TIMEOUT_MS,
      );
      await lab().startQemu(primary, "secondary");
      await lab().waitFor("protected again", (s) => s[survivor]?.protected === true, TIMEOUT_MS);
      await goesOn();
      primary = survivor;
    }
    // An agent that is lost alone, with a QEMU that goes on in nobody's hands.
    const other = otherHost(primary);
    await lab().kill(primary, "agent");
    await lab().waitFor("a takeover", (s) => s[other]?.role === "primary", TIMEOUT_MS);
    await goesOn();
    const ended = await connection.finish();
    expect(ended.received).toBe(ended.sent);
  },
  6 * TIMEOUT_MS,
);
