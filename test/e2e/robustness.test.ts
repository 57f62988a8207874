/**
 * Wrong configurations, dying sockets, a peer that dies at a bad moment: a clear sentence, and the VM goes
 * on.
 */
import { describe, expect, test } from "bun:test";
import { readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { GUEST_IPV4, inNamespace } from "../../src/lab/network.ts";
import { LabTraffic } from "../../src/lab/traffic.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { lasting, quiet, until } from "../until.ts";
import { labUnderTest } from "./lab_under_test.ts";

describe("an agent that cannot start", () => {
  const lab = labUnderTest("robust", { proxy: "none" });

  const CONFIG = (changes: { tap?: string; qmp?: string; extra?: string }) => `
[agent]
name = "robust-a"
control = "198.18.1.1:7400"
api = "127.0.0.1:7401"
${changes.extra ?? ""}
[peer]
name = "robust-b"
control = "198.18.1.2:7400"
[[vm]]
name = "vm1"
qmp = "${changes.qmp ?? join(lab().directory, "a", "qmp.sock")}"
initial_role = "primary"
[[vm.nic]]
tap = "${changes.tap ?? "tap0"}"
`;

  /** Runs an agent that is expected to end; returns its status and what it said. */
  async function run(config: string, ...options: string[]) {
    const path = join(lab().directory, "wrong.toml");
    writeFileSync(path, config);
    const main = join(import.meta.dir, "../../src/cli/main.ts");
    const child = Bun.spawn(
      [...inNamespace(lab().namespaces.a), process.execPath, main, "run", "--config", path, ...options],
      { stdout: "pipe", stderr: "pipe" },
    );
    const said = (await new Response(child.stderr).text()) + (await new Response(child.stdout).text());
    return { status: await child.exited, said };
  }

  const cases: [string, () => Parameters<typeof CONFIG>[0], RegExp][] = [
    ["an unknown key", () => ({ extra: 'colour = "red"' }), /agent: Unrecognized key: "colour"/],
    ["a tap that does not exist", () => ({ tap: "tap7" }), /there is no interface "tap7"\n +Make/],
    ["an interface that is no tap", () => ({ tap: "uplink" }), /"uplink" is not a tap device/],
  ];
  for (const [what, changes, message] of cases) {
    test(`${what} is told and nothing is touched`, async () => {
      const { status, said } = await run(CONFIG(changes()));
      expect(said).toMatch(message);
      expect(status).toBe(1);
      using traffic = new LabTraffic(lab(), "http", { host: GUEST_IPV4 });
      await traffic.until("the VM is reachable as before", (report) => report.answers > 3, 20_000);
    });
  }

  test("a QEMU that is not there yet is waited for, and what to start is told", async () => {
    const path = join(lab().directory, "later.toml");
    const qmp = join(lab().directory, "a", "later.sock");
    writeFileSync(path, CONFIG({ qmp }));
    const main = join(import.meta.dir, "../../src/cli/main.ts");
    const inside = [...inNamespace(lab().namespaces.a), process.execPath, main];
    const agent = Bun.spawn([...inside, "run", "--config", path], { stdout: "ignore", stderr: "ignore" });
    try {
      const says = (words: string) =>
        until(
          `the agent says "${words}"`,
          async () => {
            const child = Bun.spawn([...inside, "status"], { stdout: "pipe", stderr: "ignore" });
            const said = await new Response(child.stdout).text();
            return said.includes(words) && said;
          },
          { pollMs: 100 },
        );
      expect(await says("start the VM's QEMU")).toContain(
        `there is no QMP socket at ${qmp}; start the VM's QEMU with -qmp unix:${qmp}`,
      );
      expect(agent.exitCode).toBeNull();
      // It comes: here the one that runs already, under another name.
      symlinkSync(lab().host("a").qmp, qmp);
      await says("alone");
      using traffic = new LabTraffic(lab(), "http", { host: GUEST_IPV4 });
      await traffic.until("the VM is reachable", (report) => report.answers > 3, 20_000);
    } finally {
      agent.kill();
      await agent.exited;
    }
  });

  test("a QMP socket that closes half-way is told", async () => {
    const path = join(lab().directory, "half.sock");
    const server = createServer((socket) => {
      socket.end('{"QMP": {"version": {"qemu": {"micro": 2, "minor": 1, "ma');
    }).listen(path);
    try {
      const { status, said } = await run(CONFIG({ qmp: path }));
      expect(said).toContain("does not work as a QMP socket");
      expect(status).toBe(1);
    } finally {
      server.close();
    }
  });

  test("--check reads the file only", async () => {
    expect(await run(CONFIG({}), "--check")).toEqual({
      status: 0,
      said: expect.stringContaining("OK, 1 VM"),
    });
  });
});

describe("a pair in trouble", () => {
  const lab = labUnderTest("trouble");

  test(
    "the secondary dies while the VM is being protected: the VM stays reachable, and is protected the " +
      "next time",
    async () => {
      using traffic = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
      await lab().kill("b", "both");
      await lab().waitFor("a goes on alone", ({ a }) => a?.phase === "alone", 30_000);
      for (const delayMs of [150, 450, 700]) {
        await lab().bringBack("b");
        await lab().waitFor(
          "protecting",
          ({ a }) => a?.phase === "protecting" || a?.phase === "protected",
          30_000,
        );
        await lasting(delayMs); // in the disk copy, the memory copy, the first checkpoints
        await lab().kill("b", "both");
        await lab().waitFor("a goes on alone", ({ a }) => a?.phase === "alone", 60_000);
        const before = traffic.last!.received;
        await traffic.until("bytes", (report) => report.received > before + 50_000, 30_000);
      }
      await lab().bringBack("b");
      await lab().waitFor("protected", ({ a }) => a?.protected === true, 60_000);
      const ended = await traffic.finish();
      expect(ended.received).toBe(ended.sent);
    },
  );

  test("the primary's agent dies alone and comes back: the connection goes on", async () => {
    using traffic = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    await traffic.until("bytes", (report) => report.received > 100_000, 30_000);
    // Killed when an announced restart would not be: in the middle of whatever it is at.
    await lab().kill("a", "agent");
    lab().startAgent("a");
    await lab().waitFor(
      "both agents are there, and the VM is protected",
      ({ a, b }) => a !== undefined && b !== undefined && (a.protected || b.protected),
      60_000,
    );
    const before = traffic.last!.received;
    await traffic.until("bytes", (report) => report.received > before + 200_000, 60_000);
    const ended = await traffic.finish();
    expect(ended.received).toBe(ended.sent);
    const log = readFileSync(join(lab().directory, "a", "agent.log"), "utf8");
    expect(log).not.toContain("the data path failed");
  });
});

describe("a guest that is shut down", () => {
  const lab = labUnderTest("shutdown");

  test("ends on both hosts: the replica does not bring it to life again", async () => {
    using control = new LabTraffic(lab(), "http", { host: GUEST_IPV4 });
    await control.until("traffic", (report) => report.answers > 5, 30_000);
    control.kill();
    const qmp = await QmpClient.connect(lab().host("a").qmp!);
    await qmp.execute("quit").catch(() => undefined); // as an operator ends a VM
    await lab().waitFor("a is off, b waits", ({ a, b }) => a?.off === true && b?.phase === "waiting", 30_000);
    expect((await lab().agentStatus("a"))?.reason).toContain("shut down");
    // An agent that comes later knows it too.
    await lab().kill("a", "agent");
    await lab().kill("b", "agent");
    await Promise.all([lab().bringBack("a"), lab().bringBack("b")]);
    await lab().waitFor("as before", ({ a, b }) => a?.off === true && b?.phase === "waiting", 30_000);
    await quiet(2_000); // a takeover takes 1.3 s
    const report = await lab().report();
    expect(report.hosts.map(({ role }) => role)).toEqual(["none", "secondary"]);
    expect(report.hosts[0]?.qemu_pid).toBeNull();
  });
});

describe("a secondary that hangs", () => {
  const lab = labUnderTest("hang");

  test("is cut off, and the VM goes on", async () => {
    using traffic = new LabTraffic(lab(), "duplex", { host: GUEST_IPV4, bytesPerSecond: 200_000 });
    using disk = new LabTraffic(lab(), "disk", { host: GUEST_IPV4, pauseMs: 5 });
    await disk.until("blocks", (report) => report.answers > 50, 30_000);
    const { qemu_pid } = (await lab().report()).hosts[1]!;
    process.kill(qemu_pid!, "SIGSTOP");
    try {
      // b's agent ends the one that hangs, and a protects the VM again with the next.
      await lab().waitFor("b's QEMU is another", () => lab().process("qemu-b")?.pid !== qemu_pid, 60_000);
      const before = { bytes: traffic.last!.received, blocks: disk.last!.answers };
      await traffic.until("bytes", (report) => report.received > before.bytes + 100_000, 60_000);
      await disk.until("blocks", (report) => report.answers > before.blocks + 20, 60_000);
      await lab().waitFor(
        "protected again",
        ({ a, b }) => a?.protected === true && b?.phase === "standby",
        60_000,
      );
    } finally {
      if (lab().process("qemu-b")?.pid === qemu_pid) process.kill(qemu_pid!, "SIGCONT");
    }
    const ended = await traffic.finish();
    expect(ended.received).toBe(ended.sent);
  });
});
