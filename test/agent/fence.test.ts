/** The fence command, with real programs. */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { chmodSync, existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CommandFence, openFence } from "../../src/agent/fence.ts";
import type { FenceConfig } from "../../src/config/safeguards.ts";
import { until } from "../until.ts";

const FACTS = { agent: "host-b", peer: "host-a", vm: "vm1", term: 4 };

let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-fence-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

function script(text: string, timeoutMs = 20_000): FenceConfig {
  const path = join(directory, "fence");
  writeFileSync(path, `#!/bin/bash\n${text}\n`);
  chmodSync(path, 0o755);
  return { command: [path, directory, "an argument"], timeout_ms: timeoutMs, required: true };
}

function isAlive(pid: number): boolean {
  try {
    // A zombie has ended; whoever adopted it has not noticed yet.
    return !readFileSync(`/proc/${pid}/stat`, "latin1").includes(") Z ");
  } catch {
    return false;
  }
}

async function pidIn(name: string): Promise<number> {
  const path = join(directory, name);
  await until(
    "the command has written its process id",
    () => existsSync(path) && readFileSync(path, "utf8").trim() !== "",
  );
  return Number(readFileSync(path, "utf8"));
}

async function gone(pid: number): Promise<void> {
  await until("the command's process has ended", () => !isAlive(pid));
}

describe("fence", () => {
  test("success, with its arguments, the facts in the environment and its output", async () => {
    const config = script(
      'echo "$2 $COLO_AGENT $COLO_PEER $COLO_VM $COLO_TERM"; echo complaint >&2; read x || echo no input',
    );
    const result = await new CommandFence(config).run(FACTS);
    expect(result.ok).toBe(true);
    expect(result.output).toContain("an argument host-b host-a vm1 4\n");
    expect(result.output).toContain("complaint\n");
    expect(result.output).toContain("no input\n");
    expect(result.reason).toBeUndefined();
  });

  test("failure, with the status", async () => {
    expect(await new CommandFence(script("echo cannot; exit 3")).run(FACTS)).toEqual({
      ok: false,
      output: "cannot\n",
      reason: "ended with status 3",
    });
    expect(await new CommandFence(script("kill -TERM $$")).run(FACTS)).toMatchObject({
      ok: false,
      reason: "ended by SIGTERM",
    });
  });

  test("one that hangs is killed with all it has started, even if they ignore signals", async () => {
    const hanging = script(
      `trap "" TERM INT HUP\necho $$ > "$1/leader"\n(trap "" TERM HUP; echo $BASHPID > "$1/child"; sleep ` +
        "1000) &\nsleep 1000",
      700,
    );
    const running = new CommandFence(hanging).run(FACTS);
    const [leader, child] = [await pidIn("leader"), await pidIn("child")];
    expect([isAlive(leader), isAlive(child)]).toEqual([true, true]);
    expect(await running).toMatchObject({ ok: false, reason: "no end within 700 ms; killed" });
    await gone(leader);
    await gone(child);
  });

  test("one that is no longer wanted is killed", async () => {
    const abort = new AbortController();
    const running = new CommandFence(script('echo $$ > "$1/leader"; sleep 1000')).run(FACTS, abort.signal);
    const leader = await pidIn("leader");
    abort.abort();
    expect(await running).toMatchObject({ ok: false, reason: "no longer wanted; killed" });
    await gone(leader);
    expect(await new CommandFence(script('touch "$1/ran"')).run(FACTS, abort.signal)).toMatchObject({
      ok: false,
    });
    expect(existsSync(join(directory, "ran"))).toBe(false);
  });

  test("one that leaves a child behind counts when it ends, and the child is ended", async () => {
    const fence = new CommandFence(
      script('(echo $BASHPID > "$1/child"; sleep 1000) &\nwait -n & sleep 0.1; echo done'),
    );
    const result = await fence.run(FACTS);
    expect(result).toEqual({ ok: true, output: "done\n" });
    await gone(await pidIn("child"));
  });

  test("endless output is cut, not collected", async () => {
    const result = await new CommandFence(script("yes | head -c 3000000; echo the end")).run(FACTS);
    expect(result.ok).toBe(true);
    expect(result.output.length).toBeLessThanOrEqual(16_384);
    expect(result.output.endsWith("the end\n")).toBe(true);
  });

  test("a program that is not there is told at start, and later is a failure", async () => {
    const missing = { command: [join(directory, "nothing")], timeout_ms: 1_000, required: true };
    expect(() => openFence(missing)).toThrow(/nothing cannot be run/);
    expect(await new CommandFence(missing).run(FACTS)).toMatchObject({
      ok: false,
      reason: expect.stringContaining("cannot be run"),
    });
    const config = script("exit 0");
    expect(() => openFence(config)).not.toThrow();
    chmodSync(config.command[0]!, 0o644);
    expect(() => openFence(config)).toThrow(/cannot be run/);
  });

  test("none configured: nothing is required, and nothing counts as fenced", async () => {
    const none = openFence(undefined);
    expect(none.policy).toBe("none");
    expect(await none.run(FACTS)).toMatchObject({ ok: false });
  });

  test("required or tried, as configured", () => {
    const config = script("exit 0");
    expect(openFence(config).policy).toBe("required");
    expect(openFence({ ...config, required: false }).policy).toBe("try");
  });
});
