/**
 * The connection to a colo-compare of QEMU over its `notify_dev`. colo-compare reports there when the two VMs
 * differ or one is late, and flushes all held packets on request, as it does at a checkpoint. While the
 * connection is there, colo-compare asks the agent and not QEMU for checkpoints (net/colo-compare.c,
 * colo_compare_inconsistency_notify).
 */
import { connect, type Socket } from "node:net";

const DIFFERENT = "DO_CHECKPOINT";
const FLUSH = "COLO_CHECKPOINT";
/** A request whose answer comes behind the effect of all earlier ones. */
const ASK = "COLO_USERSPACE_PROXY_INIT";
const ANSWER = "COLO_COMPARE_GET_XEN_INIT";
const LENGTH_BYTES = 4;

export class CompareNotices {
  #received: Buffer = Buffer.alloc(0);
  readonly #questions: { resolve: () => void; reject: (error: Error) => void }[] = [];
  #ended: Error | undefined;

  private constructor(
    private readonly socket: Socket,
    onDifferent: () => void,
  ) {
    socket.on("data", (data: Buffer) => {
      this.#received = Buffer.concat([this.#received, data]);
      for (let message = this.#next(); message !== undefined; message = this.#next()) {
        if (message === DIFFERENT) onDifferent();
        else if (message === ANSWER) this.#questions.shift()?.resolve();
      }
    });
    socket.on("error", (error) => this.#end(error));
    socket.on("close", () => this.#end(new Error("QEMU has closed it")));
  }

  /** Connects to the unix socket at `path`, where QEMU listens. */
  static connect(path: string, onDifferent: () => void): Promise<CompareNotices> {
    return new Promise((resolve, reject) => {
      const socket = connect(path, () => resolve(new CompareNotices(socket, onDifferent)));
      socket.once("error", (error) => reject(new Error(`cannot connect to colo-compare: ${error.message}`)));
    });
  }

  /** Makes colo-compare release all held packets; resolves when it has. Throws after `timeoutMs`. */
  async flush(timeoutMs: number): Promise<void> {
    if (this.#ended !== undefined) throw this.#ended;
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    this.#questions.push({ resolve, reject });
    const timer = setTimeout(
      () => reject(new Error(`colo-compare has not answered within ${timeoutMs} ms`)),
      timeoutMs,
    );
    this.#send(FLUSH);
    this.#send(ASK);
    await promise.finally(() => clearTimeout(timer));
  }

  close(): void {
    this.socket.destroy();
  }

  /**
   * Length, length of the virtio-net header (vnet_hdr_support is on), message (net/net.c, net_fill_rstate).
   */
  #send(words: string): void {
    const message = Buffer.from(words);
    const head = Buffer.alloc(2 * LENGTH_BYTES);
    head.writeUInt32BE(message.length, 0);
    this.socket.write(Buffer.concat([head, message]));
  }

  /** What QEMU sends here has no second length. */
  #next(): string | undefined {
    if (this.#received.length < LENGTH_BYTES) return undefined;
    const end = LENGTH_BYTES + this.#received.readUInt32BE(0);
    if (this.#received.length < end) return undefined;
    const message = this.#received.toString("latin1", LENGTH_BYTES, end);
    this.#received = this.#received.subarray(end);
    return message;
  }

  #end(error: Error): void {
    this.#ended ??= error;
    for (const { reject } of this.#questions.splice(0)) reject(error);
  }
}
