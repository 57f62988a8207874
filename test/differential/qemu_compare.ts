/**
 * QEMU's own colo-compare as a process of its own: a machine without anything in it, fed and read over
 * unix sockets.
 *
 * Framing (net/net.c, net_fill_rstate): 32-bit length in network order, then the frame. Which packet made
 * QEMU do what is known because every step ends with a barrier:
 *
 * - primary_in: a frame with EtherType 0x88b5, which colo-compare does not look at and passes at once;
 * - secondary_in: one half of a UDP datagram, whose other half goes to primary_in, and which comes out
 *   when both have met;
 * - notify_dev: "COLO_USERSPACE_PROXY_INIT", which is answered. What QEMU asked for before arrives before
 *   the answer.
 */
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createConnection, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { removeLeftoverFolders } from "../../src/bench/leftover_folders.ts";
import { qemuArgv, qemuEnvironment } from "../../src/host/installed.ts";
import { QmpClient } from "../../src/qmp/client.ts";
import { ethernet, text, udp } from "../compare/frames.ts";

const DIRECTORY_PREFIX = "colo-test-differential-";
const ETHERTYPE_LOCAL_EXPERIMENT = 0x88b5;
const FRAME_BYTES_MAX = 0x10000;
/** Generous: it is only there to turn a hang into a sentence. */
const ANSWER_TIMEOUT_MS = 30_000;
const START_TIMEOUT_MS = 30_000;

interface QemuCompareOptions {
  /**
   * Wall time a packet may wait. Default one day, that is, never: only what the packets themselves cause
   * is seen.
   */
  compareTimeoutMs?: number;
  /** How often QEMU looks for such packets. Default one hour. */
  scanCycleMs?: number;
  maxQueueSize?: number;
}

/** What QEMU did because of one step. */
export interface Reaction {
  /** Frames sent to outdev, in order. */
  released: Uint8Array[];
  /** How many times a checkpoint was requested. */
  asked: number;
}

/** One socket with QEMU's framing. */
class Channel {
  onMessage: (message: Uint8Array) => void = () => {};
  onEnd: (reason: string) => void = () => {};
  private rest: Buffer = Buffer.alloc(0);

  private constructor(private readonly socket: Socket) {
    socket.on("data", (data) => this.take(data as Buffer));
    socket.on("error", (error) => this.onEnd(error.message));
    socket.on("close", () => this.onEnd("QEMU has closed its socket"));
  }

  static async connect(path: string, alive: () => void): Promise<Channel> {
    const deadlineMs = performance.now() + START_TIMEOUT_MS;
    for (;;) {
      alive();
      const socket: Socket | Error = await new Promise((resolve) => {
        const attempt = createConnection(path);
        attempt.once("connect", () => resolve(attempt));
        attempt.once("error", resolve);
      });
      if (!(socket instanceof Error)) {
        socket.removeAllListeners();
        return new Channel(socket);
      }
      if (performance.now() > deadlineMs) {
        throw new Error(`QEMU does not listen on ${path}: ${socket.message}`, { cause: socket });
      }
      await Bun.sleep(10);
    }
  }

  send(...messages: Uint8Array[]): void {
    const parts: Uint8Array[] = [];
    for (const message of messages) {
      const length = Buffer.alloc(4);
      length.writeUInt32BE(message.length);
      parts.push(length, message);
    }
    this.socket.write(Buffer.concat(parts));
  }

  pause(): void {
    this.socket.pause();
  }

  resume(): void {
    this.socket.resume();
  }

  close(): void {
    this.onEnd = () => {};
    this.onMessage = () => {};
    this.socket.destroy();
  }

  private take(data: Buffer): void {
    this.rest = this.rest.length === 0 ? data : Buffer.concat([this.rest, data]);
    let at = 0;
    while (this.rest.length - at >= 4) {
      const length = this.rest.readUInt32BE(at);
      if (length > FRAME_BYTES_MAX) {
        this.onEnd(`QEMU announced a message of ${length} bytes`);
        return;
      }
      if (this.rest.length - at - 4 < length) break;
      this.onMessage(Uint8Array.prototype.slice.call(this.rest, at + 4, at + 4 + length));
      at += 4 + length;
    }
    this.rest = this.rest.subarray(at);
  }
}

interface Expectation {
  accepts: (message: Uint8Array) => boolean;
  resolve: () => void;
  reject: (error: Error) => void;
}

export class QemuCompare {
  private readonly primaryIn: Channel;
  private readonly secondaryIn: Channel;
  private readonly outdev: Channel;
  private readonly notify: Channel;
  private released: Uint8Array[] = [];
  private asked = 0;
  private barriers = 0;
  private expectedOut: Expectation | undefined;
  private expectedNotice: Expectation | undefined;
  private failure: Error | undefined;

  private constructor(
    private readonly directory: string,
    private readonly process: Bun.Subprocess,
    channels: Channel[],
    readonly qmp: QmpClient,
  ) {
    [this.primaryIn, this.secondaryIn, this.outdev, this.notify] = channels;
    for (const channel of channels) channel.onEnd = (reason) => this.fail(reason);
    this.outdev.onMessage = (message) => {
      if (this.expectedOut?.accepts(message)) this.expectedOut.resolve();
      else this.released.push(message);
    };
    this.notify.onMessage = (message) => {
      if (this.expectedNotice?.accepts(message)) this.expectedNotice.resolve();
      else if (equalBytes(message, DO_CHECKPOINT)) this.asked++;
      else this.fail(`an unknown message on notify_dev: ${Buffer.from(message).toString("latin1")}`);
    };
  }

  static async start(options: QemuCompareOptions = {}): Promise<QemuCompare> {
    removeLeftoverFolders(DIRECTORY_PREFIX);
    const { compareTimeoutMs = 86_400_000, scanCycleMs = 3_600_000, maxQueueSize = 1024 } = options;
    const directory = mkdtempSync(join(tmpdir(), `${DIRECTORY_PREFIX}${process.pid}-`));
    const names = ["primary", "secondary", "out", "notify"];
    const chardevs = names.flatMap((name) => [
      "-chardev",
      `socket,id=${name},path=${directory}/${name},server=on,wait=off`,
    ]);
    const compare = [
      "colo-compare,id=compare,iothread=thread,primary_in=primary,secondary_in=secondary,outdev=out",
      `notify_dev=notify,compare_timeout=${compareTimeoutMs},expired_scan_cycle=${scanCycleMs}`,
      `max_queue_size=${maxQueueSize}`,
    ].join(",");
    const argv = ["-machine", "none", "-nodefaults", "-display", "none", ...chardevs];
    argv.push("-object", "iothread,id=thread", "-object", compare);
    argv.push("-qmp", `unix:${directory}/qmp,server=on,wait=off`);
    let child: Bun.Subprocess | undefined;
    try {
      const started = Bun.spawn([...qemuArgv(), ...argv], {
        env: qemuEnvironment(),
        stdin: "ignore",
        stdout: "ignore",
        stderr: Bun.file(`${directory}/stderr`),
      });
      child = started;
      await Bun.write(`${directory}/pid`, `${started.pid}`);
      const alive = () => {
        if (started.exitCode === null) return;
        const said = readFileSync(`${directory}/stderr`, "utf8");
        throw new Error(`QEMU ended with ${started.exitCode}: ${said}`);
      };
      const channels: Channel[] = [];
      for (const name of names) channels.push(await Channel.connect(`${directory}/${name}`, alive));
      const qmp = await QmpClient.connect(`${directory}/qmp`);
      const compare = new QemuCompare(directory, started, channels, qmp);
      // An answer on each channel proves that colo-compare has taken all of them over.
      await compare.finishSecondary();
      await compare.settleNotices();
      compare.take();
      return compare;
    } catch (error) {
      child?.kill("SIGKILL");
      await child?.exited;
      rmSync(directory, { recursive: true, force: true });
      throw error;
    }
  }

  /** Sends a frame of the primary and waits until QEMU has dealt with it. */
  async addPrimary(frame: Uint8Array): Promise<Reaction> {
    await this.finishPrimary(frame);
    await this.settleNotices();
    return this.take();
  }

  async addSecondary(frame: Uint8Array): Promise<Reaction> {
    await this.finishSecondary(frame);
    await this.settleNotices();
    return this.take();
  }

  /** Sends many frames of the primary at once; the reaction is that to all of them. */
  async addPrimaryBurst(frames: Uint8Array[]): Promise<Reaction> {
    await this.finishPrimary(...frames);
    await this.settleNotices();
    return this.take();
  }

  /** What QEMU's comparer is told when a checkpoint is complete: everything held leaves. */
  async checkpoint(): Promise<Reaction> {
    await this.settleNotices(text("COLO_CHECKPOINT"));
    await this.finishPrimary();
    return this.take();
  }

  /** Like checkpoint(), but while QEMU releases nobody reads. */
  async checkpointUnread(): Promise<Uint8Array[]> {
    this.outdev.pause();
    await this.settleNotices(text("COLO_CHECKPOINT"));
    this.outdev.resume();
    await this.finishPrimary();
    return this.take().released;
  }

  /**
   * Once more than the socket takes is released, QEMU sends the newest first, so a barrier overtakes
   * other frames: collects them until there are as many as expected, and then looks whether more come.
   */
  async drainOutput(released: Uint8Array[], expected: number): Promise<void> {
    const deadlineMs = performance.now() + ANSWER_TIMEOUT_MS;
    while (released.length < expected && performance.now() < deadlineMs) {
      released.push(...(await this.reaction()).released);
    }
    for (let i = 0; i < 10; i++) released.push(...(await this.reaction()).released);
  }

  /** The reaction to what has happened by itself, for example to time passing. */
  async reaction(): Promise<Reaction> {
    await this.finishPrimary();
    await this.settleNotices();
    return this.take();
  }

  /**
   * After the object was deleted: everything that still comes out of outdev before QEMU ends. Nothing
   * else can be done with this QEMU afterwards but stop().
   */
  async releasedUntilClosed(): Promise<Uint8Array[]> {
    const closed = new Promise<void>((resolve) => {
      this.outdev.onEnd = () => resolve();
    });
    for (const channel of [this.primaryIn, this.secondaryIn, this.notify]) channel.onEnd = () => {};
    await this.qmp.execute("quit").catch(() => {});
    await closed;
    return this.take().released;
  }

  async stop(): Promise<void> {
    for (const channel of [this.primaryIn, this.secondaryIn, this.outdev, this.notify]) channel.close();
    this.qmp.close();
    this.process.kill("SIGKILL");
    await this.process.exited;
    rmSync(this.directory, { recursive: true, force: true });
  }

  private take(): Reaction {
    const reaction = { released: this.released, asked: this.asked };
    this.released = [];
    this.asked = 0;
    return reaction;
  }

  private async finishPrimary(...frames: Uint8Array[]): Promise<void> {
    const marker = ethernet(ETHERTYPE_LOCAL_EXPERIMENT, text(`barrier ${this.barriers++}`));
    const seen = this.expectOut(marker);
    this.primaryIn.send(...frames, marker);
    await seen;
  }

  private async finishSecondary(...frames: Uint8Array[]): Promise<void> {
    const half = udp(`barrier ${this.barriers++}`, BARRIER_FLOW);
    const seen = this.expectOut(half);
    this.primaryIn.send(half);
    this.secondaryIn.send(...frames, half);
    await seen;
  }

  private async settleNotices(...messages: Uint8Array[]): Promise<void> {
    const seen = this.expect((expectation) => {
      this.expectedNotice = expectation;
    }, GET_XEN_INIT);
    this.notify.send(...messages, text("COLO_USERSPACE_PROXY_INIT"));
    await seen;
    this.expectedNotice = undefined;
  }

  private async expectOut(bytes: Uint8Array): Promise<void> {
    await this.expect((expectation) => {
      this.expectedOut = expectation;
    }, bytes);
    this.expectedOut = undefined;
  }

  private expect(register: (expectation: Expectation) => void, bytes: Uint8Array): Promise<void> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => {
        this.fail(`no answer within ${ANSWER_TIMEOUT_MS} ms`);
      }, ANSWER_TIMEOUT_MS);
      register({
        accepts: (message) => equalBytes(message, bytes),
        resolve: () => {
          clearTimeout(timer);
          resolve();
        },
        reject: (error) => {
          clearTimeout(timer);
          reject(error);
        },
      });
    });
  }

  private fail(reason: string): void {
    this.failure ??= new Error(`QEMU's colo-compare cannot be used any more: ${reason}`);
    this.expectedOut?.reject(this.failure);
    this.expectedNotice?.reject(this.failure);
  }
}

const DO_CHECKPOINT = text("DO_CHECKPOINT");
const GET_XEN_INIT = text("COLO_COMPARE_GET_XEN_INIT");
/** Addresses that no sequence uses. */
const BARRIER_FLOW = {
  source4: "198.19.255.1",
  destination4: "198.19.255.2",
  sourcePort: 9,
  destinationPort: 9,
};

function equalBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && Buffer.compare(a, b) === 0;
}
