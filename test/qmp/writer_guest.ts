/**
 * A guest for disk tests, made of the lab guest's kernel and initramfs with an /init of its own: record i
 * goes to sector i, straight to the disk, and "wrote i at UPTIME" to the serial port once the disk has it. So
 * the serial log is a list of promises that the disk file can be held to.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { guestInitrd } from "../../src/lab/assets.ts";

const SECTOR_BYTES = 512;

/** `writer.dirty=N` on the kernel's command line also keeps N MiB of memory changing. */
const INIT = `#!/bin/busybox sh
/bin/busybox mkdir -p /b
/bin/busybox --install -s /b
export PATH=/b
mount -t devtmpfs dev /dev
mount -t proc proc /proc
exec </dev/console >/dev/console 2>/dev/null
while read -r module; do insmod "/lib/modules/$module.ko"; done </lib/modules/modules.list
for word in $(cat /proc/cmdline); do
  case $word in
    writer.dirty=*)
      (while :; do
        yes "$RANDOM-$RANDOM" | dd of=/dirty bs=1048576 count=\${word#*=} iflag=fullblock
        usleep 200000
      done) &
      ;;
  esac
done
[ ! -x /self_modifying ] || /self_modifying &
i=0
while :; do
  printf 'record %08d\\n' $i | dd of=/dev/vda bs=512 seek=$i conv=sync,notrunc oflag=direct && {
    read -r uptime rest </proc/uptime
    echo "wrote $i at $uptime"
  }
  i=$((i + 1))
  usleep 20000
done
`;

/**
 * Writes the initramfs to `path`, with a program that it runs beside its own work. The kernel unpacks
 * concatenated archives one after the other, later files win.
 */
export function makeWriterInitrd(path: string, selfModifying?: Buffer<ArrayBuffer>): void {
  const lab = readFileSync(guestInitrd());
  const padding = Buffer.alloc((4 - (lab.length % 4)) % 4);
  const files = [{ name: "init", mode: 0o100755, body: Buffer.from(INIT) }];
  if (selfModifying !== undefined)
    files.push({ name: "self_modifying", mode: 0o100755, body: selfModifying });
  writeFileSync(path, Buffer.concat([lab, padding, cpio(files)]));
}

/** An archive in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst). */
function cpio(files: readonly { name: string; mode: number; body: Buffer }[]): Buffer {
  const hex = (value: number) => value.toString(16).padStart(8, "0");
  const parts = [...files, { name: "TRAILER!!!", mode: 0, body: Buffer.alloc(0) }].flatMap(
    ({ name, mode, body }) => {
      const fields = [0, mode, 0, 0, 1, 0, body.length, 0, 0, 0, 0, name.length + 1, 0];
      const head = Buffer.from(`070701${fields.map(hex).join("")}${name}\0`, "latin1");
      const align = (bytes: number) => Buffer.alloc((4 - (bytes % 4)) % 4);
      return [head, align(head.length), body, align(body.length)];
    },
  );
  return Buffer.concat(parts);
}

const WRITE = /wrote (\d+) at ([\d.]+)\r?\n/g;

/** The numbers the guest has reported as written, in order. */
export function reportedWrites(serialPath: string): number[] {
  return [...readFileSync(serialPath, "latin1").matchAll(WRITE)].map((match) => Number(match[1]));
}

/** The guest's own clock, in milliseconds since its boot, when it last reported a write; true to 10 ms. */
export function lastUptimeMs(serialPath: string): number {
  return Number([...readFileSync(serialPath, "latin1").matchAll(WRITE)].at(-1)?.[2]) * 1_000;
}

/** How many records are on the disk from the first sector on, without a gap. */
export function recordsOnDisk(diskPath: string): number {
  const disk = readFileSync(diskPath);
  for (let i = 0; ; i++) {
    const text = `record ${String(i).padStart(8, "0")}\n`;
    if (disk.toString("latin1", i * SECTOR_BYTES, i * SECTOR_BYTES + text.length) !== text) return i;
  }
}
