/** `colo-agent doctor --config` on a host of a running pair, and after its replication link was spoilt. */
import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import type { Status } from "../../src/doctor/check.ts";
import { GROUPS } from "../../src/doctor/doctor.ts";
import { inNamespace, run } from "../../src/lab/network.ts";
import { labUnderTest } from "./lab_under_test.ts";

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");
const ASKED = ["qemu", "link", "arbiter", "certificates", "storage", "vms"];

interface Result {
  group: string;
  id: string;
  subject?: string;
  status: Status;
  found: string;
  fix?: string;
}

describe("a host of a pair", () => {
  const lab = labUnderTest("doctor");

  function doctor(): { status: number; checks: Result[] } {
    const skipped = GROUPS.filter(({ name }) => !ASKED.includes(name)).flatMap(({ name }) => [
      "--skip",
      name,
    ]);
    const config = join(lab().directory, "a", "agent.toml");
    const { exitCode, stdout, stderr } = Bun.spawnSync([
      ...inNamespace(lab().namespaces.a),
      ...[process.execPath, MAIN, "doctor", "--json", "--config", config, ...skipped],
    ]);
    if (stdout.length === 0) throw new Error(stderr.toString());
    const { checks } = JSON.parse(stdout.toString()) as { checks: Result[] };
    return { status: exitCode, checks: checks.filter(({ group }) => ASKED.includes(group)) };
  }

  test("what the configuration names is found, and the agents are not disturbed", async () => {
    const { status, checks } = doctor();
    // The lab's certificates are made for 30 days, and less is left of them.
    expect(checks.filter((one) => one.status !== "ok")).toMatchObject([
      { group: "certificates", status: "warn" },
    ]);
    expect(status).toBe(0);
    const found = (group: string, id: string) =>
      checks.find((one) => one.group === group && one.id === id)?.found;
    expect(
      checks
        .filter(({ group }) => group === "qemu")
        .map((one) => one.found)
        .join("\n"),
    ).toContain("QEMU of VM vm1");
    expect(found("link", "mtu")).toContain("in one piece");
    expect(found("link", "quickack")).toContain("quickack 1");
    expect(found("link", "peer")).toContain("answers at");
    expect(found("arbiter", "records")).toContain("held by test-doctor-a");
    expect((await lab().agentStatus("a"))?.protected).toBe(true);
  });

  test("a narrow link, a lost peer and a lost arbiter are told with what to do", async () => {
    await lab().kill("b", "agent");
    const witness = lab().process("witness")!;
    process.kill(witness.pid, "SIGKILL");
    await run("ip", "-netns", lab().namespaces.a, "link", "set", "repl", "mtu", "1500");
    const { status, checks } = doctor();
    expect(status).toBe(1);
    const bad = (group: string, id: string) => checks.find((one) => one.group === group && one.id === id)!;
    expect(bad("link", "mtu")).toMatchObject({ status: "fail" });
    expect(bad("link", "mtu").found).toContain("has an MTU of 1500, the tunnel needs 1550");
    expect(bad("link", "peer")).toMatchObject({ status: "warn" });
    expect(bad("arbiter", "records")).toMatchObject({ status: "fail" });
    for (const one of checks) expect(one.fix === undefined).toBe(one.status === "ok");
  });
});
