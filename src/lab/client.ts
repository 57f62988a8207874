/**
 * The lab's client: traffic against the lab guest's services (guest/README.md) that notices every wrong, missing or
 * doubled byte. Runs as a process of its own inside the client's namespace and reports on standard output, one JSON
 * object a line; it ends when its standard input closes, or after `seconds`. A line "mark" on standard input begins
 * the longest gap anew.
 *
 *   bun client.ts KIND '{"host": "198.18.0.10", "seconds": 10, ...}'
 */
import { createHash } from "node:crypto";
import { createSocket } from "node:dgram";
import { readFileSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { firstWrongByte, patternBytes } from "./pattern.ts";

export interface ClientOptions {
  host: string;
  /** Ends by itself after this; without it, when standard input closes. */
  seconds?: number;
  /** Upper limit of what is sent or asked for. */
  bytesPerSecond?: number;
  /** Pause between two requests of the request-and-answer kinds. */
  pauseMs?: number;
  /** Of the bulk kinds: pieces of 256 KiB under way at a time. Default 1. */
  piecesAhead?: number;
  /** Of the kind "blocks": the numbers of the blocks to read. */
  blocks?: readonly number[];
}

export type ClientKind =
  | "duplex"
  | "random"
  | "disk"
  | "files"
  | "blocks"
  | "source"
  | "sink"
  | "http"
  | "connect"
  | "clock"
  | "udp";

export interface ClientReport {
  kind: ClientKind;
  type: "progress" | "end" | "error";
  /** Since the client began. */
  elapsedMs: number;
  /** Bytes sent and received (TCP payload, UDP payload). */
  sent: number;
  received: number;
  /** Requests answered, blocks acknowledged, datagrams returned. */
  answers: number;
  /** UDP: datagrams sent and not returned; those that came back when this client's socket was full are among them. */
  lost: number;
  /** UDP: datagrams of this network namespace that a full socket dropped (RFC 4113, udpInErrors). */
  noRoom: number;
  /** Longest time without anything received since the last mark, and when it ended (milliseconds since the start). */
  longestGapMs: number;
  longestGapEndMs: number;
  /** Marks so far. */
  marks: number;
  /** Times from request to answer in ms: median and 99th percentile; only at the end. */
  latencyMs?: { p50: number; p99: number; max: number };
  message?: string;
}

const TICK_MS = 20;
const REPORT_MS = 100;
const SEND_AHEAD_BYTES = 256 * 1024;
/** After the last request, this long without an answer is an error. */
const FINISH_MS = 30_000;
/** Of the guest's disk service. */
const BLOCK_BYTES = 4096;
/**
 * Of the socket for datagrams. What was held for seconds comes back at once, before this process gets to run, and each
 * frame takes a page or more of the buffer. The kernel gives no more than net.core.rmem_max.
 */
const UDP_BUFFER_BYTES = 4 << 20;
/** Of a connection of the kind "connect". */
const SHORT_BYTES = 2048;

class Traffic {
  sent = 0;
  received = 0;
  answers = 0;
  lost = 0;
  noRoom = 0;
  #marks = 0;
  readonly latencies: number[] = [];
  #longestGapMs = 0;
  #longestGapEndMs = 0;
  readonly #start = performance.now();
  #last = performance.now();

  constructor(
    readonly kind: ClientKind,
    readonly options: ClientOptions,
  ) {
    setInterval(() => this.report("progress"), REPORT_MS).unref();
  }

  elapsedMs(): number {
    return performance.now() - this.#start;
  }

  /** Something arrived. */
  arrived(bytes: number): void {
    const now = performance.now();
    const gap = now - this.#last;
    if (gap > this.#longestGapMs) {
      this.#longestGapMs = gap;
      this.#longestGapEndMs = now - this.#start;
    }
    this.#last = now;
    this.received += bytes;
  }

  /** The longest gap counts from here; one that is under way counts from its own beginning. */
  mark(): void {
    this.#marks++;
    this.#longestGapMs = 0;
    this.#longestGapEndMs = 0;
  }

  report(type: ClientReport["type"], message?: string): void {
    const sorted = this.latencies.toSorted((a, b) => a - b);
    const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
    const report: ClientReport = {
      kind: this.kind,
      type,
      elapsedMs: this.elapsedMs(),
      sent: this.sent,
      received: this.received,
      answers: this.answers,
      lost: this.lost,
      noRoom: this.noRoom,
      longestGapMs: Math.max(this.#longestGapMs, type === "progress" ? performance.now() - this.#last : 0),
      longestGapEndMs: this.#longestGapEndMs,
      marks: this.#marks,
      ...(type === "end" && sorted.length > 0
        ? { latencyMs: { p50: at(0.5), p99: at(0.99), max: at(1) } }
        : {}),
      ...(message === undefined ? {} : { message }),
    };
    process.stdout.write(`${JSON.stringify(report)}\n`);
  }

  fail(message: string): never {
    this.report("error", message);
    process.exit(1);
  }
}

/** Resolves when the traffic is to end. */
function untilEnd(options: ClientOptions): Promise<void> {
  return new Promise((resolve) => {
    if (options.seconds !== undefined) {
      setTimeout(resolve, options.seconds * 1000);
      return;
    }
    process.stdin.on("end", () => resolve());
    process.stdin.on("error", () => resolve());
    process.stdin.resume();
  });
}

function open(traffic: Traffic, port: number): Promise<Socket> {
  return new Promise((resolve) => {
    const socket = connect({ host: traffic.options.host, port, noDelay: true });
    socket.once("connect", () => resolve(socket));
    socket.on("error", (error) => traffic.fail(`the connection broke: ${error.message}`));
  });
}

function closedEarly(traffic: Traffic, socket: Socket, finished: () => boolean): void {
  socket.on("close", () => {
    if (!finished()) traffic.fail("the guest closed the connection");
  });
}

/** Port 7001: the pattern both ways on one connection. */
async function duplex(traffic: Traffic): Promise<void> {
  const socket = await open(traffic, 7001);
  const rate = traffic.options.bytesPerSecond ?? 1_000_000;
  const { promise, resolve } = Promise.withResolvers<void>();
  let ending = false;
  closedEarly(traffic, socket, () => ending && traffic.received === traffic.sent);
  socket.on("data", (chunk) => {
    const wrong = firstWrongByte(traffic.received, chunk as Buffer);
    if (wrong >= 0) traffic.fail(`wrong byte at position ${wrong}`);
    traffic.arrived(chunk.length);
    if (traffic.received > traffic.sent) traffic.fail("more bytes were returned than sent");
    if (ending && traffic.received === traffic.sent) resolve();
  });
  let credit = 0;
  let before = performance.now();
  const timer = setInterval(() => {
    const now = performance.now();
    credit = Math.min(credit + ((now - before) / 1000) * rate, rate / 5);
    before = now;
    const room = SEND_AHEAD_BYTES - (traffic.sent - traffic.received);
    const bytes = Math.floor(Math.min(credit, room));
    if (bytes <= 0) return;
    socket.write(patternBytes(traffic.sent, bytes));
    traffic.sent += bytes;
    credit -= bytes;
  }, TICK_MS);
  await untilEnd(traffic.options);
  clearInterval(timer);
  ending = true;
  if (traffic.received === traffic.sent) resolve();
  setTimeout(
    () => traffic.fail(`${traffic.sent - traffic.received} bytes were never returned`),
    FINISH_MS,
  ).unref();
  await promise;
  socket.end();
}

/** One line out, one line back, checked by `check`, until the end. */
async function requests(
  traffic: Traffic,
  port: number,
  request: (index: number) => string,
  check: (index: number, line: string) => string | undefined,
): Promise<void> {
  const socket = await open(traffic, port);
  let ended = false;
  closedEarly(traffic, socket, () => ended);
  let rest = "";
  let waiting: ((line: string) => void) | undefined;
  socket.on("data", (chunk) => {
    traffic.arrived(chunk.length);
    rest += chunk.toString();
    const lines = rest.split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) waiting?.(line);
  });
  let stop = false;
  void untilEnd(traffic.options).then(() => {
    stop = true;
  });
  for (let index = 0; !stop; index++) {
    const line = request(index);
    const begun = performance.now();
    const answer = await new Promise<string>((resolve) => {
      waiting = resolve;
      socket.write(`${line}\n`);
      traffic.sent += line.length + 1;
    });
    traffic.latencies.push(performance.now() - begun);
    const complaint = check(index, answer);
    if (complaint !== undefined) traffic.fail(complaint);
    traffic.answers++;
    if (traffic.options.pauseMs) await Bun.sleep(traffic.options.pauseMs);
  }
  ended = true;
  socket.end();
}

/** Port 7004: random output, chained, so that a mixture of two machines' streams is noticed. */
function random(traffic: Traffic): Promise<void> {
  let chain = "";
  return requests(
    traffic,
    7004,
    (index) => `request ${index}`,
    (index, line) => {
      const [digits, sum] = line.split(" ");
      if (digits === undefined || !/^[0-9a-f]{64}$/.test(digits))
        return `answer ${index} is malformed: ${line}`;
      chain = createHash("md5")
        .update(chain + digits)
        .digest("hex");
      return sum === chain
        ? undefined
        : `the chain is broken at answer ${index}: the stream is not from one machine`;
    },
  );
}

/** Numbered things that the guest acknowledges when they are on the medium. */
const numbered = (port: number, word: string, thing: string) => (traffic: Traffic) =>
  requests(
    traffic,
    port,
    (index) => `${word} ${index}`,
    (index, line) => (line === `ACK ${index}` ? undefined : `${thing} ${index} was answered: ${line}`),
  );

/** Port 7005: blocks of the disk. */
const disk = numbered(7005, "WRITE", "block");

/** Port 7008: files, each under its final name. */
const files = numbered(7008, "PUT", "file");

/** Port 7005: reads the blocks of the options past the guest's cache and compares them with what `disk` writes there; ends by itself. */
async function blocks(traffic: Traffic): Promise<void> {
  const wanted = traffic.options.blocks ?? [];
  if (wanted.length === 0) return;
  const socket = await open(traffic, 7005);
  const { promise, resolve } = Promise.withResolvers<void>();
  closedEarly(traffic, socket, () => traffic.answers === wanted.length);
  let rest = "";
  socket.on("data", (chunk) => {
    traffic.arrived(chunk.length);
    const lines = (rest + chunk.toString()).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      const block = wanted[traffic.answers];
      if (block === undefined) return traffic.fail("more blocks came than were asked for");
      const content = patternBytes(block * BLOCK_BYTES, BLOCK_BYTES);
      const right = `BLOCK ${block} ${createHash("md5").update(content).digest("hex")}`;
      if (line !== right)
        traffic.fail(`block ${block} on the disk differs from the acknowledged one: ${line}`);
      traffic.answers++;
    }
    if (traffic.answers === wanted.length) resolve();
  });
  const deadline = setTimeout(() => traffic.fail("the guest does not read its disk"), FINISH_MS);
  socket.write(wanted.map((block) => `READ ${block}\n`).join(""));
  await promise;
  clearTimeout(deadline);
  socket.end();
}

const PIECE_BYTES = 256 * 1024;

/** Starts pieces until the end, at the rate and as many at a time as the options say; returns when all are complete. */
function pieces(traffic: Traffic, start: () => void): { completed(): void; run(): Promise<void> } {
  const { bytesPerSecond: rate = 10_000_000, piecesAhead = 1 } = traffic.options;
  const begun: number[] = [];
  let wake: (() => void) | undefined;
  const oneLess = () =>
    new Promise<void>((resolve) => {
      wake = resolve;
    });
  let stop = false;
  void untilEnd(traffic.options).then(() => {
    stop = true;
  });
  return {
    completed: () => {
      const since = begun.shift();
      if (since === undefined) traffic.fail("more bytes came than requested");
      traffic.answers++;
      traffic.latencies.push(performance.now() - since);
      wake?.();
    },
    run: async () => {
      while (!stop) {
        const now = performance.now();
        begun.push(now);
        start();
        while (begun.length >= piecesAhead) await oneLess();
        const rest = (PIECE_BYTES / rate) * 1000 - (performance.now() - now);
        if (rest > 0) await Bun.sleep(rest);
      }
      while (begun.length > 0) await oneLess();
    },
  };
}

/** Port 7002: bulk from the guest. */
async function source(traffic: Traffic): Promise<void> {
  const socket = await open(traffic, 7002);
  let ended = false;
  closedEarly(traffic, socket, () => ended);
  const { completed, run } = pieces(traffic, () => socket.write(`${PIECE_BYTES}\n`));
  socket.on("data", (chunk) => {
    const wrong = firstWrongByte(traffic.received, chunk as Buffer);
    if (wrong >= 0) traffic.fail(`wrong byte at position ${wrong}`);
    traffic.arrived(chunk.length);
    while (traffic.answers < Math.floor(traffic.received / PIECE_BYTES)) completed();
  });
  await run();
  ended = true;
  socket.end();
}

/** Port 7003: bulk to the guest. */
async function sink(traffic: Traffic): Promise<void> {
  const socket = await open(traffic, 7003);
  let ended = false;
  closedEarly(traffic, socket, () => ended);
  const { completed, run } = pieces(traffic, () => {
    socket.write(`${PIECE_BYTES}\n`);
    socket.write(patternBytes(traffic.sent, PIECE_BYTES));
    traffic.sent += PIECE_BYTES;
  });
  let rest = "";
  socket.on("data", (chunk) => {
    traffic.arrived(chunk.length);
    const lines = (rest + chunk.toString()).split("\n");
    rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line !== `OK ${PIECE_BYTES}`) traffic.fail(`the guest answered ${JSON.stringify(line)}`);
      completed();
    }
  });
  await run();
  ended = true;
  socket.end();
}

/** Gets a page again and again, on kept connections, until the end. */
async function pages(
  traffic: Traffic,
  path: string,
  check: (body: Buffer) => string | undefined,
): Promise<void> {
  let stop = false;
  void untilEnd(traffic.options).then(() => {
    stop = true;
  });
  const host = traffic.options.host.includes(":") ? `[${traffic.options.host}]` : traffic.options.host;
  while (!stop) {
    const begun = performance.now();
    let body: Buffer;
    try {
      const response = await fetch(`http://${host}${path}`);
      body = Buffer.from(await response.arrayBuffer());
    } catch (error) {
      traffic.fail(`HTTP: ${(error as Error).message}`);
    }
    const complaint = check(body);
    if (complaint !== undefined) traffic.fail(`HTTP: ${complaint}`);
    traffic.latencies.push(performance.now() - begun);
    traffic.arrived(body.length);
    traffic.answers++;
    if (traffic.options.pauseMs) await Bun.sleep(traffic.options.pauseMs);
  }
}

/** Port 7001: a new connection each time, a few bytes of the pattern there and back. */
async function connections(traffic: Traffic): Promise<void> {
  const bytes = patternBytes(0, SHORT_BYTES);
  let stop = false;
  void untilEnd(traffic.options).then(() => {
    stop = true;
  });
  while (!stop) {
    const begun = performance.now();
    const socket = await open(traffic, 7001);
    const { promise, resolve } = Promise.withResolvers<void>();
    let received = 0;
    closedEarly(traffic, socket, () => received === SHORT_BYTES);
    socket.on("data", (chunk) => {
      if (!bytes.subarray(received, received + chunk.length).equals(chunk as Buffer)) {
        traffic.fail(`wrong bytes from position ${received} on`);
      }
      received += chunk.length;
      traffic.arrived(chunk.length);
      if (received === SHORT_BYTES) resolve();
    });
    socket.write(bytes);
    traffic.sent += SHORT_BYTES;
    await promise;
    socket.end();
    traffic.latencies.push(performance.now() - begun);
    traffic.answers++;
    if (traffic.options.pauseMs) await Bun.sleep(traffic.options.pauseMs);
  }
}

/** Port 80: a page of the pattern. */
function http(traffic: Traffic): Promise<void> {
  const expected = patternBytes(0, 4096);
  return pages(traffic, `/size/${expected.length}`, (body) =>
    body.equals(expected) ? undefined : "the body is wrong",
  );
}

/** Port 80: the guest's clock, which no two copies of a machine agree on, and which never goes back for the client. */
function clock(traffic: Traffic): Promise<void> {
  let latest = 0;
  return pages(traffic, "/time", (body) => {
    const seconds = Number.parseFloat(body.toString());
    if (!(seconds >= latest)) return `the clock says ${body.toString().trim()} after ${latest}`;
    latest = seconds;
    return undefined;
  });
}

/** Port 7006: datagrams that come back; loss is counted, a wrong one is an error. */
async function udp(traffic: Traffic): Promise<void> {
  const type = traffic.options.host.includes(":") ? "udp6" : "udp4";
  const socket = createSocket({ type, recvBufferSize: UDP_BUFFER_BYTES });
  const fullBefore = fullSockets(type);
  const bytes = 512;
  const awaited = new Map<number, number>();
  let next = 0;
  socket.on("message", (message) => {
    const number = message.readUInt32BE(4);
    if (!message.equals(patternBytes(number * 8, bytes))) traffic.fail("UDP: a wrong datagram came back");
    const sentAt = awaited.get(number);
    if (sentAt === undefined) return;
    awaited.delete(number);
    traffic.latencies.push(performance.now() - sentAt);
    traffic.answers++;
    traffic.arrived(bytes);
  });
  socket.on("error", (error) => traffic.fail(`UDP: ${error.message}`));
  await new Promise<void>((resolve) => socket.connect(7006, traffic.options.host, resolve));
  const timer = setInterval(() => {
    const number = next++;
    awaited.set(number, performance.now());
    traffic.sent += bytes;
    socket.send(patternBytes(number * 8, bytes));
  }, traffic.options.pauseMs ?? 10);
  await untilEnd(traffic.options);
  clearInterval(timer);
  const deadline = performance.now() + 2_000;
  while (awaited.size > 0 && performance.now() < deadline) await Bun.sleep(20);
  traffic.lost = awaited.size;
  traffic.noRoom = fullSockets(type) - fullBefore;
  socket.close();
}

/** Datagrams that the full sockets of this network namespace have dropped (net/ipv4/proc.c, net/ipv6/proc.c). */
function fullSockets(type: "udp4" | "udp6"): number {
  if (type === "udp6") {
    const line = /^Udp6RcvbufErrors\s+(\d+)$/m.exec(readFileSync("/proc/self/net/snmp6", "latin1"));
    return Number(line?.[1] ?? 0);
  }
  const rows = readFileSync("/proc/self/net/snmp", "latin1").matchAll(/^Udp: (.*)$/gm);
  const [names = [], values = []] = [...rows].map(([, row = ""]) => row.split(" "));
  return Number(values[names.indexOf("RcvbufErrors")] ?? 0);
}

const KINDS: Record<ClientKind, (traffic: Traffic) => Promise<void>> = {
  duplex,
  random,
  disk,
  files,
  blocks,
  source,
  sink,
  http,
  connect: connections,
  clock,
  udp,
};

if (import.meta.main) {
  const [kind, options] = process.argv.slice(2);
  const run = KINDS[kind as ClientKind];
  if (run === undefined) throw new Error(`kinds of traffic: ${Object.keys(KINDS).join(", ")}`);
  const traffic = new Traffic(kind as ClientKind, JSON.parse(options ?? "{}") as ClientOptions);
  process.stdin.on("data", (chunk) => {
    for (const line of chunk.toString().split("\n")) if (line === "mark") traffic.mark();
  });
  // Whoever started it may be gone, and the guest too: it must not wait for an answer for ever.
  const late = () => traffic.fail(`it did not end within ${FINISH_MS / 1000} s`);
  process.stdin.on("end", () => setTimeout(late, FINISH_MS));
  await run(traffic);
  traffic.report("end");
  process.exit(0);
}
