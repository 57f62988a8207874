import { afterAll, afterEach, describe, expect, setDefaultTimeout, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { createServer, type Server } from "node:net";
import { join } from "node:path";
import { judgeVersion } from "../../src/colo/check.ts";
import { checkQemu, QemuUnsuitableError } from "../../src/colo/index.ts";
import { qemuArgv, qemuEnvironment } from "../../src/host/installed.ts";
import { killQemu, startLabQemu } from "../../src/lab/qemu.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { until } from "../until.ts";
import { removeTestDirectory, testDirectory } from "./pair.ts";

/** A QEMU without KVM that runs a VM and knows nothing of COLO. Lists are empty, other answers are {}. */
const REPLIES: Readonly<Record<string, object>> = {
  "query-kvm": { enabled: false, present: false },
  "query-status": { running: true, status: "running" },
};

// Not a claim: emulated guests on a busy machine take their time.
setDefaultTimeout(180_000);
afterAll(removeTestDirectory);

test.each([
  ["5.2.0", "refused"],
  ["7.2.22", "refused"],
  ["8.2.0", "refused"],
  ["9.0.0", "refused"],
  ["10.0.2", "refused"],
  ["10.0.13", "refused"],
  ["10.1.0", "refused"],
  ["10.2.2", "untried"],
  ["11.0.0", "untried"],
  ["11.1.2", "works"],
  ["11.1.3", "works"],
  ["11.2.0", "untried"],
  ["12.0.0", "untried"],
] as const)("QEMU %s: %s", (text, verdict) => {
  const [major, minor, micro] = text.split(".").map(Number) as [number, number, number];
  const judged = judgeVersion({ major, minor, micro });
  expect(judged.verdict).toBe(verdict);
  expect(judged.sentence).toContain(`QEMU ${text}`);
  // Who is refused or warned must learn what works.
  if (verdict !== "works") expect(judged.sentence).toContain("11.1.2");
});

describe("a real QEMU", () => {
  let pid: number | undefined;
  let client: QmpClient | undefined;
  afterEach(async () => {
    client?.close();
    if (pid !== undefined) await killQemu(pid);
    pid = undefined;
  });

  async function facts(name: string, extraArguments: string[]) {
    const directory = join(testDirectory(), name);
    mkdirSync(directory, { recursive: true });
    const qemu = await startLabQemu({
      role: "primary",
      directory,
      qemuArgv: qemuArgv(),
      environment: qemuEnvironment(),
      memoryMib: 32,
      extraArguments,
    });
    pid = qemu.pid;
    client = await QmpClient.connect(qemu.qmp);
    return checkQemu(client);
  }

  test("of the lab can do COLO", async () => {
    expect(await facts("lab", [])).toMatchObject({
      verdict: { verdict: "works" },
      kvm: false,
      oob: true,
      yank: true,
      blockReplication: true,
      warnings: [expect.stringContaining("without KVM")],
      runState: "running",
      migrationStatus: "none",
    });
  });

  test("without a machine can be asked too", async () => {
    const path = join(testDirectory(), "none.sock");
    const child = Bun.spawn(
      [
        ...qemuArgv(),
        "-machine",
        "none",
        "-nodefaults",
        "-display",
        "none",
        "-qmp",
        `unix:${path},server=on,wait=off`,
      ],
      { env: qemuEnvironment(), stdio: ["ignore", "ignore", "inherit"] },
    );
    pid = child.pid;
    client = await until("QEMU takes a connection", () => QmpClient.connect(path).catch(() => undefined), {
      pollMs: 20,
    });
    expect(await checkQemu(client)).toMatchObject({
      blockReplication: true,
      migrationStatus: "none",
    });
  });

  test("whose network card makes the guest announce itself is warned of, with an id or without", async () => {
    const all = await facts("announce", [
      ..."-netdev user,id=a -device virtio-net-pci,netdev=a,id=loud,romfile=".split(" "),
      ..."-netdev user,id=b -device virtio-net-pci,netdev=b,id=quiet,romfile=,guest_announce=off".split(" "),
      ..."-netdev user,id=c -device virtio-net-pci,netdev=c,romfile=".split(" "),
    ]);
    const warnings = all.warnings.filter((warning) => warning.includes("guest_announce"));
    expect(warnings).toHaveLength(2);
    expect(warnings[0]).toContain("/machine/peripheral/loud has guest_announce=on");
    expect(warnings[1]).toContain("/machine/peripheral-anon/");
  });
});

describe("a QEMU that does not do", () => {
  let server: Server;
  let client: QmpClient;
  afterEach(() => {
    client.close();
    server.close();
  });

  /** Answers as a QEMU of that version would that lacks everything else. */
  async function pretend(major: number, minor: number, micro: number): Promise<QmpClient> {
    const path = join(testDirectory(), `pretend-${major}.${minor}.${micro}.sock`);
    server = createServer((socket) => {
      socket.on("error", () => undefined);
      socket.write(
        `{"QMP": {"version": {"qemu": {"micro": ${micro}, "minor": ${minor}, "major": ${major}}, ` +
          `"package": ""}, "capabilities": []}}\n`,
      );
      socket.on("data", (data) => {
        for (const line of data.toString().trim().split("\n")) {
          const { execute, id } = JSON.parse(line) as { execute: string; id: number };
          const reply =
            REPLIES[execute] ??
            (/capabilities|commands|schema/.test(execute) && execute !== "qmp_capabilities" ? [] : {});
          socket.write(`${JSON.stringify({ return: reply, id })}\n`);
        }
      });
    });
    await new Promise<void>((resolve) => server.listen(path, resolve));
    client = await QmpClient.connect(path);
    return client;
  }

  test("because of its version is refused before it is asked anything", async () => {
    const error = await checkQemu(await pretend(10, 0, 2)).catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(QemuUnsuitableError);
    expect((error as Error).message).toContain("10.0 and 10.1 never enter COLO");
  });

  test("because it lacks what COLO needs is refused with a list", async () => {
    const error = (await checkQemu(await pretend(11, 1, 2)).catch((reason: unknown) => reason)) as Error;
    expect(error).toBeInstanceOf(QemuUnsuitableError);
    for (const part of ["capability x-colo", "capability return-path", "command yank", "out-of-band"]) {
      expect(error.message).toContain(part);
    }
  });
});
