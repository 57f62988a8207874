/**
 * The host's hardware watchdog: it resets the host when the agent's main loop no longer comes round. The
 * kernel's lease silences a host whose agent hangs; the watchdog is for a host whose kernel hangs too.
 */

import { closeSync, openSync, writeSync } from "node:fs";
import type { WatchdogConfig } from "../config/safeguards.ts";
import { Problem } from "../errors/problem.ts";
import {
  setWatchdogTimeout,
  WDIOF_MAGICCLOSE,
  WDIOF_SETTIMEOUT,
  watchdogSupport,
  watchdogTimeout,
} from "../ffi/watchdog.ts";
import type { Logger } from "../host/log.ts";

/**
 * Anything but 'V' is a sign of life; a 'V' right before closing disarms
 * (Documentation/watchdog/watchdog-api.rst).
 */
const ALIVE = new Uint8Array([0]);
const DISARM = new TextEncoder().encode("V");

export interface Watchdog {
  /** To be called once for each completed round of the main loop. Throws when the device does not take it. */
  kick(): void;
  /** Orderly end. A crash must not call it. */
  close(): void;
}

/** None is configured, or an optional one is missing. */
export class NoWatchdog implements Watchdog {
  kick(): void {}
  close(): void {}
}

export class HardwareWatchdog implements Watchdog {
  #fd: number | undefined;

  /** Takes over an open device; {@link openWatchdog} is the usual way. */
  constructor(fd: number) {
    this.#fd = fd;
  }

  kick(): void {
    if (this.#fd !== undefined) writeSync(this.#fd, ALIVE);
  }

  /** Disarms, unless the driver is built or loaded with "nowayout". */
  close(): void {
    if (this.#fd === undefined) return;
    const fd = this.#fd;
    this.#fd = undefined;
    try {
      writeSync(fd, DISARM);
    } finally {
      closeSync(fd);
    }
  }
}

/**
 * Opens and arms the device: from here on {@link Watchdog.kick} has to be called. Without `required`, a
 * missing device is a warning. Throws an Error that says what is wrong.
 */
export function openWatchdog(config: WatchdogConfig | undefined, log: Logger): Watchdog {
  if (config === undefined) return new NoWatchdog();
  try {
    return arm(config, log);
  } catch (error) {
    if (config.required) throw error;
    log.warn("there is no watchdog; a host whose kernel hangs is not reset", { error });
    return new NoWatchdog();
  }
}

function arm({ device, timeout_s }: WatchdogConfig, log: Logger): Watchdog {
  let fd: number;
  try {
    fd = openSync(device, "r+");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const advice =
      code === "EBUSY"
        ? "another program has it, such as systemd (RuntimeWatchdogSec) or the watchdog daemon: turn that off"
        : code === "ENOENT"
          ? "load the driver of the host's watchdog (or softdog), or set watchdog.required = false"
          : (error as Error).message;
    throw new Problem(`cannot open the watchdog ${device}`, advice, { cause: error });
  }
  const watchdog = new HardwareWatchdog(fd);
  try {
    const support = supportOf(fd, device);
    const seconds =
      support.options & WDIOF_SETTIMEOUT ? setWatchdogTimeout(fd, timeout_s) : watchdogTimeout(fd);
    if (seconds !== timeout_s) {
      throw new Problem(
        `the watchdog ${device} (${support.identity}) has a timeout of ${seconds} s, not of ${timeout_s} s`,
        `set watchdog.timeout_s = ${seconds}, if that is not too long or too short`,
      );
    }
    if ((support.options & WDIOF_MAGICCLOSE) === 0) {
      log.warn("this watchdog cannot be disarmed: ending the agent resets the host", { device });
    }
    log.info("watchdog armed", { device, identity: support.identity, timeoutS: seconds });
    return watchdog;
  } catch (error) {
    watchdog.close();
    throw error;
  }
}

function supportOf(fd: number, device: string) {
  try {
    return watchdogSupport(fd);
  } catch (error) {
    throw new Error(`${device} is not a watchdog: ${(error as Error).message}`, { cause: error });
  }
}
