/**
 * A VM with two network cards: connections over both go on over two losses, with one epoch and one checkpoint
 * for both.
 */
import { describe, expect, test } from "bun:test";
import { otherHost } from "../../src/lab/faults.ts";
import { GUEST_IPV4, type HostLetter, SECOND_GUEST_IPV4, SECOND_TAP, TAP } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { labUnderTest } from "./lab_under_test.ts";

const TIMEOUT_MS = 60_000;
const RATE = { bytesPerSecond: 200_000 };

describe.each(["ebpf", "qemu"] as const)("a VM with two network cards and proxy %s", (proxy) => {
  const lab = labUnderTest("cards", {
    secondCard: true,
    vmConfig: `proxy = "${proxy}"\n[vm.checkpoint]\nperiod_ms = 500`,
  });

  test(
    "connections over both survive the loss of one host and then of the other",
    async () => {
      using first = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, ...RATE });
      using second = new LabTraffic(lab(), "duplex", { host: SECOND_GUEST_IPV4, ...RATE });
      const both = [first, second];
      const goOn = () =>
        Promise.all(
          both.map((one) => {
            const wanted = (one.last?.received ?? 0) + 100_000;
            return one.until("it goes on", ({ received }) => received > wanted, TIMEOUT_MS);
          }),
        );
      await goOn();
      expect((await lab().agentStatus("a"))!.taps).toEqual([TAP, SECOND_TAP]);
      // A divergence on the second card is the whole VM's.
      using random = new LabTraffic(lab(), "random", { host: SECOND_GUEST_IPV4, pauseMs: 50 });
      await random.until("answers", ({ answers }) => answers > 20, TIMEOUT_MS);
      await random.finish();

      let primary: HostLetter = "a";
      for (let loss = 0; loss < 2; loss++) {
        const survivor = otherHost(primary);
        await lab().kill(primary, "both");
        await lab().waitFor("a takeover", (s) => s[survivor]?.role === "primary", TIMEOUT_MS);
        await goOn();
        await lab().bringBack(primary);
        await lab().waitFor("protected again", (s) => s[survivor]?.protected === true, TIMEOUT_MS);
        await goOn();
        primary = survivor;
      }
      for (const one of both) {
        const ended = await one.finish();
        expect(ended.received).toBe(ended.sent);
      }
    },
    6 * TIMEOUT_MS,
  );
});
