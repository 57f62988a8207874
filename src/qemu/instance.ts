/**
 * One VM's QEMU as a process that outlives the agent: started in a scope or session of its own, found again
 * by a later agent, and ended only if it is still the same process.
 */
import { spawn } from "node:child_process";
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { z } from "zod";
import { jsonAs } from "../host/json.ts";
import { QmpClient } from "../qmp/client.ts";
import { qemuArguments } from "./arguments.ts";
import { createOverlays, diskBytes } from "./images.ts";
import { endProcess, identify, isAlive, type ProcessIdentity } from "./process.ts";
import { type QemuRole, type QemuSettings, qemuPaths } from "./settings.ts";

const LOG_LINES = 10;

/** QEMU could not be started; the message holds the end of its log. */
class QemuStartError extends Error {
  override name = "QemuStartError";
}

/** What starts a process in a scope of its own, so that the end of the agent's service does not end it. */
export function scopeCommand(vm: string): string[] {
  return [
    ...["systemd-run", "--scope", "--quiet", "--collect", `--unit=colo-${vm}`],
    ...[`--description=QEMU of VM ${vm}`, "--"],
  ];
}

function scope(vm: string): string[] {
  // sd_booted(3)
  return existsSync("/run/systemd/system") && Bun.which("systemd-run") !== null ? scopeCommand(vm) : [];
}

/** The whole command line, without a scope. */
export function qemuCommand(settings: QemuSettings, role: QemuRole): string[] {
  return [...settings.command, ...qemuArguments(settings, role)];
}

/** The VM's QEMU, whichever agent has started it; undefined if it does not run. */
export function findQemu(settings: Pick<QemuSettings, "directory">): ProcessIdentity | undefined {
  const { identity, pidFile } = qemuPaths(settings.directory);
  const known = parsed(identity);
  if (known !== undefined && isAlive(known)) return known;
  // The agent may have died between starting it and writing that down.
  const pid = Number(text(pidFile));
  if (!(pid > 0) || !text(`/proc/${pid}/cmdline`).split("\0").includes(pidFile)) return undefined;
  try {
    return identify(pid);
  } catch {
    // It has ended since.
    return undefined;
  }
}

/**
 * Ends the VM's QEMU with SIGKILL, waits until nothing of it is left, and removes its sockets and pid file.
 * @throws ProcessEndError if it does not end in time; nothing is removed then
 */
export async function endQemu(settings: Pick<QemuSettings, "directory">): Promise<void> {
  const found = findQemu(settings);
  if (found !== undefined) await endProcess(found);
  const { qmp, pidFile, identity } = qemuPaths(settings.directory);
  for (const path of [qmp, pidFile, identity]) rmSync(path, { force: true });
}

/**
 * Starts QEMU and returns once QMP answers. A primary runs at once, from its disks; a secondary gets fresh
 * overlays and waits.
 * @throws QemuStartError if it ends, or does not answer within `timeoutMs`; other Errors if its disks are not
 * as they have to be
 */
export async function startQemu(
  settings: QemuSettings,
  role: QemuRole,
  timeoutMs = 60_000,
): Promise<ProcessIdentity> {
  const running = findQemu(settings);
  if (running !== undefined) {
    throw new QemuStartError(`the QEMU of VM ${settings.name} runs already, as process ${running.pid}`);
  }
  const paths = qemuPaths(settings.directory);
  mkdirSync(settings.directory, { recursive: true, mode: 0o700 });
  for (const path of [paths.qmp, paths.pidFile, paths.identity]) rmSync(path, { force: true });
  if (role === "secondary") await createOverlays(settings);
  else for (const disk of settings.disks) await diskBytes(settings, disk);

  const command = [...scope(settings.name), ...qemuCommand(settings, role)];
  const log = openSync(paths.log, "a");
  let exit: string | undefined;
  const child = spawn(command[0] as string, command.slice(1), {
    detached: true,
    stdio: ["ignore", log, log],
    env: { ...process.env, ...settings.environment },
  });
  closeSync(log);
  child.once("error", (error) => {
    exit = error.message;
  });
  child.once("exit", (code, signal) => {
    exit = signal === null ? `exit status ${code}` : `signal ${signal}`;
  });
  child.unref();
  const fail = (what: string) =>
    new QemuStartError(`the QEMU of VM ${settings.name} ${what}\n${tail(paths.log)}`);
  let identity: ProcessIdentity | undefined;
  if (child.pid !== undefined) {
    try {
      identity = identify(child.pid);
      writeFileSync(`${paths.identity}.new`, JSON.stringify(identity));
      renameSync(`${paths.identity}.new`, paths.identity);
    } catch {
      // It has ended already.
    }
  }
  const deadlineMs = performance.now() + timeoutMs;
  for (;;) {
    await Bun.sleep(20);
    if (exit !== undefined || identity === undefined || !isAlive(identity)) {
      await Bun.sleep(20); // what it said last
      throw fail(`ended at once: ${exit ?? "it could not be started"}`);
    }
    if (existsSync(paths.qmp)) {
      try {
        const probe = await QmpClient.connect(paths.qmp, { connectTimeoutMs: 2_000 });
        probe.close();
        return identity;
      } catch {
        // Not yet.
      }
    }
    if (performance.now() > deadlineMs) {
      await endProcess(identity);
      throw fail(`did not answer on ${paths.qmp} within ${timeoutMs} ms`);
    }
  }
}

const processIdentity: z.ZodType<ProcessIdentity> = z.object({
  pid: z.number().int().min(1),
  startTicks: z.number().int().min(0),
});

/** undefined: there is no file, or it is not what an agent writes; then QEMU's own pid file is looked at. */
function parsed(path: string): ProcessIdentity | undefined {
  try {
    return jsonAs(processIdentity, readFileSync(path, "utf8"), path);
  } catch {
    // No agent has written it whole; QEMU's own pid file tells then.
    return undefined;
  }
}

function text(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    // There is no such file.
    return "";
  }
}

function tail(path: string): string {
  return text(path).trimEnd().split("\n").slice(-LOG_LINES).join("\n") || "(no log)";
}
