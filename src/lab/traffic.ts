/** Starts the lab's client (traffic/client.ts) in the client's namespace and follows what it reports. */
import { join } from "node:path";
import { LineSplitter } from "../qmp/lines.ts";
import type { Lab } from "./lab.ts";
import { inNamespace } from "./network.ts";
import type { ClientKind, ClientOptions, ClientReport } from "./traffic/contract.ts";

/** Of one report, a JSON object on a line. */
const REPORT_BYTES_MAX = 65_536;
const MARK_TIMEOUT_MS = 10_000;

export class LabTraffic {
  #last: ClientReport | undefined;
  #marks = 0;
  #ended: Promise<ClientReport>;
  readonly #child;

  /** `onReport` is called about every 100 ms. */
  constructor(
    lab: Pick<Lab, "namespaces">,
    kind: ClientKind,
    options: ClientOptions,
    onReport?: (report: ClientReport) => void,
  ) {
    const program = join(import.meta.dir, "traffic/client.ts");
    this.#child = Bun.spawn(
      [...inNamespace(lab.namespaces.client), process.execPath, program, kind, JSON.stringify(options)],
      { stdin: "pipe", stdout: "pipe", stderr: "inherit" },
    );
    this.#child.unref();
    this.#ended = this.#follow(kind, onReport);
    this.#ended.catch(() => undefined); // whoever waits for the end gets the error
  }

  /** What it reported last. */
  get last(): ClientReport | undefined {
    return this.#last;
  }

  /** Restarts the longest gap of its reports; resolves when a report has counted the mark. */
  async mark(): Promise<void> {
    const marks = ++this.#marks;
    this.#child.stdin.write("mark\n");
    this.#child.stdin.flush();
    await this.until("a mark", (report) => report.marks >= marks, MARK_TIMEOUT_MS);
  }

  /** Lets it come to its end. Resolves with its last report; rejects when it found something wrong. */
  finish(): Promise<ClientReport> {
    void this.#child.stdin.end();
    return this.#ended;
  }

  /** Resolves when it ends by itself, as {@link finish}. */
  ended(): Promise<ClientReport> {
    return this.#ended;
  }

  /** Waits until `condition` holds for a report; rejects when the traffic fails or after `timeoutMs`. */
  async until(what: string, condition: (report: ClientReport) => boolean, timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    while (this.#last === undefined || !condition(this.#last)) {
      if (this.#last?.type === "error") throw new Error(`${this.#last.kind}: ${this.#last.message}`);
      if (performance.now() > deadline) {
        throw new Error(`${what}: not within ${timeoutMs} ms; last report ${JSON.stringify(this.#last)}`);
      }
      await Bun.sleep(20);
    }
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  [Symbol.dispose](): void {
    this.kill();
  }

  async #follow(kind: ClientKind, onReport?: (report: ClientReport) => void): Promise<ClientReport> {
    const lines = new LineSplitter(REPORT_BYTES_MAX);
    for await (const chunk of this.#child.stdout) {
      for (const line of lines.push(Buffer.from(chunk))) {
        this.#last = JSON.parse(line) as ClientReport;
        onReport?.(this.#last);
      }
    }
    await this.#child.exited;
    if (this.#last?.type === "end") return this.#last;
    throw new Error(`${kind}: ${this.#last?.message ?? "the client ended without a report"}`);
  }
}
