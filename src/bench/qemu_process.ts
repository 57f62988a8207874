/**
 * A QEMU without a machine that does nothing but colo-compare, its sockets waiting to be connected. Framing
 * of each message (net/net.c, net_fill_rstate): the frame's length, then the length of its virtio_net_hdr,
 * both big-endian.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { VNET_BYTES } from "../ffi/layout.ts";
import { StreamSocket } from "../ffi/stream_socket.ts";
import { qemuArgv, qemuEnvironment } from "../host/installed.ts";
import { removeLeftoverFolders } from "./leftover_folders.ts";
import { onExit } from "./on_exit.ts";

export const QEMU_FRAMING_BYTES = 8;
/** Only to turn a hang into a sentence. */
export const QEMU_TIMEOUT_MS = 20_000;
const DIRECTORY_PREFIX = "colo-bench-";
/** More than are ever on their way: beyond it QEMU drops frames silently. */
const QUEUE_FRAMES_MAX = 16_384;
/** A packet that waits this long would ask for a checkpoint: never. */
const NEVER_MS = 3_600_000;

type QemuSocketName = "primary" | "secondary" | "out" | "notify";

/** `byteLength` is that of virtio_net_hdr and frame. */
export function writeQemuFraming(view: DataView, at: number, byteLength: number): void {
  view.setUint32(at, byteLength);
  view.setUint32(at + 4, VNET_BYTES);
}

export class QemuProcess {
  readonly #directory: string;
  readonly #child: Bun.Subprocess;
  /** outdev; blocking. */
  output!: StreamSocket;
  #notify: StreamSocket | undefined;
  readonly #withdraw: () => void;

  private constructor(directory: string, child: Bun.Subprocess) {
    this.#directory = directory;
    this.#child = child;
    this.#withdraw = onExit(() => {
      child.kill("SIGKILL");
      rmSync(directory, { recursive: true, force: true });
    });
  }

  /** Throws an Error if there is no QEMU, or if it ends. */
  static async start(): Promise<QemuProcess> {
    const argv = qemuArgv();
    removeLeftoverFolders(DIRECTORY_PREFIX);
    const directory = mkdtempSync(join(tmpdir(), `${DIRECTORY_PREFIX}${process.pid}-`));
    const names: QemuSocketName[] = ["primary", "secondary", "out", "notify"];
    const chardevs = names.flatMap((name) => [
      "-chardev",
      `socket,id=${name},path=${directory}/${name},server=on,wait=off`,
    ]);
    const object = [
      "colo-compare,id=compare,iothread=thread,primary_in=primary,secondary_in=secondary,outdev=out",
      "notify_dev=notify,vnet_hdr_support=on",
      `compare_timeout=${NEVER_MS},expired_scan_cycle=${NEVER_MS},max_queue_size=${QUEUE_FRAMES_MAX}`,
    ].join(",");
    const child = Bun.spawn(
      [
        ...argv,
        ...["-machine", "none", "-nodefaults", "-display", "none", ...chardevs],
        ...["-object", "iothread,id=thread", "-object", object],
      ],
      {
        env: qemuEnvironment(),
        stdin: "ignore",
        stdout: "ignore",
        stderr: Bun.file(`${directory}/stderr`),
      },
    );
    const qemu = new QemuProcess(directory, child);
    try {
      await Bun.write(`${directory}/pid`, `${child.pid}`);
      qemu.output = await qemu.connect("out");
      qemu.#notify = await qemu.connect("notify");
      return qemu;
    } catch (error) {
      await qemu.stop();
      throw error;
    }
  }

  get pid(): number {
    return this.#child.pid;
  }

  path(name: QemuSocketName): string {
    return join(this.#directory, name);
  }

  /** Waits until QEMU listens. */
  async connect(name: QemuSocketName): Promise<StreamSocket> {
    const deadline = performance.now() + QEMU_TIMEOUT_MS;
    for (;;) {
      if (this.#child.exitCode !== null) {
        throw new Error(`QEMU ended with ${this.#child.exitCode}: ${this.complaint()}`);
      }
      try {
        return StreamSocket.connect(this.path(name), QEMU_TIMEOUT_MS);
      } catch (error) {
        if (performance.now() > deadline) throw error;
        await Bun.sleep(10);
      }
    }
  }

  /** What QEMU has written to standard error. */
  complaint(): string {
    return readFileSync(join(this.#directory, "stderr"), "utf8").trim();
  }

  async stop(): Promise<void> {
    this.#withdraw();
    this.#child.kill("SIGKILL");
    await this.#child.exited;
    this.output?.close();
    this.#notify?.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }
}
