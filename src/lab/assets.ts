/**
 * Where the lab finds what scripts/setup has put on this machine: the guests and
 * their clients, QEMUs that cannot do COLO, promtool and etcd. scripts/lib/ writes the same layout.
 *
 * Every function throws an Error that names the missing thing and says to run scripts/setup.
 */
import { join } from "node:path";
import { cacheDirectory, environmentOf, present, systemArgv } from "../host/installed.ts";

/**
 * QEMUs that cannot do COLO, for tests: Debian 12's own and that of its backports
 * (scripts/lib/wrong_qemu.sh).
 */
export const WRONG_QEMUS = ["7.2", "10.0"] as const;
export type WrongQemu = (typeof WRONG_QEMUS)[number];

/** As qemuArgv() and qemuEnvironment(), for one of {@link WRONG_QEMUS}. */
export function wrongQemu(name: WrongQemu): { argv: string[]; environment: Record<string, string> } {
  const folder = join(cacheDirectory(), `qemu-${name}`);
  return { argv: systemArgv(folder), environment: environmentOf(folder) };
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

/**
 * Addresses of the guest's one network card, each with its prefix length, and the way out of that network.
 */
interface GuestAddresses {
  ip4?: string;
  ip6?: string;
  gw4?: string;
  gw6?: string;
}

/**
 * Kernel command line for -append. The console is ttyS0; a panic ends the machine (with -no-reboot, QEMU
 * too). `extra` goes behind, for example "sysctl.net.ipv4.tcp_timestamps=0".
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
