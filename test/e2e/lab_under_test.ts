/** A lab of the tests' own: a name of its own (test-...), taken down before (what a crash left behind) and after. */
import { afterAll, beforeAll } from "bun:test";
import { join } from "node:path";
import { Lab, type LabOptions } from "../../src/lab/lab.ts";
import type { HostLetter } from "../../src/lab/network.ts";

const LAB_TIMEOUT_MS = 240_000;

/** Brings a lab up for a file's tests. Call at the top of a `describe`; use the returned function inside the tests. */
export function labUnderTest(topic: string, options: Partial<LabOptions> = {}): () => Lab {
  const name = `test-${topic}`;
  let lab: Lab | undefined;
  beforeAll(async () => {
    await Lab.down(name);
    lab = await Lab.up({ name, memoryMib: 256, proxy: "agent", ...options });
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

/** Values of a Prometheus text by "name{labels}". */
export function samples(text: string): Map<string, number> {
  const values = new Map<string, number>();
  for (const line of text.split("\n")) {
    const match = /^([a-z_]+(?:\{[^}]*\})?) (\S+)$/.exec(line);
    if (match !== null) values.set(match[1]!, Number(match[2]));
  }
  return values;
}

/** Sum of the samples of one metric, over all labels or those that contain `label`. */
export function total(text: string, name: string, label = ""): number {
  let sum = 0;
  for (const [key, value] of samples(text)) {
    if ((key === name || key.startsWith(`${name}{`)) && key.includes(label)) sum += value;
  }
  return sum;
}
