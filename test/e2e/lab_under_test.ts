/**
 * A lab of the tests' own: a name of its own (test-...), taken down before (what a crash left behind) and
 * after.
 */
import { afterAll, beforeAll } from "bun:test";
import { join } from "node:path";
import { Lab } from "../../src/lab/lab.ts";
import type { LabOptions } from "../../src/lab/lab_options.ts";
import type { HostLetter } from "../../src/lab/network.ts";

const LAB_TIMEOUT_MS = 240_000;
/**
 * As deploy/colo-agent.service gives it: an agent has to get a processor in time to renew its lease, whatever
 * else the machine does.
 */
export const NICENESS = -10;

/**
 * Brings a lab up for a file's tests. Call at the top of a `describe`; use the returned function inside the
 * tests.
 */
export function labUnderTest(topic: string, options: Partial<LabOptions> = {}): () => Lab {
  const name = `test-${topic}`;
  let lab: Lab | undefined;
  beforeAll(async () => {
    await Lab.down(name);
    lab = await Lab.up({ name, memoryMib: 256, proxy: "agent", niceness: NICENESS, ...options });
  }, LAB_TIMEOUT_MS);
  afterAll(async () => {
    await Lab.down(name);
  }, LAB_TIMEOUT_MS);
  return () => {
    if (lab === undefined) throw new Error("the lab is not up");
    return lab;
  };
}

const MAIN = join(import.meta.dir, "../../src/cli/main.ts");

/** Runs a command of an administrator on a host. */
export async function operate(
  lab: Lab,
  host: HostLetter,
  ...words: string[]
): Promise<{ out: string; error: string; exitCode: number }> {
  const child = Bun.spawn([process.execPath, MAIN, ...words, "--socket", lab.agentSocket(host)], {
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, error] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { out, error, exitCode: await child.exited };
}
