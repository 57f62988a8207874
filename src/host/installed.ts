/**
 * What scripts/setup has put on this machine for the product: a QEMU that can do COLO, a kernel to try KVM
 * with, and the compiled BPF object. scripts/lib/ writes the same layout.
 *
 * Every function throws an Error that names the missing thing and says to run scripts/setup.
 */

import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import { Problem } from "../errors/problem.ts";

const repository = join(import.meta.dir, "../..");

/** The folder of everything that is downloaded: $XDG_CACHE_HOME/colo-agent, else ~/.cache/colo-agent. */
export function cacheDirectory(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "colo-agent");
}

export function present(path: string, what: string): string {
  if (!existsSync(path)) throw new Problem(`${what} is missing (${path})`, "run scripts/setup");
  return path;
}

function qemuFolder(): string {
  return join(cacheDirectory(), "qemu");
}

function qemuLibraries(folder: string): string {
  return join(folder, "usr/lib/x86_64-linux-gnu");
}

/** argv that starts a program of an unpacked QEMU through its own loader and libraries. */
function programArgv(program: string, folder = qemuFolder()): string[] {
  const path = present(join(folder, "usr/bin", program), program);
  const libraries = qemuLibraries(folder);
  return [join(libraries, "ld-linux-x86-64.so.2"), "--library-path", libraries, path];
}

export function systemArgv(folder: string): string[] {
  const share = join(folder, "usr/share");
  return [
    ...programArgv("qemu-system-x86_64", folder),
    ...["-L", join(share, "qemu"), "-L", join(share, "seabios")],
  ];
}

/** The beginning of an argv that starts qemu-system-x86_64; options follow. Use it with qemuEnvironment(). */
export function qemuArgv(): string[] {
  return systemArgv(qemuFolder());
}

/** The beginning of an argv that starts qemu-img; its subcommand follows. Use it with qemuEnvironment(). */
export function qemuImgArgv(): string[] {
  return programArgv("qemu-img");
}

/** This process's environment with what the unpacked QEMU needs to find its loadable modules. */
export function qemuEnvironment(): Record<string, string> {
  return environmentOf(qemuFolder());
}

export function environmentOf(folder: string): Record<string, string> {
  const environment: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) if (value !== undefined) environment[name] = value;
  environment.QEMU_MODULE_DIR = join(qemuLibraries(folder), "qemu");
  return environment;
}

/** Path of the guest's kernel, for -kernel. */
export function guestKernel(): string {
  return present(join(cacheDirectory(), "guest/image/vmlinuz"), "the guest's kernel");
}

/** Path of the compiled BPF object. */
export function bpfObject(): string {
  return present(join(repository, "build/colo.bpf.o"), "the BPF object");
}
