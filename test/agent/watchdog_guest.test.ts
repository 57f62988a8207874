/**
 * A real watchdog device, in a virtual machine whose kernel has softdog: armed, kept alive past its timeout,
 * disarmed by an orderly end, and resetting the machine when the process is killed.
 */
import { expect, test } from "bun:test";
import { copyFileSync, cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join } from "node:path";
import { qemuArgv, qemuEnvironment } from "../../src/host/installed.ts";
import { watchdogKernelFolder } from "../../src/lab/assets.ts";

const MEMORY_MIB = 768;
const RUN_TIMEOUT_MS = 110_000;

const INIT = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs tmp /tmp
/bin/busybox insmod /watchdog.ko
/bin/busybox insmod /softdog.ko
HOME=/tmp /bin/bun /guest.js
echo "guest: killed"
/bin/busybox sleep 30
echo "guest: NOT RESET"
/bin/busybox poweroff -f
`;

function run(...command: string[]): string {
  const result = Bun.spawnSync(command);
  if (!result.success) throw new Error(`${command.join(" ")}: ${result.stderr}`);
  return result.stdout.toString();
}

/** Bun itself with the libraries that it needs, as they are on this machine. */
function installBun(root: string): void {
  copyFileSync(process.execPath, join(root, "bin/bun"));
  for (const [path] of run("ldd", process.execPath).matchAll(/\/\S+(?= \()/g)) {
    mkdirSync(join(root, dirname(path)), { recursive: true });
    cpSync(path, join(root, path), { dereference: true });
  }
}

async function buildImage(directory: string): Promise<string> {
  const root = join(directory, "root");
  for (const name of ["bin", "dev", "proc", "tmp"]) mkdirSync(join(root, name), { recursive: true });
  installBun(root);
  copyFileSync("/bin/busybox", join(root, "bin/busybox"));
  const built = await Bun.build({ entrypoints: [join(import.meta.dir, "watchdog_guest.ts")], target: "bun" });
  await Bun.write(join(root, "guest.js"), built.outputs[0]!);
  for (const module of ["watchdog.ko", "softdog.ko"]) {
    copyFileSync(join(watchdogKernelFolder(), module), join(root, module));
  }
  writeFileSync(join(root, "init"), INIT, { mode: 0o755 });
  const image = join(directory, "initrd.img");
  run("sh", "-c", `cd ${root} && find . | cpio --create --format=newc --quiet > ../${basename(image)}`);
  return image;
}

test(
  "softdog: armed, kept alive, disarmed, and the machine reset when the agent is killed",
  async () => {
    const directory = mkdtempSync(join(tmpdir(), "colo-test-watchdog-guest-"));
    try {
      const qemu = Bun.spawn(
        [
          ...qemuArgv(),
          ...["-machine", "q35", "-cpu", "max", "-m", String(MEMORY_MIB), "-no-reboot"],
          ...["-nographic", "-nodefaults", "-serial", "stdio"],
          ...["-kernel", join(watchdogKernelFolder(), "vmlinuz"), "-initrd", await buildImage(directory)],
          ...["-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests"],
        ],
        { env: qemuEnvironment(), stdin: "ignore", stdout: "pipe", stderr: "pipe", timeout: RUN_TIMEOUT_MS },
      );
      const output = await new Response(qemu.stdout).text();
      expect(await qemu.exited).toBe(0); // reset, which -no-reboot makes the end
      const said = output.split(/\r?\n/).filter((line) => line.startsWith("guest: "));
      expect(said).toEqual([
        "guest: armed",
        expect.stringMatching(
          /^guest: second: cannot open the watchdog \/dev\/watchdog: another program has it/,
        ),
        "guest: kept alive for three timeouts",
        "guest: disarmed for three timeouts",
        "guest: armed again",
        "guest: killed",
      ]);
      expect(output).toContain('"identity":"Software Watchdog","timeoutS":2');
      expect(output).toMatch(/softdog: Initiating system reboot/);
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  },
  RUN_TIMEOUT_MS + 10_000,
);
