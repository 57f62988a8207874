/** Which QEMU the doctor tries, and small QEMUs of it. */

import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import type { Config } from "../config/config.ts";
import { Problem } from "../errors/problem.ts";
import { qemuArgv, qemuEnvironment, qemuImgArgv } from "../host/installed.ts";

const PROGRAM = "qemu-system-x86_64";

export interface DoctorQemu {
  /** Begins each command line. */
  argv: readonly string[];
  /** qemu-img of the same build; undefined if there is none. */
  imgArgv: readonly string[] | undefined;
  environment: Record<string, string>;
  /** Where it comes from, for people. */
  description: string;
}

/**
 * The given program, else the configuration's first managed QEMU, else the machine's own, else the one that
 * scripts/setup unpacked. Throws an Error if there is none.
 */
export function findQemu(named?: string, config?: Pick<Config, "vm">): DoctorQemu {
  const vm = config?.vm.find(({ managed }) => managed !== undefined);
  if (named === undefined && vm?.managed !== undefined) {
    const { command, imgCommand, environment: added } = vm.managed;
    return {
      argv: command,
      imgArgv: imgCommand,
      environment: { ...environment(), ...added },
      description: `QEMU of VM ${vm.name}`,
    };
  }
  const path = named ?? Bun.which(PROGRAM) ?? undefined;
  if (path !== undefined) {
    if (!existsSync(path))
      throw new Problem(`there is no ${path}`, `give the path of ${PROGRAM} with --qemu`);
    const beside = join(dirname(path), "qemu-img");
    const img = existsSync(beside) ? beside : (Bun.which("qemu-img") ?? undefined);
    return {
      argv: [path],
      imgArgv: img === undefined ? undefined : [img],
      environment: environment(),
      description: path,
    };
  }
  try {
    return {
      argv: qemuArgv(),
      imgArgv: qemuImgArgv(),
      environment: qemuEnvironment(),
      description: "the one of scripts/setup",
    };
  } catch {
    // scripts/setup was not run here either.
    throw new Problem(`there is no ${PROGRAM}`, "install QEMU, or give its path with --qemu");
  }
}

function environment(): Record<string, string> {
  return Object.fromEntries(
    Object.entries(process.env).filter((pair): pair is [string, string] => pair[1] !== undefined),
  );
}

interface GuestRun {
  /** Exit status; undefined if it had to be killed. */
  status: number | undefined;
  tookMs: number;
  /** What QEMU said. */
  complaint: string;
}

/** Runs a QEMU until it ends, or kills it after `limitMs`. */
export async function runGuest(
  qemu: DoctorQemu,
  arguments_: readonly string[],
  limitMs: number,
): Promise<GuestRun> {
  const begun = performance.now();
  const child = Bun.spawn([...qemu.argv, ...arguments_], {
    stdin: "ignore",
    stdout: "ignore",
    stderr: "pipe",
    env: qemu.environment,
  });
  const words = new Response(child.stderr).text();
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, limitMs);
  const status = await child.exited;
  clearTimeout(timer);
  return {
    status: late ? undefined : status,
    tookMs: performance.now() - begun,
    complaint: (await words).trim(),
  };
}

/** The last line of a file, for messages; "" if there is none. */
export function lastLine(path: string): string {
  try {
    return readFileSync(path, "latin1").trimEnd().split("\n").at(-1)?.trim() ?? "";
  } catch {
    // There is no file: QEMU has said nothing.
    return "";
  }
}
