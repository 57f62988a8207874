/**
 * Real clients of the Debian guest's servers, run in the lab's client namespace: wrk, redis-cli, psql and
 * pgbench. None of them reconnects unnoticed: wrk counts it as an error, pgbench and `redis-cli --pipe` end,
 * the other redis-cli gets a new client id.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import { type DebianGuestTool, debianGuestToolArgv } from "../../src/lab/assets.ts";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_IPV4, type HostLetter, inNamespace } from "../../src/lab/network.ts";
import { samples } from "../metrics_text.ts";

const DATABASE = ["--host", GUEST_IPV4, "--username", "bench"];
const FOR_EVER_S = 36_000;
const COMMAND_TIMEOUT_MS = 60_000;

/** argv of a tool in the namespace. */
function inside(namespace: string, tool: DebianGuestTool, ...words: string[]): string[] {
  return [...inNamespace(namespace), ...debianGuestToolArgv(tool), ...words];
}

/** Runs a tool to its end and returns what it printed. Throws with its complaint, also after a minute. */
async function query(namespace: string, tool: DebianGuestTool, ...words: string[]): Promise<string> {
  const child = Bun.spawn(inside(namespace, tool, ...words), {
    stdin: "ignore",
    stdout: "pipe",
    stderr: "pipe",
    timeout: COMMAND_TIMEOUT_MS,
  });
  const [output, complaint] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  if ((await child.exited) !== 0) throw new Error(`${tool} ${words.join(" ")}: ${complaint}${output}`);
  return output.trim();
}

/** The rows of an SQL query, fields separated by "|". */
export const sql = (namespace: string, text: string) =>
  query(namespace, "psql", ...DATABASE, "--no-align", "--tuples-only", "--command", text, "bench");

export const redis = (namespace: string, ...words: string[]) =>
  query(namespace, "redis-cli", "-h", GUEST_IPV4, ...words);

/** A client that runs until it is told to end. `progress` grows with what was answered. */
export interface Workload {
  readonly name: string;
  readonly progress: number;
  /** Throws if the client has ended by itself. */
  check(): void;
  kill(): void;
}

abstract class Client implements Workload {
  abstract readonly name: string;
  abstract readonly progress: number;
  protected output = "";
  readonly #reading: Promise<void>;

  protected constructor(protected readonly child: Bun.Subprocess<"pipe", "pipe", "pipe">) {
    this.#reading = Promise.all([this.#read(child.stdout), this.#read(child.stderr)]).then(() => undefined);
  }

  static spawn(command: string[]) {
    return Bun.spawn(command, { stdin: "pipe", stdout: "pipe", stderr: "pipe" });
  }

  check(): void {
    if (this.child.exitCode !== null || this.child.signalCode !== null) {
      throw new Error(`${this.name} ended with status ${this.child.exitCode}: ${this.output.slice(-1000)}`);
    }
  }

  kill(): void {
    this.child.kill("SIGKILL");
  }

  protected lines(): string[] {
    return this.output.split("\n").slice(0, -1);
  }

  /** Its whole output once it has ended with status 0; throws otherwise. */
  protected async finished(timeoutMs: number): Promise<string> {
    const timer = setTimeout(() => this.kill(), timeoutMs);
    await Promise.all([this.child.exited, this.#reading]);
    clearTimeout(timer);
    if (this.child.exitCode !== 0) {
      const { exitCode, signalCode } = this.child;
      throw new Error(
        `${this.name} ended with ${signalCode ?? `status ${exitCode}`}: ${this.output.slice(-2000)}`,
      );
    }
    return this.output;
  }

  async #read(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of stream) this.output += decoder.decode(chunk, { stream: true });
  }
}

interface HttpResult {
  asked: number;
  right: number;
  wrong: number;
  connect: number;
  read: number;
  write: number;
  status: number;
  timeout: number;
  us: number;
}

/**
 * wrk with pages.lua. It tells nothing before its end, so `progress` is the server's own count, see {@link
 * countRequests}.
 */
export class HttpWorkload extends Client {
  readonly name = "wrk";
  #requests = 0;

  constructor(
    private readonly namespace: string,
    readonly connections: number,
    pauseMs: number,
  ) {
    super(
      Client.spawn(
        inside(
          namespace,
          "wrk",
          ...["--threads", "1", "--connections", String(connections), "--timeout", "60s"],
          ...["--duration", `${FOR_EVER_S}s`, "--script", join(import.meta.dir, "pages.lua")],
          ...[`http://${GUEST_IPV4}/1k`, "--", String(pauseMs)],
        ),
      ),
    );
  }

  get progress(): number {
    return this.#requests;
  }

  /** Asks the server how many requests and connections it has had: each call is one more of both. */
  async countRequests(): Promise<{ accepted: number; requests: number }> {
    const status = await query(this.namespace, "curl", "--silent", "--fail", `http://${GUEST_IPV4}/status`);
    const [accepted, , requests] = (/^ (\d+) (\d+) (\d+) $/m.exec(status) ?? []).slice(1).map(Number);
    if (requests === undefined) throw new Error(`nginx's status is not understood: ${status}`);
    this.#requests = requests;
    return { accepted: accepted!, requests };
  }

  async finish(timeoutMs: number): Promise<HttpResult> {
    this.child.kill("SIGINT");
    const result = /^RESULT (.*)$/m.exec(await this.finished(timeoutMs))?.[1];
    if (result === undefined) throw new Error(`wrk gave no result: ${this.output}`);
    return JSON.parse(result) as HttpResult;
  }
}

/** INCR of one counter, one after the other, through one connection of redis-cli. */
export class CounterWorkload extends Client {
  readonly name = "redis-cli";
  #ended = false;
  readonly #asking: Promise<void>;

  constructor(
    namespace: string,
    readonly key: string,
    private readonly pauseMs: number,
  ) {
    super(Client.spawn(inside(namespace, "redis-cli", "-h", GUEST_IPV4)));
    this.#asking = this.#ask();
    this.#asking.catch(() => undefined);
  }

  /** Answers to INCR. */
  get progress(): number {
    return Math.max(0, this.lines().length - 1);
  }

  /** The values that were answered, and the connection's id at its beginning and at its end. */
  async finish(timeoutMs: number): Promise<{ values: number[]; ids: [string, string] }> {
    this.#ended = true;
    await this.#asking;
    this.#send("CLIENT ID");
    await this.child.stdin.end();
    await this.finished(timeoutMs);
    const lines = this.lines();
    return { values: lines.slice(1, -1).map(Number), ids: [lines[0]!, lines.at(-1)!] };
  }

  #send(command: string): void {
    this.child.stdin.write(`${command}\n`);
    this.child.stdin.flush();
  }

  async #ask(): Promise<void> {
    this.#send("CLIENT ID");
    for (let asked = 1; ; asked++) {
      while (this.lines().length < asked) {
        if (this.child.exitCode !== null) return;
        await Bun.sleep(1);
      }
      if (this.#ended) return;
      await Bun.sleep(this.pauseMs);
      this.#send(`INCR ${this.key}`);
    }
  }
}

/**
 * Numbered SETs without waiting for answers, through `redis-cli --pipe`; it reports errors and answers at its
 * end.
 */
export class PipeWorkload extends Client {
  readonly name = "redis-cli --pipe";
  #sent = 0;
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(
    namespace: string,
    readonly prefix: string,
    pauseMs: number,
  ) {
    super(Client.spawn(inside(namespace, "redis-cli", "-h", GUEST_IPV4, "--pipe", "--pipe-timeout", "60")));
    this.#timer = setInterval(() => {
      this.child.stdin.write(`SET ${prefix}${this.#sent} ${this.#sent}\r\n`);
      this.child.stdin.flush();
      this.#sent++;
    }, pauseMs);
  }

  /** SETs sent; whether they were answered is known at the end. */
  get progress(): number {
    return this.#sent;
  }

  override kill(): void {
    clearInterval(this.#timer);
    super.kill();
  }

  async finish(timeoutMs: number): Promise<{ sent: number; errors: number; replies: number }> {
    clearInterval(this.#timer);
    await this.child.stdin.end();
    const match = /^errors: (\d+), replies: (\d+)$/m.exec(await this.finished(timeoutMs));
    if (match === null) throw new Error(`redis-cli --pipe gave no result: ${this.output}`);
    return { sent: this.#sent, errors: Number(match[1]), replies: Number(match[2]) };
  }
}

/** pgbench with transaction.sql at a limited rate. */
export class DatabaseWorkload extends Client {
  readonly name = "pgbench";

  constructor(
    namespace: string,
    readonly clients: number,
    transactionsPerSecond: number,
    private readonly logs: string,
  ) {
    rmSync(logs, { recursive: true, force: true });
    mkdirSync(logs, { recursive: true });
    super(
      Client.spawn(
        inside(
          namespace,
          "pgbench",
          ...DATABASE,
          ...["--client", String(clients), "--no-vacuum", "--define", "id=0", "--progress", "1"],
          ...(transactionsPerSecond > 0 ? ["--rate", String(transactionsPerSecond)] : []),
          ...["--time", String(FOR_EVER_S), "--log", "--log-prefix", join(logs, "transactions")],
          ...["--file", join(import.meta.dir, "transaction.sql"), "bench"],
        ),
      ),
    );
  }

  /** Transactions acknowledged, as of its last report (one a second, rounded). */
  get progress(): number {
    let sum = 0;
    let last = 0;
    for (const [, at, tps] of this.output.matchAll(/^progress: ([\d.]+) s, ([\d.]+) tps/gm)) {
      sum += (Number(at) - last) * Number(tps);
      last = Number(at);
    }
    return Math.round(sum);
  }

  /**
   * Ends after the transactions under way, as when its time is over; the number acknowledged to each client.
   */
  async finish(timeoutMs: number): Promise<number[]> {
    // pgbench ends its run on the alarm that it has set for --time.
    this.child.kill("SIGALRM");
    const output = await this.finished(timeoutMs);
    if (!/^number of failed transactions: 0 /m.test(output)) throw new Error(output);
    const acknowledged = new Array<number>(this.clients).fill(0);
    for (const file of readdirSync(this.logs)) {
      for (const line of readFileSync(join(this.logs, file), "latin1").trimEnd().split("\n")) {
        acknowledged[Number(line.split(" ")[0])]!++;
      }
    }
    return acknowledged;
  }
}

/** Checkpoints and divergences by cause since the agent's start, e.g. { "checkpoints divergence": 3 }. */
export async function causes(lab: Lab, host: HostLetter): Promise<Record<string, number>> {
  const found: Record<string, number> = {};
  for (const [key, value] of samples(await lab.metrics(host))) {
    const match = /^colo_(checkpoints|divergences)_total\{.*(?:cause|class)="([a-z_]+)"/.exec(key);
    if (match !== null && value > 0) found[`${match[1]} ${match[2]}`] = value;
  }
  return found;
}
