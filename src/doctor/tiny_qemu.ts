/** Small QEMUs with the counting guest, for the doctor's pair. */
import { existsSync, mkdirSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Subprocess } from "bun";
import { QmpClient } from "../qmp/client.ts";
import { type DoctorQemu, lastLine } from "./qemu_program.ts";
import { CONSOLE_PORT, countingGuest } from "./tiny_guest.ts";

const START_LIMIT_MS = 10_000;
const SIGN_OF_LIFE_LIMIT_MS = 5_000;

export class TinyQemu {
  private constructor(
    readonly role: "primary" | "secondary",
    readonly client: QmpClient,
    private readonly child: Subprocess,
    private readonly console: string,
  ) {}

  /** Starts one; a secondary waits for a migration. Throws an Error with QEMU's words. */
  static async start(
    qemu: DoctorQemu,
    accelerator: "kvm" | "tcg",
    role: "primary" | "secondary",
    directory: string,
  ): Promise<TinyQemu> {
    mkdirSync(directory, { recursive: true });
    const [bios, socket, out, log] = ["bios.bin", "qmp.sock", "console", "log"].map((name) =>
      join(directory, name),
    ) as [string, string, string, string];
    writeFileSync(bios, countingGuest());
    const child = Bun.spawn(
      [
        ...qemu.argv,
        ...["-name", `doctor-${role}`, "-machine", "pc,hpet=off,usb=off", "-accel", accelerator, "-m", "32M"],
        ...["-nodefaults", "-no-user-config", "-display", "none", "-rtc", "base=utc,clock=vm"],
        ...["-bios", bios, "-qmp", `unix:${socket},server=on,wait=off`],
        ...["-chardev", `file,id=out,path=${out}`],
        ...["-device", `isa-debugcon,iobase=${CONSOLE_PORT},chardev=out`],
        ...(role === "secondary" ? ["-incoming", "defer"] : []),
      ],
      { stdin: "ignore", stdout: "ignore", stderr: Bun.file(log), env: qemu.environment },
    );
    const deadline = performance.now() + START_LIMIT_MS;
    for (;;) {
      if (child.exitCode !== null)
        throw new Error(`QEMU ended at once with status ${child.exitCode}: ${lastLine(log)}`);
      try {
        if (existsSync(socket)) return new TinyQemu(role, await QmpClient.connect(socket), child, out);
      } catch (error) {
        if (performance.now() > deadline) throw error;
      }
      if (performance.now() > deadline) {
        child.kill("SIGKILL");
        throw new Error(`QEMU did not open its QMP socket within ${START_LIMIT_MS / 1000} s`);
      }
      await Bun.sleep(10);
    }
  }

  /** Bytes that the guest has written so far. */
  #written(): number {
    return existsSync(this.console) ? statSync(this.console).size : 0;
  }

  /** Waits until the guest writes. Throws an Error if it does not. */
  async goesOn(): Promise<void> {
    const before = this.#written();
    const deadline = performance.now() + SIGN_OF_LIFE_LIMIT_MS;
    while (this.#written() === before) {
      if (performance.now() > deadline) throw new Error("the guest does not continue");
      await Bun.sleep(10);
    }
  }

  /** As if its host had died. */
  async kill(): Promise<void> {
    this.client.close();
    this.child.kill("SIGKILL");
    await this.child.exited;
  }
}
