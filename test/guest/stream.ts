/** A TCP connection with awaitable reads, for clients of the guest's services. */
import { connect, type Socket } from "node:net";

export class Stream {
  private chunks: Buffer[] = [];
  private bytes = 0;
  private ended = false;
  private failure: Error | undefined;
  private wake: (() => void) | undefined;

  private constructor(readonly socket: Socket) {
    socket.on("data", (chunk: Buffer) => {
      this.chunks.push(chunk);
      this.bytes += chunk.length;
      this.notify();
    });
    socket.on("end", () => {
      this.ended = true;
      this.notify();
    });
    socket.on("error", (error: Error) => {
      this.failure = error;
      this.notify();
    });
    socket.on("close", () => {
      this.ended = true;
      this.notify();
    });
  }

  static open(host: string, port: number): Promise<Stream> {
    return new Promise((resolve, reject) => {
      const socket = connect({ host, port, noDelay: true });
      socket.once("error", reject);
      socket.once("connect", () => {
        socket.off("error", reject);
        resolve(new Stream(socket));
      });
    });
  }

  private notify(): void {
    this.wake?.();
    this.wake = undefined;
  }

  private async more(): Promise<void> {
    if (this.failure) throw this.failure;
    if (this.ended) throw new Error("connection ended");
    await new Promise<void>((resolve) => {
      this.wake = resolve;
    });
  }

  /** Hands the bytes to the socket; resolves when the socket wants more. */
  async write(data: Buffer | string): Promise<void> {
    if (this.failure) throw this.failure;
    if (this.socket.write(data)) return;
    await new Promise<void>((resolve) => {
      this.socket.once("drain", resolve);
      this.socket.once("close", resolve);
    });
  }

  /** Everything that has come in so far, at least one byte. */
  async readSome(): Promise<Buffer> {
    while (this.bytes === 0) await this.more();
    const data = Buffer.concat(this.chunks);
    this.chunks = [];
    this.bytes = 0;
    return data;
  }

  async read(bytes: number): Promise<Buffer> {
    while (this.bytes < bytes) await this.more();
    const data = Buffer.concat(this.chunks);
    this.chunks = data.length > bytes ? [data.subarray(bytes)] : [];
    this.bytes = data.length - bytes;
    return data.subarray(0, bytes);
  }

  /** The next line, without its end. */
  async line(): Promise<string> {
    for (;;) {
      const data = Buffer.concat(this.chunks);
      const end = data.indexOf(10);
      if (end >= 0) {
        await this.read(end + 1);
        return data.toString("latin1", 0, end);
      }
      await this.more();
    }
  }

  async request(line: string): Promise<string> {
    await this.write(`${line}\n`);
    return this.line();
  }

  /**
   * Waits for the end of the connection and returns what came before it; throws if it ended with an error.
   */
  async rest(): Promise<Buffer> {
    for (;;) {
      try {
        await this.more();
      } catch (error) {
        if (this.failure) throw error;
        const data = Buffer.concat(this.chunks);
        this.chunks = [];
        this.bytes = 0;
        return data;
      }
    }
  }

  close(): void {
    this.socket.destroy();
  }
}
