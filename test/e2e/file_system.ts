/** The ext4 file system on the lab guest's second disk, seen from the host (guest/README.md: port 7008). */
import { copyFileSync, truncateSync, writeFileSync } from "node:fs";
import { patternBytes } from "../../src/lab/pattern.ts";

const BYTES = 32 << 20;
const BLOCK_BYTES = 4096;
/** The guest removes older ones. */
const FILES_KEPT = 64;

function run(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command);
  if (exitCode !== 0) throw new Error(`${command.join(" ")}: status ${exitCode}\n${stdout}${stderr}`);
  return stdout.toString("latin1");
}

/** Makes an empty one, with a journal, in a new file `path`; returns the path. */
export function emptyFileSystem(path: string): string {
  writeFileSync(path, "");
  truncateSync(path, BYTES);
  run("mkfs.ext4", "-q", "-b", String(BLOCK_BYTES), "-J", "size=4", path);
  return path;
}

/**
 * Replays the journal of the file system in `image` on a copy, `copy`, as a mount would, and checks it: not
 * one thing to repair, and the newest of `count` acknowledged files have the content that was acknowledged.
 * Throws at the first wrong thing.
 */
export function verifyFileSystem(image: string, count: number, copy: string): void {
  copyFileSync(image, copy);
  run("e2fsck", "-y", "-E", "journal_only", copy);
  run("e2fsck", "-f", "-n", copy);
  for (let n = Math.max(0, count - FILES_KEPT); n < count; n++) {
    const block = Buffer.from(patternBytes(n * BLOCK_BYTES, BLOCK_BYTES)).toString("latin1");
    const content = run("debugfs", "-R", `cat /files/${n}`, copy);
    if (content !== block.repeat(1 + (n % 8)))
      throw new Error(`file ${n} of ${count} acknowledged ones is not what was acknowledged`);
  }
}
