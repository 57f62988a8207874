/**
 * Builds tcg_checkpoint.c, without which a secondary under TCG runs stale code with a fast clock on
 * incomplete memory; see there.
 */
import { existsSync, mkdirSync, readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { cacheDirectory } from "../host/installed.ts";

const SOURCE = join(import.meta.dir, "tcg_checkpoint.c");

/** The compiler's arguments. The plugin uses no library, so it fits any QEMU whatever libc that brings. */
export function compileCommand(compiler: string, source: string, output: string): string[] {
  return [compiler, "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-nostdlib", "-o", output, source];
}

/**
 * Path of the plugin for QEMU's -plugin option, built on first use and after each change of its source.
 * @throws Error if there is no C compiler
 */
export function tcgCheckpointPlugin(): string {
  const hash = new Bun.CryptoHasher("sha256").update(readFileSync(SOURCE)).digest("hex").slice(0, 16);
  const path = join(cacheDirectory(), `tcg_checkpoint-${hash}.so`);
  if (existsSync(path)) return path;
  const compiler = Bun.which("clang") ?? Bun.which("cc");
  if (compiler === null) throw new Error("The lab's QEMU plugin needs a C compiler, run scripts/setup");
  mkdirSync(cacheDirectory(), { recursive: true });
  const unfinished = `${path}.${process.pid}`;
  const { exitCode, stderr } = Bun.spawnSync(compileCommand(compiler, SOURCE, unfinished));
  if (exitCode !== 0) throw new Error(`The lab's QEMU plugin does not compile: ${stderr.toString().trim()}`);
  renameSync(unfinished, path);
  return path;
}
