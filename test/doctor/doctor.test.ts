/** `colo-agent doctor` on this machine, with the QEMU that works and with those that do not. */
import { afterAll, beforeAll, describe, expect, setDefaultTimeout, test } from "bun:test";
import { chmodSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeCertificates } from "../../src/certificates/make.ts";
import type { Config } from "../../src/config/config.ts";
import { type DoctorContext, fail, type Group, ok, runChecks, type Status } from "../../src/doctor/check.ts";
import { GROUPS } from "../../src/doctor/doctor.ts";
import { Problem } from "../../src/errors/problem.ts";
import {
  helperNames,
  helpersOf,
  helperWorks,
  KERNEL_FUNCTION_NAMES,
  kernelFunctionRefused,
} from "../../src/ffi/bpf_probe.ts";
import { clockState } from "../../src/ffi/clock_state.ts";
import { bpfObject } from "../../src/host/installed.ts";
import { WRONG_QEMUS, wrongQemu } from "../../src/lab/assets.ts";

setDefaultTimeout(180_000);

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");

interface Report {
  summary: Record<Status, number>;
  checks: { group: string; id: string; subject?: string; status: Status; found: string; fix?: string }[];
}

function doctor(...words: string[]): { status: number; report: Report } {
  const { exitCode, stdout, stderr } = Bun.spawnSync([process.execPath, MAIN, "doctor", "--json", ...words]);
  if (exitCode > 1 || stdout.length === 0) throw new Error(stderr.toString());
  return { status: exitCode, report: JSON.parse(stdout.toString()) as Report };
}

const skipAllBut = (...names: string[]) =>
  GROUPS.filter(({ name }) => !names.includes(name)).flatMap(({ name }) => ["--skip", name]);

/** Namespaces, folders and pins that a run must not leave behind. */
function leftovers(): string[] {
  return [...readdirSync("/run/netns"), ...readdirSync(tmpdir()), ...readdirSync("/sys/fs/bpf")].filter(
    (name) => name.startsWith("colo-doctor-"),
  );
}

test("this machine can do what the tests do, and nothing is left behind", () => {
  const before = leftovers();
  const { status, report } = doctor();
  const by = (group: string, id: string) =>
    report.checks.find((one) => one.group === group && one.id === id && one.subject === undefined);
  expect(report.checks.filter((one) => one.status === "fail")).toEqual([]);
  expect(status).toBe(0);
  for (const id of ["ring_buffer", "helpers", "kernel_functions", "data_plane"])
    expect(by("bpf", id)).toMatchObject({ status: "ok" });
  expect(by("devices", "tap")).toMatchObject({ status: "ok" });
  expect(by("qemu", "version")?.found).toContain("QEMU 11.1");
  expect(by("qemu", "pair")).toMatchObject({ status: "ok" });
  // KVM may hang or be missing here; then it says so and what to do, but it has been tried.
  for (const id of ["code", "linux"]) {
    const kvm = by("kvm", id)!;
    expect(["ok", "warn"]).toContain(kvm.status);
    expect(kvm.fix === undefined).toBe(kvm.status === "ok");
  }
  for (const group of ["link", "arbiter", "storage", "vms"]) {
    for (const one of report.checks.filter((check) => check.group === group))
      expect(one).toMatchObject({ status: "not_asked", found: "not asked: no configuration" });
  }
  expect(report.summary.ok).toBe(report.checks.filter((one) => one.status === "ok").length);
  expect(leftovers()).toEqual(before);
});

describe("with a QEMU that cannot do COLO", () => {
  let directory: string;
  beforeAll(() => {
    directory = mkdtempSync(join(tmpdir(), "colo-test-doctor-"));
  });
  afterAll(() => rmSync(directory, { recursive: true, force: true }));

  test.each(WRONG_QEMUS)("%s: the reason and the version to take", (name) => {
    const { argv, environment } = wrongQemu(name);
    const program = join(directory, `qemu-${name}`);
    const quoted = argv.map((word) => `'${word}'`).join(" ");
    writeFileSync(
      program,
      `#!/bin/sh\nexport QEMU_MODULE_DIR='${environment.QEMU_MODULE_DIR}'\nexec ${quoted} "$@"\n`,
    );
    chmodSync(program, 0o755);
    const { status, report } = doctor("--qemu", program, ...skipAllBut("qemu"));
    expect(status).toBe(1);
    for (const id of ["version", "pair"]) {
      const found = report.checks.find((one) => one.group === "qemu" && one.id === id)!;
      expect(found.status).toBe("fail");
      expect(found.found).toContain(`QEMU ${name}.`);
      expect(found.fix).toContain("QEMU 11.1");
    }
  });

  test("a program that is no QEMU is reported with its words", () => {
    const { status, report } = doctor("--qemu", "/bin/false", ...skipAllBut("qemu"));
    expect(status).toBe(1);
    expect(report.checks.find((one) => one.group === "qemu")?.found).toContain("ended at once with status 1");
  });
});

describe("certificates of QEMU's streams", () => {
  const root = mkdtempSync(join(tmpdir(), "colo-test-doctor-tls-"));
  afterAll(() => rmSync(root, { recursive: true, force: true }));
  const folder = join(root, "host-a-qemu");

  async function found(days: number) {
    await makeCertificates({
      directory: root,
      requests: [{ name: "host-a", addresses: [] }],
      ...{ days, renew: true, qemu: true },
    });
    return check();
  }

  async function check(name = "host-a") {
    const tls = { directory: folder };
    const config = { agent: { name }, arbiter: { type: "none" }, tls } as unknown as Config;
    const group = GROUPS.find((one) => one.name === "certificates")!;
    const results = await runChecks([group], { config } as DoctorContext);
    return results.find(({ id }) => id === "streams")!;
  }

  test("good ones, those that end soon, and those that have ended", async () => {
    expect(await found(400)).toMatchObject({
      status: "ok",
      found: expect.stringMatching(/valid for (399|400) days/),
    });
    expect(await found(5)).toMatchObject({
      status: "warn",
      fix: expect.stringContaining("--qemu --renew host-a"),
    });
    expect(await found(-0.01)).toMatchObject({
      status: "fail",
      found: expect.stringContaining("expired on"),
    });
  });

  test("another host's, keys that others can read, and files that are not there", async () => {
    expect((await found(400)).status).toBe("ok");
    expect(await check("host-b")).toMatchObject({ status: "fail", found: expect.stringContaining("host-b") });
    chmodSync(join(folder, "client-key.pem"), 0o644);
    expect(await check()).toMatchObject({ status: "fail", fix: expect.stringContaining("chmod o= ") });
    chmodSync(join(folder, "client-key.pem"), 0o640);
    expect((await check()).status).toBe("ok");
    rmSync(join(folder, "server-cert.pem"));
    expect(await check()).toMatchObject({
      status: "fail",
      found: expect.stringContaining("server-cert.pem"),
    });
  });
});

test("an unknown group and a missing program are told", () => {
  for (const words of [
    ["--skip", "nothing"],
    ["--config", "/does/not/exist"],
  ]) {
    const { exitCode, stderr } = Bun.spawnSync([process.execPath, MAIN, "doctor", ...words]);
    expect(exitCode).toBe(1);
    expect(stderr.toString()).toMatch(/the groups are kernel|no such file/);
  }
});

describe("a run of checks", () => {
  const context = { config: undefined } as DoctorContext;
  const group = (run: Group["checks"][number]["run"], more = {}): Group => ({
    name: "group",
    title: "Group",
    checks: [{ id: "one", title: "One", run, ...more }],
  });

  test("an error is a failure, with its advice apart", async () => {
    const results = await runChecks(
      [
        group(() => {
          throw new Problem("there is no disk; none of ours", "install one");
        }),
      ],
      context,
    );
    expect(results).toEqual([
      {
        group: "group",
        id: "one",
        title: "One",
        status: "fail",
        found: "there is no disk; none of ours",
        fix: "Install one.",
      },
    ]);
  });

  test("a check that does not end is a failure, and the next one runs", async () => {
    const never = group(() => new Promise<never>(() => undefined), { timeoutMs: 20 });
    const results = await runChecks([never, group(() => ok("well"))], context);
    expect(results.map(({ status }) => status)).toEqual(["fail", "ok"]);
    expect(results[0]?.found).toContain("no result within");
  });

  test("what is left out or needs a configuration is not run", async () => {
    const run = () => {
      throw new Error("it ran");
    };
    const left = await runChecks([group(run)], context, { skip: ["group"] });
    const needy = await runChecks([group(run, { needsConfig: true })], context);
    expect([...left, ...needy].map(({ status }) => status)).toEqual(["not_asked", "not_asked"]);
  });

  test("several findings of one check are several results", async () => {
    const both = group(() => [ok("a"), { ...fail("b", "mend it"), subject: "vm2" }]);
    expect((await runChecks([both], context)).map(({ subject, status }) => [subject, status])).toEqual([
      [undefined, "ok"],
      ["vm2", "fail"],
    ]);
  });
});

describe("BPF probes", () => {
  test("the helpers of the compiled programs are found in their instructions", () => {
    const names = helperNames();
    const { tc, xdp } = helpersOf(readFileSync(bpfObject()));
    const called = { tc: tc.map((id) => names.get(id)), xdp: xdp.map((id) => names.get(id)) };
    for (const name of [
      "bpf_ringbuf_reserve_dynptr",
      "bpf_clone_redirect",
      "bpf_redirect",
      "bpf_l4_csum_replace",
    ])
      expect(called.tc).toContain(name);
    expect(called.xdp).toContain("bpf_xdp_store_bytes");
    expect(called.tc).not.toContain("bpf_xdp_store_bytes");
    expect([...called.tc, ...called.xdp]).not.toContain(undefined);
  });

  test("what the kernel has works, what it has not is refused", () => {
    const [redirect] = [...helperNames()].find(([, name]) => name === "bpf_redirect")!;
    expect(helperWorks(redirect, "tc")).toBe(true);
    const [storeBytes] = [...helperNames()].find(([, name]) => name === "bpf_xdp_store_bytes")!;
    expect(helperWorks(storeBytes, "xdp")).toBe(true);
    expect(helperWorks(storeBytes, "tc")).toBe(false);
    const [tracing] = [...helperNames()].find(([, name]) => name === "bpf_override_return")!;
    expect(helperWorks(tracing, "tc")).toBe(false);
    expect(helperWorks(100_000, "tc")).toBe(false);
    expect(KERNEL_FUNCTION_NAMES.map(kernelFunctionRefused)).toEqual(
      KERNEL_FUNCTION_NAMES.map(() => undefined),
    );
  });
});

test("the clock's state is that of adjtimex(2)", () => {
  const { frequencyPpm, maximumErrorUs } = clockState();
  expect(Math.abs(frequencyPpm)).toBeLessThanOrEqual(500); // the kernel's limit, MAXFREQ
  expect(maximumErrorUs).toBeGreaterThanOrEqual(0);
});
