/**
 * Child processes of a test run: each in a process group of its own, with a limit, and ended with all it
 * started.
 */

import { closeSync, openSync } from "node:fs";

interface Ended {
  /** Of the process; 128 + the signal's number if a signal ended it. */
  status: number;
  /** What it printed, both streams in the order of arrival. */
  output: string;
  seconds: number;
  /** True if it took longer than its limit and was killed. */
  timedOut: boolean;
}

const underWay = new Set<number>();

/** Kills every process group that still runs. */
export function killAll(): void {
  for (const group of underWay) kill(group);
}

function kill(group: number): void {
  try {
    process.kill(-group, "SIGKILL");
  } catch {
    // The whole group has ended.
  }
}

/**
 * Runs a command to its end, or kills it with its children after `limitMs`. Its output goes to the file `log`
 * too.
 */
export async function run(
  command: readonly string[],
  { limitMs, log, environment = {} }: { limitMs: number; log: string; environment?: Record<string, string> },
): Promise<Ended> {
  const begin = performance.now();
  const file = openSync(log, "a");
  const child = Bun.spawn([...command], {
    env: { ...process.env, ...environment },
    stdin: "ignore",
    stdout: file,
    stderr: file,
    detached: true,
  });
  closeSync(file);
  underWay.add(child.pid);
  let timedOut = false;
  const limit = setTimeout(() => {
    timedOut = true;
    kill(child.pid);
  }, limitMs);
  try {
    const status = await child.exited;
    const output = await Bun.file(log).text();
    return { status, output, seconds: (performance.now() - begin) / 1000, timedOut };
  } finally {
    clearTimeout(limit);
    kill(child.pid);
    underWay.delete(child.pid);
  }
}
