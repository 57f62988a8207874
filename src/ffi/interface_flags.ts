/**
 * The state of a network interface in this process's own network namespace (sysfs may show another one's).
 */
import { Arena, check, libc } from "./libc.ts";

const AF_INET = 2;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
const SIOCGIFFLAGS = 0x8913;
const IFF_RUNNING = 0x40;
const IFREQ_BYTES = 40;
/** ifr_flags behind ifr_name (include/uapi/linux/if.h, IFNAMSIZ). */
const FLAGS_OFFSET = 16;

const arena = new Arena(IFREQ_BYTES);
let fd: number | undefined;

/**
 * Whether the interface is up and has a carrier (RFC 2863 "up"; net/core/dev.c, dev_get_flags). False if
 * there is none of that name.
 */
export function isRunning(name: string): boolean {
  fd ??= check(
    libc.socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0),
    "Cannot open a socket to ask for interfaces",
  );
  arena.bytes.fill(0, 0, IFREQ_BYTES);
  arena.bytes.set(new TextEncoder().encode(name).subarray(0, FLAGS_OFFSET - 1));
  if (libc.ioctl(fd, SIOCGIFFLAGS, arena.address) < 0) return false;
  return (arena.view.getUint16(FLAGS_OFFSET, true) & IFF_RUNNING) !== 0;
}
