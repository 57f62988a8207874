/** Temporary folders of processes that were killed, with the QEMUs that listen in them. */
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/**
 * Removes each folder `<prefix><pid>-...` whose process has ended. Its file "pid" names a QEMU to end first.
 *
 * @param prefix of the folders' names; letters, digits and "-"
 */
export function removeLeftoverFolders(prefix: string): void {
  for (const name of readdirSync(tmpdir())) {
    const owner = new RegExp(`^${prefix}(\\d+)-`).exec(name)?.[1];
    if (owner === undefined || existsSync(`/proc/${owner}`)) continue;
    const folder = join(tmpdir(), name);
    try {
      const pid = Number(readFileSync(join(folder, "pid"), "utf8"));
      // Only if it is still the process that listens in this folder.
      if (readFileSync(`/proc/${pid}/cmdline`, "latin1").includes(folder)) process.kill(pid, "SIGKILL");
    } catch {
      // It has ended already.
    }
    rmSync(folder, { recursive: true, force: true });
  }
}
