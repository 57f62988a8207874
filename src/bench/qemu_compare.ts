/**
 * QEMU's colo-compare, alone in a process without a machine, fed over unix sockets and measured where its frames come
 * out (outdev). What follows in QEMU (a redirector, the tap) is not counted against it.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Mapping } from "../ffi/libc.ts";
import { StreamSocket } from "../ffi/stream_socket.ts";
import { qemuArgv, qemuEnvironment } from "../lab/assets.ts";
import type { FeederReport, FeederSetup } from "./qemu_feeder.ts";
import { QEMU_FRAMING_BYTES } from "./qemu_framing.ts";
import { Traffic, type TrafficOptions } from "./traffic.ts";
import { processCpuSeconds, type Usage } from "./usage.ts";

const DIRECTORY_PREFIX = "colo-bench-";
/** Only to turn a hang into a sentence. */
const TIMEOUT_MS = 20_000;
const READ_BYTES = 1024 * 1024;
/** More than are ever on their way: beyond it QEMU drops frames silently. */
const QUEUE_FRAMES_MAX = 16_384;

export class QemuColoCompare {
  readonly #directory: string;
  readonly #process: Bun.Subprocess;
  readonly #feeder: Worker;
  readonly #sockets: StreamSocket[];
  readonly #buffer = new Mapping(READ_BYTES);
  #streamStart = 0;
  #answer: { resolve: () => void; reject: (error: Error) => void } | undefined;

  private constructor(directory: string, child: Bun.Subprocess, feeder: Worker, sockets: StreamSocket[]) {
    this.#directory = directory;
    this.#process = child;
    this.#feeder = feeder;
    this.#sockets = sockets;
    feeder.onmessage = (message: MessageEvent<FeederReport>) => {
      const report = message.data;
      if (report.type === "failed") this.#answer?.reject(new Error(`The feeder failed: ${report.message}`));
      else this.#answer?.resolve();
    };
  }

  /** Throws an Error if there is no QEMU, or if it ends. */
  static async start(): Promise<QemuColoCompare> {
    const argv = qemuArgv();
    const directory = mkdtempSync(join(tmpdir(), `${DIRECTORY_PREFIX}${process.pid}-`));
    const names = ["primary", "secondary", "out", "notify"];
    const chardevs = names.flatMap((name) => [
      "-chardev",
      `socket,id=${name},path=${directory}/${name},server=on,wait=off`,
    ]);
    const object = [
      "colo-compare,id=compare,iothread=thread,primary_in=primary,secondary_in=secondary,outdev=out",
      "notify_dev=notify,vnet_hdr_support=on,compare_timeout=3600000,expired_scan_cycle=3600000",
      `max_queue_size=${QUEUE_FRAMES_MAX}`,
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
    const sockets: StreamSocket[] = [];
    let feeder: Worker | undefined;
    try {
      for (const name of ["out", "notify"]) sockets.push(await connect(`${directory}/${name}`, child, directory));
      feeder = new Worker(new URL("./qemu_feeder.ts", import.meta.url).href);
      const qemu = new QemuColoCompare(directory, child, feeder, sockets);
      await qemu.#tell({
        primaryPath: `${directory}/primary`,
        secondaryPath: `${directory}/secondary`,
        timeoutMs: TIMEOUT_MS,
      } satisfies FeederSetup);
      return qemu;
    } catch (error) {
      feeder?.terminate();
      for (const socket of sockets) socket.close();
      child.kill("SIGKILL");
      await child.exited;
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** Sends both streams and waits until all of the primary's frames have come out. CPU time is QEMU's alone. */
  async compareAndRelease(primary: TrafficOptions, secondary: TrafficOptions): Promise<Usage> {
    const traffic = new Traffic(primary);
    const order = { primary, secondary, streamStart: this.#streamStart };
    this.#streamStart += primary.rounds * primary.payloadBytes;
    let expected = traffic.count * (QEMU_FRAMING_BYTES + traffic.bytesMax);
    const [out] = this.#sockets;
    const cpuBefore = processCpuSeconds(this.#process.pid);
    const start = performance.now();
    const done = this.#tell(order);
    // Blocks this thread, not the feeder's.
    while (expected > 0) {
      const got = out.read(this.#buffer.address, READ_BYTES);
      if (got === 0) throw new Error(`QEMU has closed its output: ${this.#complaint()}`);
      expected -= got;
    }
    const seconds = (performance.now() - start) / 1000;
    const cpuSeconds = processCpuSeconds(this.#process.pid) - cpuBefore;
    await done;
    if (expected < 0) throw new Error("QEMU has sent more than it was given.");
    return { seconds, cpuSeconds };
  }

  async stop(): Promise<void> {
    this.#feeder.terminate();
    this.#process.kill("SIGKILL");
    await this.#process.exited;
    for (const socket of this.#sockets) socket.close();
    this.#buffer.close();
    rmSync(this.#directory, { recursive: true, force: true });
  }

  #tell(message: unknown): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#answer = { resolve, reject };
      this.#feeder.postMessage(message);
    });
  }

  #complaint(): string {
    return readFileSync(`${this.#directory}/stderr`, "utf8").trim();
  }
}

async function connect(path: string, child: Bun.Subprocess, directory: string): Promise<StreamSocket> {
  const deadline = performance.now() + TIMEOUT_MS;
  for (;;) {
    if (child.exitCode !== null) {
      const said = readFileSync(`${directory}/stderr`, "utf8").trim();
      throw new Error(`QEMU ended with ${child.exitCode}: ${said}`);
    }
    try {
      return StreamSocket.connect(path, TIMEOUT_MS);
    } catch (error) {
      if (performance.now() > deadline) throw error;
      await Bun.sleep(10);
    }
  }
}
