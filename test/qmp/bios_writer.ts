/** Puts the boot sector of bios_writer.S on a disk, and reads what it has written. */
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Disk } from "../../src/storage/disk_graph.ts";
import { qemuImg } from "./pair.ts";

const SECTOR_BYTES = 512;
const FIRST_SECTOR = 128;

/** Assembles the boot sector. Throws an Error with the assembler's words if it does not take it. */
function bootSector(): Buffer {
  const directory = mkdtempSync(join(tmpdir(), "colo-test-bios-writer-"));
  try {
    const object = join(directory, "writer.o");
    const output = join(directory, "writer.bin");
    const source = join(import.meta.dir, "bios_writer.S");
    for (const command of [
      ["as", "--32", "-o", object, source],
      ["ld", "-m", "elf_i386", "--oformat", "binary", "-Ttext", "0x7c00", "-o", output, object],
    ]) {
      const { exitCode, stderr } = Bun.spawnSync(command);
      if (exitCode !== 0) throw new Error(`${command.join(" ")}: ${stderr}`);
    }
    return readFileSync(output);
  } finally {
    rmSync(directory, { recursive: true });
  }
}

/** Makes `disk`, which no QEMU uses, the one the VM boots from. */
export function installBiosWriter({ path, format }: Disk): void {
  const sector = bootSector();
  const raw = format === "raw" ? path : `${path}.raw`;
  if (format !== "raw") qemuImg("convert", "-f", format, "-O", "raw", path, raw);
  const file = openSync(raw, "r+");
  writeSync(file, sector, 0, sector.length, 0);
  closeSync(file);
  if (format === "raw") return;
  qemuImg("convert", "-f", "raw", "-O", format, raw, path);
  rmSync(raw);
}

/** The numbers of the rounds that all disks had when the guest said so, in order. */
export function roundsReported(serialPath: string): number[] {
  const text = readFileSync(serialPath, "latin1");
  if (text.includes("could not write")) throw new Error("the BIOS writer could not write to a disk");
  return [...text.matchAll(/wrote ([0-9a-f]{8})\n/g)].map((match) => Number.parseInt(match[1] as string, 16));
}

/** How many rounds are on a disk from the first one on, without a gap. The disk must not be in use. */
export function roundsOnDisk({ path, format }: Disk): number {
  const raw = format === "raw" ? path : `${path}.check`;
  if (format !== "raw") qemuImg("convert", "-f", format, "-O", "raw", path, raw);
  const bytes = readFileSync(raw);
  if (format !== "raw") rmSync(raw);
  for (let i = 0; ; i++) {
    const text = `record ${i.toString(16).padStart(8, "0")}\n`;
    const offset = (FIRST_SECTOR + i) * SECTOR_BYTES;
    if (bytes.toString("latin1", offset, offset + text.length) !== text) return i;
  }
}
