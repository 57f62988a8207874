/**
 * Processes that outlive the command that starts them, and are ended by id only if they are still the same
 * ones.
 */
import { spawn } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync } from "node:fs";

export interface ProcessIdentity {
  pid: number;
  /** Clock ticks since boot (proc(5), stat field 22): tells a process from a later one with the same id. */
  startTicks: number;
}

function statFields(pid: number): string[] | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    return stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  } catch {
    // There is no such process, or not any more.
    return undefined;
  }
}

/** The identity of a running process. Throws when there is none. */
export function identify(pid: number): ProcessIdentity {
  const fields = statFields(pid);
  if (fields === undefined) throw new Error(`process ${pid} is not running`);
  return { pid, startTicks: Number(fields[19]) };
}

/**
 * Whether the process still has anything: its first thread may be a zombie already while others are ending,
 * and only the last of them closes the files (a tap is busy until then).
 */
export function isAlive(process: ProcessIdentity): boolean {
  const fields = statFields(process.pid);
  if (fields === undefined || Number(fields[19]) !== process.startTicks) return false;
  return fields[0] !== "Z" || threads(process.pid) > 1;
}

function threads(pid: number): number {
  try {
    return readdirSync(`/proc/${pid}/task`).length;
  } catch {
    // It has ended since.
    return 0;
  }
}

/**
 * What a signalled process may take to end: longer means that it waits in the kernel, for storage that does
 * not answer.
 */
const END_LIMIT_MS = 30_000;

/** A process has not ended in time; the message says where it waits. */
export class ProcessEndError extends Error {
  override name = "ProcessEndError";
}

/**
 * Ends a process and waits until it is gone; one that is gone already is no error.
 * @throws ProcessEndError if it is still there after `limitMs`: SIGKILL does not end a process in an
 * uninterruptible sleep
 */
export async function endProcess(
  identity: ProcessIdentity,
  signal: NodeJS.Signals = "SIGKILL",
  limitMs = END_LIMIT_MS,
): Promise<void> {
  if (!isAlive(identity)) return;
  try {
    process.kill(identity.pid, signal);
  } catch {
    // It has ended since.
    return;
  }
  const deadline = performance.now() + limitMs;
  while (isAlive(identity)) {
    if (performance.now() > deadline) {
      const [state = "?"] = statFields(identity.pid) ?? [];
      throw new ProcessEndError(
        `process ${identity.pid} has not ended ${limitMs / 1000} s after ${signal} (state ${state}); in ` +
          `state D it waits in the kernel, most often for storage: look at /proc/${identity.pid}/stack`,
      );
    }
    await Bun.sleep(2);
  }
}

/** Starts a process in a session of its own, with its output in `logPath`. */
export function startDetached(command: readonly string[], logPath: string): ProcessIdentity {
  const [program, ...words] = command;
  if (program === undefined) throw new Error("there is no command to start");
  const log = openSync(logPath, "a");
  try {
    const child = spawn(program, words, { detached: true, stdio: ["ignore", log, log] });
    child.unref();
    if (child.pid === undefined) throw new Error(`cannot start ${command.join(" ")}`);
    return identify(child.pid);
  } finally {
    closeSync(log);
  }
}
