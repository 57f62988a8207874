/**
 * What a test run that was killed may have left on this machine. All that tests make is named colo-test-...:
 * namespaces, folders in /tmp, pinned BPF objects; labs are named test-... . Any other lab is left alone.
 */
import { existsSync, readdirSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Lab } from "../../src/lab/lab.ts";

const PREFIX = "colo-test-";
const LABS = "/run/colo-agent-lab";
const TEST_LAB = "test-";
const NAMESPACES = "/run/netns";
/**
 * A younger folder may belong to a test without root that runs at this moment; each run makes its own anyway.
 */
const FOLDER_AGE_MS = 3_600_000;
const PINS = "/sys/fs/bpf/colo-test";

function namesIn(directory: string, prefix: string): string[] {
  return existsSync(directory) ? readdirSync(directory).filter((name) => name.startsWith(prefix)) : [];
}

/**
 * Processes whose command line names a folder of the tests and whose parent has ended: QEMUs, agents and
 * servers that outlived their test. Those of a test that runs at this moment have it as their parent.
 */
function orphans(): number[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => {
      try {
        const words = readFileSync(`/proc/${pid}/cmdline`, "utf8");
        if (!words.includes(join(tmpdir(), PREFIX)) && !words.includes(`${LABS}/${TEST_LAB}`)) return false;
        // proc(5): "pid (comm) state ppid"; comm may contain spaces and brackets.
        const fields = readFileSync(`/proc/${pid}/stat`, "utf8")
          .replace(/^.*\) /s, "")
          .split(" ");
        return fields[1] === "1";
      } catch {
        return false; // It has ended meanwhile.
      }
    })
    .map(Number);
}

/** Mount points below the tests' folders, the innermost first. */
function mounts(): string[] {
  const points = readFileSync("/proc/mounts", "utf8")
    .split("\n")
    .map((line) => line.split(" ")[1] ?? "");
  return points.filter((path) => path.startsWith(join(tmpdir(), PREFIX))).reverse();
}

function killProcess(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

/** Takes the labs of tests down; returns a line for each. */
export async function removeLabs(): Promise<string[]> {
  const names = namesIn(LABS, TEST_LAB);
  for (const name of names) await Lab.down(name);
  return names.map((name) => `lab ${name}`);
}

/**
 * Removes it all and returns what there was, a line for each thing. Needs root for all but folders in /tmp.
 */
export async function removeLeftovers(): Promise<string[]> {
  const removed = await removeLabs();
  for (const pid of orphans()) {
    killProcess(pid);
    removed.push(`process ${pid}`);
  }
  for (const name of namesIn(NAMESPACES, PREFIX)) {
    const pids = Bun.spawnSync(["ip", "netns", "pids", name]).stdout.toString().split("\n").filter(Boolean);
    for (const pid of pids) killProcess(Number(pid));
    Bun.spawnSync(["ip", "netns", "delete", name]);
    removed.push(`namespace ${name}`);
  }
  if (existsSync(PINS)) {
    rmSync(PINS, { recursive: true, force: true });
    removed.push(PINS);
  }
  for (const path of mounts()) {
    Bun.spawnSync(["umount", path]);
    removed.push(`mount ${path}`);
  }
  for (const path of namesIn(tmpdir(), PREFIX).map((name) => join(tmpdir(), name))) {
    if (Date.now() - statSync(path).mtimeMs < FOLDER_AGE_MS) continue;
    rmSync(path, { recursive: true, force: true });
    removed.push(path);
  }
  return removed;
}
