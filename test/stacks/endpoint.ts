/**
 * One end of real TCP connections, as a process in a namespace: sends a known stream on each connection,
 * reads and checks another one, and closes when both are through. Obeys task.ts on standard input, answers on
 * standard output.
 */
import { readFileSync, writeFileSync } from "node:fs";
import type { Socket, TCPSocketListener } from "bun";
import { Random } from "../random.ts";
import { streamBytes } from "./stream.ts";
import type { Answer, Manner, Order, Task } from "./task.ts";

const say = (answer: Answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

/** Everything of one task; an aborted one says nothing more. */
class Run {
  readonly #task: Task;
  readonly #random: Random;
  readonly #listeners: TCPSocketListener<Connection>[] = [];
  readonly #connections: Connection[] = [];
  #left: number;
  #marked = false;
  ended = false;

  constructor(task: Task) {
    this.#task = task;
    this.#random = new Random(task.mannerSeed);
    this.#left = task.ports.length;
  }

  async start(): Promise<void> {
    const { kind, host, ports, localPort, manner } = this.#task;
    await apply(manner);
    if (kind === "open") setting("ip_local_port_range", `${localPort} ${localPort}`);
    const connections = ports.map((_, i) => this.#connection(i));
    ports.forEach((port, i) => {
      const connection = connections[i]!;
      if (kind === "accept") {
        this.#listeners.push(
          Bun.listen<Connection>({
            hostname: "::",
            port,
            allowHalfOpen: true,
            data: connection,
            socket: handlers((socket) => {
              socket.data = connection;
            }),
          }),
        );
        return;
      }
      Bun.connect<Connection>({
        hostname: host,
        port,
        allowHalfOpen: true,
        data: connection,
        socket: handlers(),
      }).catch((error: Error) => this.fail(`connection ${i}: ${error.message}`));
    });
    say({ answer: "ready" });
    if (this.#task.mark === 0) this.noteReceived();
  }

  abort(): void {
    this.ended = true;
    for (const listener of this.#listeners) listener.stop(true);
    for (const connection of this.#connections) connection.socket?.terminate();
    say({ answer: "aborted" });
  }

  progress(): void {
    say({
      answer: "progress",
      received: this.#connections.map((connection) => connection.received),
      sent: this.#connections.map((connection) => connection.sent),
    });
  }

  noteReceived(): void {
    if (this.#marked) return;
    let received = 0;
    for (const connection of this.#connections) received += connection.received;
    if (received < this.#task.mark) return;
    this.#marked = true;
    say({ answer: "mark" });
  }

  connectionDone(): void {
    if (--this.#left === 0) say({ answer: "done" });
  }

  fail(detail: string): void {
    if (this.ended) return;
    this.ended = true;
    say({ answer: "failed", detail });
  }

  #connection(index: number): Connection {
    const { sendBytes, receiveBytes, sendSeed, receiveSeed, manner } = this.#task;
    const connection = new Connection(this, {
      index,
      send: streamBytes(sendSeed + index, sendBytes[index]!),
      receive: streamBytes(receiveSeed + index, receiveBytes[index]!),
      manner,
      random: new Random(this.#random.uint32()),
    });
    this.#connections.push(connection);
    return connection;
  }
}

interface Content {
  index: number;
  send: Buffer;
  receive: Buffer;
  manner: Manner;
  random: Random;
}

class Connection {
  socket: Socket<Connection> | undefined;
  sent = 0;
  received = 0;
  #peerClosed = false;
  #shut = false;
  #done = false;
  #writable = Promise.withResolvers<void>();

  constructor(
    readonly run: Run,
    readonly content: Content,
  ) {}

  opened(socket: Socket<Connection>): void {
    if (this.socket !== undefined) {
      this.fail("was opened twice");
      return;
    }
    this.socket = socket;
    socket.setNoDelay(this.content.manner.noDelay);
    this.#send(socket).catch((error: Error) => this.fail(`sending: ${error.message}`));
  }

  arrived(bytes: Buffer): void {
    const { receive, manner, random } = this.content;
    const end = this.received + bytes.length;
    if (end > receive.length || receive.compare(bytes, 0, bytes.length, this.received, end) !== 0) {
      this.fail(`wrong bytes between ${this.received} and ${end}`);
      return;
    }
    this.received = end;
    this.run.noteReceived();
    if (!random.chance(bytes.length / manner.readPauseBytes)) return;
    this.socket!.pause();
    setTimeout(() => this.#alive() && this.socket!.resume(), random.integer(0, manner.pauseMsMax));
  }

  drained(): void {
    this.#writable.resolve();
  }

  /** The other side will not send any more. */
  peerClosed(): void {
    const { receive } = this.content;
    if (this.received < receive.length) this.fail("was closed too early");
    this.#peerClosed = true;
    this.#endIfThrough();
  }

  /** Closed both ways: after peerClosed(), or, if this end had stopped sending before, instead of it. */
  gone(error?: Error): void {
    if (this.#done) return;
    if (error !== undefined) this.fail(error.message);
    else if (!this.#shut) this.fail("was closed too early");
    else this.peerClosed();
  }

  fail(detail: string): void {
    const { send, receive, index } = this.content;
    this.run.fail(
      `connection ${index}: ${detail} (sent ${this.sent} of ${send.length} bytes, received ` +
        `${this.received} of ${receive.length})`,
    );
  }

  async #send(socket: Socket<Connection>): Promise<void> {
    const { send, manner, random } = this.content;
    while (this.sent < send.length) {
      if (!this.#alive()) return;
      const bytes = random.integer(manner.writeBytesMin, manner.writeBytesMax);
      const chunk = send.subarray(this.sent, this.sent + bytes);
      this.#writable = Promise.withResolvers();
      const written = socket.write(chunk);
      if (written < 0) return this.fail("cannot be written to");
      this.sent += written;
      if (written < chunk.length) await this.#writable.promise;
      else if (random.chance(written / manner.writePauseBytes))
        await Bun.sleep(random.integer(0, manner.pauseMsMax));
    }
    if (!this.#alive()) return;
    this.#shut = true;
    socket.shutdown();
    this.#endIfThrough();
  }

  #endIfThrough(): void {
    if (!this.#peerClosed || !this.#shut || this.#done) return;
    this.#done = true;
    this.socket!.end();
    this.run.connectionDone();
  }

  #alive(): boolean {
    return !this.run.ended && !this.#done;
  }
}

function handlers(adopt?: (socket: Socket<Connection>) => void) {
  return {
    open(socket: Socket<Connection>) {
      adopt?.(socket);
      socket.data.opened(socket);
    },
    data: (socket: Socket<Connection>, bytes: Buffer) => socket.data.arrived(bytes),
    drain: (socket: Socket<Connection>) => socket.data.drained(),
    end: (socket: Socket<Connection>) => socket.data.peerClosed(),
    close: (socket: Socket<Connection>, error?: Error) => socket.data.gone(error),
    error: (socket: Socket<Connection>, error: Error) => socket.data.fail(error.message),
  };
}

/** Settings of this process's network namespace. */
const settingPath = (name: string) => `/proc/sys/net/ipv4/${name}`;
const setting = (name: string, value: string) => writeFileSync(settingPath(name), value);

const congestionControls = readFileSync(settingPath("tcp_allowed_congestion_control"), "utf8")
  .trim()
  .split(" ");

async function apply(manner: Manner): Promise<void> {
  setting(
    "tcp_congestion_control",
    congestionControls[manner.congestionControl % congestionControls.length]!,
  );
  setting("tcp_timestamps", `${manner.timestamps}`);
  setting("tcp_rmem", `4096 ${manner.receiveBytes} 6291456`);
  const { routeMtu } = manner;
  const script = [
    `ethtool -K eth0 ${manner.offloads.join(" ")} >/dev/null`,
    `ip route change 198.18.0.0/24 dev eth0 mtu ${routeMtu} advmss 1460`,
    `ip -6 route replace 2001:2::/64 dev eth0 metric 1 mtu ${Math.max(routeMtu, 1280)} advmss 1440`,
  ].join(" && ");
  const shell = Bun.spawn(["sh", "-c", script], { stderr: "pipe" });
  if ((await shell.exited) !== 0) throw new Error(`setting up failed: ${await shell.stderr.text()}`);
}

let current: Run | undefined;

async function obey(order: Order): Promise<void> {
  if (order.order === "progress") {
    if (current === undefined) say({ answer: "progress", received: [], sent: [] });
    else current.progress();
    return;
  }
  if (order.order === "abort") {
    if (current === undefined) say({ answer: "aborted" });
    else current.abort();
    current = undefined;
    return;
  }
  current = new Run(order.task);
  await current.start();
}

for await (const line of console) {
  if (line === "") continue; // the end of the input
  obey(JSON.parse(line) as Order).catch((error: Error) => say({ answer: "failed", detail: error.message }));
}
// The test is gone.
process.exit();
