/**
 * The watchdog: what is written is read from a FIFO, the ioctls' numbers are compared with the kernel's
 * header, and what is no watchdog is refused. A real one is armed in watchdog_guest.test.ts.
 */
import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  closeSync,
  constants,
  existsSync,
  mkdtempSync,
  openSync,
  readSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { HardwareWatchdog, NoWatchdog, openWatchdog } from "../../src/agent/watchdog.ts";
import {
  WATCHDOG_INFO_BYTES,
  WDIOC_GETSUPPORT,
  WDIOC_GETTIMEOUT,
  WDIOC_SETTIMEOUT,
  WDIOF_MAGICCLOSE,
  WDIOF_SETTIMEOUT,
} from "../../src/ffi/watchdog.ts";
import { createLogger } from "../../src/host/log.ts";

const log = createLogger("error");
let directory: string;
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "colo-test-watchdog-"));
});
afterEach(() => rmSync(directory, { recursive: true, force: true }));

describe("watchdog", () => {
  test("each kick is a byte that is no V; the orderly end is a V, with nothing after it", () => {
    const path = join(directory, "fifo");
    expect(Bun.spawnSync(["mkfifo", path]).exitCode).toBe(0);
    const reader = openSync(path, constants.O_RDONLY | constants.O_NONBLOCK);
    try {
      const watchdog = new HardwareWatchdog(openSync(path, "r+"));
      for (let i = 0; i < 3; i++) watchdog.kick();
      watchdog.close();
      watchdog.kick();
      watchdog.close();
      const bytes = Buffer.alloc(16);
      expect([...bytes.subarray(0, readSync(reader, bytes))]).toEqual([0, 0, 0, "V".charCodeAt(0)]);
      expect(readSync(reader, bytes)).toBe(0); // closed
    } finally {
      closeSync(reader);
    }
  });

  test("the ioctls are the kernel's", () => {
    const ours = {
      WDIOC_GETSUPPORT,
      WDIOC_SETTIMEOUT,
      WDIOC_GETTIMEOUT,
      WDIOF_SETTIMEOUT,
      WDIOF_MAGICCLOSE,
      "sizeof(struct watchdog_info)": WATCHDOG_INFO_BYTES,
    };
    const names = Object.keys(ours);
    const source = join(directory, "numbers.c");
    const values = names.map((name) => `(unsigned)${name}`).join(", ");
    writeFileSync(source, `#include <linux/watchdog.h>\nconst unsigned numbers[] = {${values}};\n`);
    // The object's data section is the array itself.
    const object = join(directory, "numbers.o");
    const data = join(directory, "numbers.bin");
    const built = Bun.spawnSync(["clang", "-c", source, "-o", object]);
    expect(built.stderr.toString()).toBe("");
    expect(
      Bun.spawnSync(["llvm-objcopy", "-O", "binary", "--only-section=.rodata", object, data]).exitCode,
    ).toBe(0);
    const bytes = Buffer.alloc(4 * names.length);
    const fd = openSync(data, "r");
    expect(readSync(fd, bytes)).toBe(bytes.length);
    closeSync(fd);
    const kernel = [...new Uint32Array(bytes.buffer, bytes.byteOffset, names.length)];
    expect(kernel).toEqual(Object.values(ours));
  });

  test("what is missing or no watchdog is refused with advice", () => {
    const config = { device: join(directory, "none"), timeout_s: 10, required: true };
    expect(() => openWatchdog(config, log)).toThrow(/cannot open the watchdog .*load the driver/);
    for (const watchdog of [
      openWatchdog({ ...config, required: false }, log),
      openWatchdog(undefined, log),
    ]) {
      expect(watchdog).toBeInstanceOf(NoWatchdog);
      watchdog.kick();
      watchdog.close();
    }
    expect(existsSync(config.device)).toBe(false);
    expect(() => openWatchdog({ ...config, device: "/dev/null" }, log)).toThrow(
      /\/dev\/null is not a watchdog/,
    );
  });
});
