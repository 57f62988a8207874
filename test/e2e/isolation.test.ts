/**
 * Nothing of the secondary reaches the network before a failover, and only mirrored frames reach the
 * secondary VM.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, GUEST_MAC, inNamespace, TAP } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { quiet, until, within } from "../until.ts";
import { labUnderTest } from "./lab_under_test.ts";

/** tcpdump on an interface of a lab namespace until it is stopped. */
async function capture(lab: Lab, namespace: string, device: string, path: string, ...filter: string[]) {
  const child = Bun.spawn(
    [...inNamespace(namespace), "tcpdump", "-U", "-i", device, "-w", path, "--immediate-mode", ...filter],
    { stdout: "ignore", stderr: "pipe" },
  );
  const reader = child.stderr.getReader();
  const decoder = new TextDecoder();
  let said = "";
  while (!said.includes("listening on")) {
    const { value, done } = await within("tcpdump listens", reader.read());
    if (done) throw new Error(`tcpdump ended: ${said} (${lab.directory})`);
    said += decoder.decode(value);
  }
  reader.releaseLock();
  return {
    async stop(): Promise<Buffer> {
      child.kill("SIGINT");
      await child.exited;
      return readFileSync(path);
    },
    [Symbol.dispose]: () => child.kill("SIGKILL"),
  };
}

/** Frames of a classic pcap file, little endian as tcpdump writes it here. */
function frames(file: Buffer): Buffer[] {
  const found: Buffer[] = [];
  let at = 24;
  while (at + 16 <= file.length) {
    const bytes = file.readUInt32LE(at + 8);
    found.push(file.subarray(at + 16, at + 16 + bytes));
    at += 16 + bytes;
  }
  return found;
}

/** Sends `count` marked datagrams from a host to a MAC that no bridge knows, so that every port gets them. */
async function flood(lab: Lab, namespace: string, address: string, count: number, marker: string) {
  const neighbour = [
    "ip",
    "-netns",
    namespace,
    "neigh",
    "replace",
    address,
    "lladdr",
    "52:54:00:ff:ff:01",
    "dev",
    "br0",
  ];
  expect(await Bun.spawn(neighbour).exited).toBe(0);
  const program = `
    const socket = await Bun.udpSocket({});
    for (let i = 0; i < ${count}; i++) {
      socket.send("${marker}" + i + ".", 9, "${address}");
      await Bun.sleep(2);
    }
    process.exit(0);`;
  const child = Bun.spawn([...inNamespace(namespace), process.execPath, "-e", program]);
  expect(await child.exited, lab.directory).toBe(0);
}

describe("isolation of the secondary", () => {
  const lab = labUnderTest("isolation");

  test("no frame of the VM comes from the secondary's host until it has taken over", async () => {
    const filter = ["-Q", "in", "ether", "src", GUEST_MAC];
    const { namespaces, directory } = lab();
    using before = await capture(lab(), namespaces.switch, "to-b", join(directory, "before.pcap"), ...filter);
    using traffic = new LabTraffic(lab(), "http", { host: GUEST_IPV4 });
    using chain = new LabTraffic(lab(), "random", { host: GUEST_IPV4, pauseMs: 20 });
    await traffic.until("pages", (report) => report.answers > 300, 60_000);
    await chain.until("answers", (report) => report.answers > 30, 60_000);
    const status = await lab().agentStatus("b");
    expect(status!.counters.forwarded).toBeGreaterThan(300); // the secondary has sent as much
    expect(frames(await before.stop())).toHaveLength(0);
  });

  test("frames of the secondary's own bridge do not reach the VM; mirrored ones do, once", async () => {
    const { namespaces, directory } = lab();
    const marker = "isolation-marker-";
    const before = (await lab().agentStatus("b"))!.counters;
    using tap = await capture(
      lab(),
      namespaces.b,
      TAP,
      join(directory, "tap.pcap"),
      "udp",
      "dst",
      "port",
      "9",
    );
    await flood(lab(), namespaces.b, "198.18.0.77", 50, marker);
    const dropped = async () => (await lab().agentStatus("b"))!.counters.foreign_dropped!;
    await until("the bridge has flooded them", async () => (await dropped()) - before.foreign_dropped! >= 50);
    await quiet(500); // a second copy would be there
    const seen = frames(await tap.stop()).map((frame) => frame.toString("latin1"));
    const after = (await lab().agentStatus("b"))!.counters;
    for (let i = 0; i < 50; i++) {
      // by way of the primary's mirror
      expect(seen.filter((text) => text.includes(`${marker}${i}.`))).toHaveLength(1);
    }
    expect(after.foreign_dropped! - before.foreign_dropped!).toBeGreaterThanOrEqual(50);
  });

  test("after a failover the new primary's frames do come from there", async () => {
    const filter = ["-Q", "in", "ether", "src", GUEST_MAC];
    const { namespaces, directory } = lab();
    using after = await capture(lab(), namespaces.switch, "to-b", join(directory, "after.pcap"), ...filter);
    await lab().kill("a", "both");
    await lab().waitFor("host b goes on alone", ({ b }) => b?.phase === "alone", 30_000);
    using traffic = new LabTraffic(lab(), "http", { host: GUEST_IPV4 });
    await traffic.until("pages", (report) => report.answers > 20, 60_000);
    expect(frames(await after.stop()).length).toBeGreaterThan(20);
  });
});
