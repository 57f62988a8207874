/**
 * Where the lab finds what scripts/setup has put on this machine: a QEMU that can do COLO, the guest's kernel and
 * initramfs, the guest with servers and their clients, promtool, etcd, and the compiled BPF object. scripts/lib/ writes the same layout.
 *
 * Every function throws an Error that names the missing thing and says to run scripts/setup.
 */
import { existsSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

const repository = join(import.meta.dir, "../..");

/** The folder of everything that is downloaded: $XDG_CACHE_HOME/colo-agent, else ~/.cache/colo-agent. */
export function cacheDirectory(): string {
  return join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "colo-agent");
}

function present(path: string, what: string): string {
  if (!existsSync(path)) throw new Error(`${what} is missing (${path}), run scripts/setup`);
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

function systemArgv(folder: string): string[] {
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

/** QEMUs that cannot do COLO, for tests: Debian 12's own and that of its backports (scripts/lib/wrong_qemu.sh). */
export const WRONG_QEMUS = ["7.2", "10.0"] as const;
export type WrongQemu = (typeof WRONG_QEMUS)[number];

/** As qemuArgv() and qemuEnvironment(), for one of {@link WRONG_QEMUS}. */
export function wrongQemu(name: WrongQemu): { argv: string[]; environment: Record<string, string> } {
  const folder = join(cacheDirectory(), `qemu-${name}`);
  return { argv: systemArgv(folder), environment: environmentOf(folder) };
}

/** The beginning of an argv that starts qemu-img; its subcommand follows. Use it with qemuEnvironment(). */
export function qemuImgArgv(): string[] {
  return programArgv("qemu-img");
}

/** This process's environment with what the unpacked QEMU needs to find its loadable modules. */
export function qemuEnvironment(): Record<string, string> {
  return environmentOf(qemuFolder());
}

function environmentOf(folder: string): Record<string, string> {
  const environment: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) if (value !== undefined) environment[name] = value;
  environment.QEMU_MODULE_DIR = join(qemuLibraries(folder), "qemu");
  return environment;
}

/** Path of the guest's kernel, for -kernel. */
export function guestKernel(): string {
  return present(join(cacheDirectory(), "guest/image/vmlinuz"), "the guest's kernel");
}

/** Path of the guest's initramfs, for -initrd. */
export function guestInitrd(): string {
  return present(join(cacheDirectory(), "guest/image/initrd.img"), "the guest's initramfs");
}

/** Path of the initramfs that boots the guest with servers from its disk; its kernel is guestKernel(). */
export function debianGuestInitrd(): string {
  return present(
    join(cacheDirectory(), "debian-guest/image/initrd.img"),
    "the initramfs of the guest with servers",
  );
}

/** Path of that guest's disk image (raw, sparse, 1 GiB): to be copied, not to be written. */
export function debianGuestDisk(): string {
  return present(join(cacheDirectory(), "debian-guest/image/disk.raw"), "the disk of the guest with servers");
}

/** Clients of the servers in the Debian guest. */
export type DebianGuestTool =
  | "wrk"
  | "curl"
  | "redis-cli"
  | "redis-benchmark"
  | "psql"
  | "pgbench"
  | "pg_amcheck";

/** The beginning of an argv that starts one of them through the loader and the libraries unpacked with it. */
export function debianGuestToolArgv(tool: DebianGuestTool): string[] {
  const folder = join(cacheDirectory(), "debian-guest/tools");
  const program = present(join(folder, "bin", tool), tool);
  return [join(folder, "lib/ld-linux-x86-64.so.2"), "--library-path", join(folder, "lib"), program];
}

/** Addresses of the guest's one network card, each with its prefix length, and the way out of that network. */
export interface GuestAddresses {
  ip4?: string;
  ip6?: string;
  gw4?: string;
  gw6?: string;
}

/**
 * Kernel command line for -append. The console is ttyS0; a panic ends the machine (with -no-reboot, QEMU too).
 * `extra` goes behind, for example "sysctl.net.ipv4.tcp_timestamps=0".
 */
export function guestCommandLine(addresses: GuestAddresses, extra = ""): string {
  // The kernel's tests of its own ciphers take a tenth of the boot under emulation.
  const words = ["console=ttyS0", "quiet", "panic=-1", "cryptomgr.notests"];
  for (const name of ["ip4", "ip6", "gw4", "gw6"] as const) {
    if (addresses[name]) words.push(`colo.${name}=${addresses[name]}`);
  }
  if (extra) words.push(extra);
  return words.join(" ");
}

/** What the guest prints on its console when all services listen. */
export const guestReadyPattern = /colo-guest: READY boot=([0-9a-f]{32})/;

/** Path of the compiled BPF object. */
export function bpfObject(): string {
  return present(join(repository, "build/colo.bpf.o"), "the BPF object");
}

/** Path of promtool: the machine's own if it has one, else the one unpacked into the cache. */
export function promtool(): string {
  return Bun.which("promtool") ?? present(join(cacheDirectory(), "promtool/usr/bin/promtool"), "promtool");
}

/** Path of etcd, which tests start: the machine's own if it has one, else the one unpacked into the cache. */
export function etcdProgram(): string {
  return Bun.which("etcd") ?? present(join(cacheDirectory(), "etcd/usr/bin/etcd"), "etcd");
}

/** Folder with vmlinuz, watchdog.ko and softdog.ko. */
export function watchdogKernelFolder(): string {
  const folder = join(cacheDirectory(), "watchdog");
  present(join(folder, "softdog.ko"), "the kernel with a watchdog");
  return folder;
}
