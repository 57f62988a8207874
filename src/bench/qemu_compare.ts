/**
 * QEMU's colo-compare, fed over unix sockets and measured where its frames come out (outdev). What follows in
 * QEMU (a redirector, the tap) is not counted against it.
 */
import { Mapping } from "../ffi/libc.ts";
import type { FeederOrder, FeederReport, FeederSetup } from "./qemu_feeder.ts";
import { QEMU_FRAMING_BYTES, QEMU_TIMEOUT_MS, QemuProcess } from "./qemu_process.ts";
import { Traffic, type TrafficOptions } from "./segments.ts";
import { processCpuSeconds, type Usage } from "./usage.ts";

const READ_BYTES = 1024 * 1024;

export class QemuColoCompare {
  readonly #qemu: QemuProcess;
  readonly #feeder = new Worker(new URL("./qemu_feeder.ts", import.meta.url).href);
  readonly #buffer = new Mapping(READ_BYTES);
  #streamStart = 0;
  #answer: { resolve: () => void; reject: (error: Error) => void } | undefined;

  private constructor(qemu: QemuProcess) {
    this.#qemu = qemu;
    this.#feeder.onmessage = (message: MessageEvent<FeederReport>) => {
      const report = message.data;
      if (report.type === "failed") this.#answer?.reject(new Error(`The feeder failed: ${report.message}`));
      else this.#answer?.resolve();
    };
    this.#feeder.onerror = (error) => this.#answer?.reject(new Error(`The feeder failed: ${error.message}`));
  }

  /** Throws an Error if there is no QEMU, or if it ends. */
  static async start(): Promise<QemuColoCompare> {
    const compare = new QemuColoCompare(await QemuProcess.start());
    try {
      await compare.#tell({
        primaryPath: compare.#qemu.path("primary"),
        secondaryPath: compare.#qemu.path("secondary"),
        timeoutMs: QEMU_TIMEOUT_MS,
      });
      return compare;
    } catch (error) {
      await compare.stop();
      throw error;
    }
  }

  /**
   * Sends both streams and waits until all of the primary's frames have come out. CPU time is QEMU's alone.
   */
  async compareAndRelease(primary: TrafficOptions, secondary: TrafficOptions): Promise<Usage> {
    const traffic = new Traffic(primary);
    const streamStart = this.#streamStart;
    this.#streamStart += primary.rounds * primary.payloadBytes;
    let expected = traffic.count * (QEMU_FRAMING_BYTES + traffic.bytesMax);
    const { output, pid } = this.#qemu;
    const cpuBefore = processCpuSeconds(pid);
    const start = performance.now();
    const done = this.#tell({ primary, secondary, streamStart });
    done.catch(() => undefined); // waited for below
    // Blocks this thread, not the feeder's.
    while (expected > 0) {
      const got = output.read(this.#buffer.address, READ_BYTES);
      if (got === 0) throw new Error(`QEMU has closed its output: ${this.#qemu.complaint()}`);
      expected -= got;
    }
    const seconds = (performance.now() - start) / 1000;
    const cpuSeconds = processCpuSeconds(pid) - cpuBefore;
    await done;
    if (expected < 0) throw new Error("QEMU has sent more than it was given.");
    return { seconds, cpuSeconds };
  }

  async stop(): Promise<void> {
    this.#feeder.terminate();
    await this.#qemu.stop();
    this.#buffer.close();
  }

  #tell(message: FeederSetup | FeederOrder): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#answer = { resolve, reject };
      this.#feeder.postMessage(message);
    });
  }
}
