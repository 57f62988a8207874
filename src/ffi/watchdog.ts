/** The ioctls of a watchdog device (linux/watchdog.h, Documentation/watchdog/watchdog-api.rst). */
import { Arena, check, libc } from "./libc.ts";

export const WDIOC_GETSUPPORT = 0x80285700;
export const WDIOC_SETTIMEOUT = 0xc0045706;
export const WDIOC_GETTIMEOUT = 0x80045707;
export const WDIOF_SETTIMEOUT = 0x0080;
export const WDIOF_MAGICCLOSE = 0x0100;
/** struct watchdog_info: u32 options, u32 firmware_version, u8 identity[32]. */
export const WATCHDOG_INFO_BYTES = 40;
const IDENTITY_OFFSET = 8;

const arena = new Arena(64);

interface WatchdogSupport {
  /** WDIOF_ bits. */
  options: number;
  identity: string;
}

/** Throws a SystemError when `fd` is no watchdog. */
export function watchdogSupport(fd: number): WatchdogSupport {
  arena.bytes.fill(0, 0, WATCHDOG_INFO_BYTES);
  check(libc.ioctl(fd, WDIOC_GETSUPPORT, arena.address), "WDIOC_GETSUPPORT");
  const identity = arena.bytes.slice(IDENTITY_OFFSET, WATCHDOG_INFO_BYTES);
  const end = identity.indexOf(0);
  return {
    options: arena.view.getUint32(0, true),
    identity: new TextDecoder("latin1").decode(end < 0 ? identity : identity.subarray(0, end)),
  };
}

/**
 * Sets the timeout, in seconds; returns the one the device has taken. Throws a SystemError when it cannot be
 * set.
 */
export function setWatchdogTimeout(fd: number, seconds: number): number {
  arena.view.setInt32(0, seconds, true);
  check(libc.ioctl(fd, WDIOC_SETTIMEOUT, arena.address), "WDIOC_SETTIMEOUT");
  return arena.view.getInt32(0, true);
}

/** The timeout in seconds. Throws a SystemError. */
export function watchdogTimeout(fd: number): number {
  check(libc.ioctl(fd, WDIOC_GETTIMEOUT, arena.address), "WDIOC_GETTIMEOUT");
  return arena.view.getInt32(0, true);
}
