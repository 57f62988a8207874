/**
 * A client of QEMU's machine protocol over a unix socket.
 *
 * What is special here, next to any other QMP client: the agent has to be able to act while QEMU's main loop
 * hangs on a dead peer. Only out-of-band commands (`oob`) still run then, and QEMU stops *reading* a monitor
 * on which eight commands are waiting (monitor/qmp.c, QMP_REQ_QUEUE_LEN_MAX). So this client never lets more
 * than IN_BAND_MAX in-band commands lie with QEMU, answered or not, and sends out-of-band ones past that
 * limit.
 */
import { connect as connectSocket, type Socket } from "node:net";
import {
  QmpAbortedError,
  QmpClosedError,
  QmpCommandError,
  QmpConnectError,
  type QmpError,
  QmpNegotiationError,
  QmpProtocolError,
  QmpTimeoutError,
} from "./errors.ts";
import { LineSplitter } from "./lines.ts";

/** In-band commands sent and not answered yet; QEMU stops reading at 8. */
const IN_BAND_MAX = 4;
/** In-band commands waiting in this client for one of those places. */
const QUEUE_MAX = 256;
/** The longest message seen is query-qmp-schema's reply, about 250 kB. */
const LINE_BYTES_MAX = 8 * 1024 * 1024;
const CONNECT_TIMEOUT_MS = 5_000;
const COMMAND_TIMEOUT_MS = 5_000;

export interface QmpEvent<Data = Record<string, unknown>> {
  readonly name: string;
  readonly data: Data;
  /**
   * Wall clock (CLOCK_REALTIME) when QEMU emitted it, in nanoseconds, true to the microsecond; -1n if QEMU
   * had none.
   */
  readonly timestampNs: bigint;
}

export interface QmpVersion {
  readonly major: number;
  readonly minor: number;
  readonly micro: number;
  /** The distributor's text, e.g. "Debian 1:11.1.2+ds-3"; empty for a build from source. */
  readonly package: string;
}

interface QmpConnectOptions {
  /** For the socket, the greeting and the negotiation together. Default 5 000. */
  connectTimeoutMs?: number;
  /** For commands that name no limit of their own. Default 5 000. */
  commandTimeoutMs?: number;
  /** Called once, with the reason, when the connection ends; after all pending calls are rejected. */
  onClose?: (reason: QmpError) => void;
}

export interface QmpExecuteOptions {
  /** From this call to the reply, including the time spent waiting for earlier commands. */
  timeoutMs?: number;
  /**
   * Run by QEMU's monitor thread even while its main loop hangs. Only for commands marked allow-oob, e.g.
   * yank.
   */
  oob?: boolean;
}

type QmpEventListener = (event: QmpEvent) => void;

interface Call {
  readonly id: number;
  readonly command: string;
  readonly args: Readonly<Record<string, unknown>> | undefined;
  readonly oob: boolean;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
  timer: ReturnType<typeof setTimeout> | undefined;
  /** Timed out: no caller waits, but the command still occupies QEMU. */
  abandoned: boolean;
}

interface Waiter {
  readonly names: ReadonlySet<string>;
  readonly predicate: (event: QmpEvent) => boolean;
  readonly settle: (event: QmpEvent | undefined, error: Error | undefined) => void;
}

/**
 * One connection to one QEMU. It does not reconnect: events may have been missed, so the owner has to look
 * afresh.
 *
 * @example const qmp = await QmpClient.connect("/run/vm1/qmp.sock", { onClose: (reason) =>
 *   console.error(reason.message) }); const stopped = qmp.waitFor("STOP", () => true, 1_000); // first the
 *   wait, then the command: no event can slip through await qmp.execute("stop"); console.log((await
 *   stopped).timestampNs, await qmp.execute("query-status")); qmp.close();
 */
export class QmpClient {
  readonly path: string;
  readonly #socket: Socket;
  readonly #lines = new LineSplitter(LINE_BYTES_MAX);
  readonly #commandTimeoutMs: number;
  #onClose: ((reason: QmpError) => void) | undefined;
  readonly #calls = new Map<number, Call>();
  readonly #queue: Call[] = [];
  readonly #listeners = new Map<string, Set<QmpEventListener>>();
  readonly #waiters = new Set<Waiter>();
  #nextId = 1;
  #inBand = 0;
  #closed: QmpError | undefined;
  #version: QmpVersion | undefined;
  #oob = false;
  /** Set while the greeting is awaited. */
  #greeting: { arrived(message: Record<string, unknown>): void; failed(error: Error): void } | undefined;

  private constructor(path: string, socket: Socket, options: QmpConnectOptions) {
    this.path = path;
    this.#socket = socket;
    this.#commandTimeoutMs = options.commandTimeoutMs ?? COMMAND_TIMEOUT_MS;
    socket.on("data", (chunk: Buffer) => this.#receive(chunk));
    socket.on("error", (error) =>
      this.#end(new QmpClosedError(`The QMP connection ${path} broke: ${error.message}`, { cause: error })),
    );
    socket.on("close", () =>
      this.#end(new QmpClosedError(`QEMU closed the QMP connection ${path}; it has most likely exited.`)),
    );
  }

  /**
   * Connects, reads the greeting and leaves negotiation mode, with `oob` if QEMU offers it.
   * @throws QmpConnectError, QmpNegotiationError
   */
  static async connect(path: string, options: QmpConnectOptions = {}): Promise<QmpClient> {
    const timeoutMs = options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
    const deadlineMs = performance.now() + timeoutMs;
    const socket = await openSocket(path, timeoutMs);
    const client = new QmpClient(path, socket, options);
    try {
      await client.#negotiate(deadlineMs);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      const failure = new QmpNegotiationError(`${path} does not work as a QMP socket: ${reason}`, {
        cause: error,
      });
      client.#end(failure);
      throw failure;
    }
    client.#onClose = options.onClose;
    return client;
  }

  /** QEMU's version, from the greeting. */
  get version(): QmpVersion {
    if (this.#version === undefined)
      throw new QmpNegotiationError("There is no version before the greeting.");
    return this.#version;
  }

  /** Whether out-of-band commands can be sent. */
  get oob(): boolean {
    return this.#oob;
  }

  /** Why the connection has ended, or undefined while it is open. */
  get closedReason(): QmpError | undefined {
    return this.#closed;
  }

  /**
   * Sends a command and returns what QEMU returned, unchecked: query() of query.ts is for answers that are
   * used.
   * @throws QmpCommandError, QmpTimeoutError, QmpClosedError
   */
  execute<Result = unknown>(
    command: string,
    args?: Readonly<Record<string, unknown>>,
    options: QmpExecuteOptions = {},
  ): Promise<Result> {
    return new Promise<Result>((resolve, reject) => {
      if (this.#closed !== undefined) {
        reject(
          new QmpClosedError(`${command} was not sent: ${this.#closed.message}`, { cause: this.#closed }),
        );
        return;
      }
      const oob = options.oob ?? false;
      if (oob && !this.#oob) {
        reject(
          new QmpNegotiationError(`${command} cannot be sent out of band: this QEMU does not offer oob.`),
        );
        return;
      }
      if (!oob && this.#queue.length >= QUEUE_MAX) {
        reject(new QmpTimeoutError(command, 0, `${QUEUE_MAX} commands already wait for QEMU's main loop.`));
        return;
      }
      const timeoutMs = options.timeoutMs ?? this.#commandTimeoutMs;
      const call: Call = {
        id: this.#nextId++,
        command,
        args,
        oob,
        resolve: resolve as (value: unknown) => void,
        reject,
        timer: undefined,
        abandoned: false,
      };
      call.timer = setTimeout(() => this.#timeOut(call, timeoutMs), timeoutMs);
      if (oob || this.#inBand < IN_BAND_MAX) this.#send(call);
      else this.#queue.push(call);
    });
  }

  /**
   * Calls `listener` for every event of that name ("*": of any name), in the order and at the moment QEMU's
   * bytes arrive.
   * @returns a function that ends it
   */
  on(name: string, listener: QmpEventListener): () => void {
    let listeners = this.#listeners.get(name);
    if (listeners === undefined) {
      listeners = new Set();
      this.#listeners.set(name, listeners);
    }
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /**
   * The next event of that name (or one of these names) for which `predicate` holds. The wait begins at once,
   * so call this first and send the command that causes the event afterwards. The promise may be dropped
   * without being awaited.
   * @throws QmpTimeoutError, QmpClosedError, QmpAbortedError
   */
  waitFor(
    name: string | readonly string[],
    predicate: (event: QmpEvent) => boolean,
    timeoutMs: number,
    options: { signal?: AbortSignal } = {},
  ): Promise<QmpEvent> {
    const names = typeof name === "string" ? [name] : name;
    const what = `event ${names.join(" or ")}`;
    const promise = new Promise<QmpEvent>((resolve, reject) => {
      if (this.#closed !== undefined) {
        reject(new QmpClosedError(`${what} cannot come: ${this.#closed.message}`, { cause: this.#closed }));
        return;
      }
      const { signal } = options;
      const abort = () => waiter.settle(undefined, new QmpAbortedError(`The wait for ${what} was given up.`));
      const timer = setTimeout(
        () =>
          waiter.settle(
            undefined,
            new QmpTimeoutError(what, timeoutMs, `QEMU at ${this.path} did not send it.`),
          ),
        timeoutMs,
      );
      const waiter: Waiter = {
        names: new Set(names),
        predicate,
        settle: (event, error) => {
          if (!this.#waiters.delete(waiter)) return;
          clearTimeout(timer);
          signal?.removeEventListener("abort", abort);
          if (event !== undefined) resolve(event);
          else reject(error as Error);
        },
      };
      this.#waiters.add(waiter);
      if (signal?.aborted) abort();
      else signal?.addEventListener("abort", abort, { once: true });
    });
    // A command that fails before its event comes leaves the wait behind; that is not an unhandled error.
    promise.catch(() => undefined);
    return promise;
  }

  /** Ends the connection from this side; pending calls and waits are rejected with QmpClosedError. */
  close(): void {
    this.#end(new QmpClosedError(`The QMP connection ${this.path} was closed by this side.`));
  }

  async #negotiate(deadlineMs: number): Promise<void> {
    const greeting = await this.#readGreeting(deadlineMs - performance.now());
    const { version, capabilities } = parseGreeting(greeting);
    this.#version = version;
    const oob = capabilities.includes("oob");
    await this.execute("qmp_capabilities", oob ? { enable: ["oob"] } : undefined, {
      timeoutMs: Math.max(1, deadlineMs - performance.now()),
    });
    this.#oob = oob;
  }

  #readGreeting(timeoutMs: number): Promise<Record<string, unknown>> {
    return new Promise((resolve, reject) => {
      const hint =
        "QEMU serves one client per QMP socket: is another program connected to it? Give the agent its own.";
      const timer = setTimeout(
        () => this.#greeting?.failed(new QmpTimeoutError("greeting", Math.round(timeoutMs), hint)),
        timeoutMs,
      );
      const settle = (action: () => void) => {
        clearTimeout(timer);
        this.#greeting = undefined;
        action();
      };
      this.#greeting = {
        arrived: (message) => settle(() => resolve(message)),
        failed: (error) => settle(() => reject(error)),
      };
    });
  }

  #send(call: Call): void {
    if (!call.oob) this.#inBand++;
    this.#calls.set(call.id, call);
    const message: Record<string, unknown> = {
      [call.oob ? "exec-oob" : "execute"]: call.command,
      id: call.id,
    };
    if (call.args !== undefined) message.arguments = call.args;
    this.#socket.write(`${JSON.stringify(message)}\n`);
  }

  #sendQueued(): void {
    while (this.#inBand < IN_BAND_MAX) {
      const call = this.#queue.shift();
      if (call === undefined) return;
      this.#send(call);
    }
  }

  #timeOut(call: Call, timeoutMs: number): void {
    const queued = this.#queue.indexOf(call);
    if (queued >= 0) {
      this.#queue.splice(queued, 1);
      const detail = `Not sent: ${this.#inBand} earlier commands are unanswered, so QEMU's main loop hangs.`;
      call.reject(new QmpTimeoutError(call.command, timeoutMs, detail));
      return;
    }
    call.abandoned = true;
    const detail = `QEMU at ${this.path} has not answered; it may still execute the command.`;
    call.reject(new QmpTimeoutError(call.command, timeoutMs, detail));
  }

  #receive(chunk: Buffer): void {
    if (this.#closed !== undefined) return;
    let lines: string[];
    try {
      lines = this.#lines.push(chunk);
    } catch (error) {
      this.#giveUp(`it sent ${(error as Error).message}`);
      return;
    }
    for (const line of lines) {
      let message: unknown;
      try {
        message = JSON.parse(line);
      } catch {
        // The line itself says more than the parser.
        this.#giveUp(`it sent a line that is not JSON: ${JSON.stringify(line.slice(0, 120))}`);
        return;
      }
      this.#dispatch(message, line);
      if (this.#closed !== undefined) return;
    }
  }

  #dispatch(message: unknown, line: string): void {
    if (!isRecord(message)) {
      this.#giveUp(`it sent JSON that is not an object: ${line.slice(0, 120)}`);
    } else if (typeof message.event === "string") {
      this.#emit(message.event, message);
    } else if ("return" in message || "error" in message) {
      this.#reply(message, line);
    } else if ("QMP" in message && this.#greeting !== undefined) {
      this.#greeting.arrived(message);
    } else {
      this.#giveUp(`it sent a message of an unknown kind: ${line.slice(0, 120)}`);
    }
  }

  #reply(message: Record<string, unknown>, line: string): void {
    const call = typeof message.id === "number" ? this.#calls.get(message.id) : undefined;
    if (call === undefined) {
      // Every command carries an id; a reply without one is QEMU's answer to bytes it could not parse.
      this.#giveUp(`it sent a reply to an unknown command: ${line.slice(0, 200)}`);
      return;
    }
    this.#calls.delete(call.id);
    clearTimeout(call.timer);
    if (!call.oob) this.#inBand--;
    if (!call.abandoned) {
      if ("return" in message) {
        call.resolve(message.return);
      } else {
        const error = isRecord(message.error) ? message.error : {};
        call.reject(
          new QmpCommandError(
            call.command,
            call.args,
            typeof error.class === "string" ? error.class : "unknown class",
            typeof error.desc === "string" ? error.desc : "no description",
          ),
        );
      }
    }
    this.#sendQueued();
  }

  #emit(name: string, message: Record<string, unknown>): void {
    const event: QmpEvent = {
      name,
      data: isRecord(message.data) ? message.data : {},
      timestampNs: parseTimestamp(message.timestamp),
    };
    for (const key of [name, "*"]) {
      for (const listener of [...(this.#listeners.get(key) ?? [])]) {
        this.#guard(() => listener(event));
      }
    }
    for (const waiter of [...this.#waiters]) {
      if (!waiter.names.has(name)) continue;
      this.#guard(() => {
        if (waiter.predicate(event)) waiter.settle(event, undefined);
      });
    }
  }

  /**
   * A listener's bug must neither stop the other listeners nor be hidden: it surfaces as an uncaught
   * exception.
   */
  #guard(call: () => void): void {
    try {
      call();
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #giveUp(what: string): void {
    this.#end(new QmpProtocolError(`The QMP connection ${this.path} was given up: ${what}`));
  }

  #end(reason: QmpError): void {
    if (this.#closed !== undefined) return;
    this.#closed = reason;
    this.#socket.destroy();
    this.#greeting?.failed(reason);
    for (const call of [...this.#calls.values(), ...this.#queue]) {
      clearTimeout(call.timer);
      if (!call.abandoned) {
        call.reject(
          new QmpClosedError(`${call.command} got no answer: ${reason.message}`, { cause: reason }),
        );
      }
    }
    this.#calls.clear();
    this.#queue.length = 0;
    for (const waiter of [...this.#waiters]) {
      const what = `event ${[...waiter.names].join(" or ")}`;
      waiter.settle(
        undefined,
        new QmpClosedError(`${what} did not come: ${reason.message}`, { cause: reason }),
      );
    }
    if (this.#onClose !== undefined) {
      const onClose = this.#onClose;
      this.#guard(() => onClose(reason));
    }
  }
}

function openSocket(path: string, timeoutMs: number): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = connectSocket({ path });
    const fail = (detail: string, cause?: Error) => {
      clearTimeout(timer);
      socket.destroy();
      reject(new QmpConnectError(`Cannot connect to the QMP socket ${path}: ${detail}`, { cause }));
    };
    const timer = setTimeout(() => fail(`no connection within ${timeoutMs} ms.`), timeoutMs);
    const onError = (error: Error) =>
      fail(`${error.message}. Is QEMU running with -qmp unix:${path},server=on,wait=off?`, error);
    socket.once("error", onError);
    socket.once("connect", () => {
      clearTimeout(timer);
      socket.removeListener("error", onError);
      resolve(socket);
    });
  });
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function parseGreeting(greeting: Record<string, unknown>): { version: QmpVersion; capabilities: string[] } {
  const body = isRecord(greeting.QMP) ? greeting.QMP : {};
  const version = isRecord(body.version) ? body.version : {};
  const qemu = isRecord(version.qemu) ? version.qemu : {};
  const { major, minor, micro } = qemu;
  if (typeof major !== "number" || typeof minor !== "number" || typeof micro !== "number") {
    throw new QmpProtocolError(`the greeting names no version: ${JSON.stringify(greeting).slice(0, 200)}`);
  }
  const capabilities = Array.isArray(body.capabilities) ? body.capabilities : [];
  return {
    version: { major, minor, micro, package: typeof version.package === "string" ? version.package : "" },
    capabilities: capabilities.filter((capability): capability is string => typeof capability === "string"),
  };
}

function parseTimestamp(timestamp: unknown): bigint {
  if (!isRecord(timestamp)) return -1n;
  const { seconds, microseconds } = timestamp;
  if (typeof seconds !== "number" || typeof microseconds !== "number" || seconds < 0) return -1n;
  return BigInt(seconds) * 1_000_000_000n + BigInt(microseconds) * 1_000n;
}
