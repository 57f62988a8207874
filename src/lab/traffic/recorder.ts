/** What one kind of traffic has sent, received and found, reported on standard output. */
import { firstWrongByte, patternBytes } from "../pattern.ts";
import type { ClientKind, ClientOptions, ClientReport } from "./contract.ts";

const REPORT_MS = 100;

export class Recorder {
  sent = 0;
  received = 0;
  wrongBytes = 0;
  reconnects = 0;
  answers = 0;
  lost = 0;
  noRoom = 0;
  readonly latencies: number[] = [];
  #marks = 0;
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

  /**
   * Counts the bytes of `chunk` that are not the pattern's from `start` on. Fails at the first unless
   * counting.
   */
  checkPattern(start: number, chunk: Buffer): void {
    const first = firstWrongByte(start, chunk);
    if (first < 0) return;
    const expected = patternBytes(start, chunk.length);
    for (let i = first - start; i < chunk.length; i++) if (chunk[i] !== expected[i]) this.wrongBytes++;
    if (this.options.counting !== true) this.fail(`wrong byte at position ${first}`);
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
    const now = performance.now();
    const report: ClientReport = {
      kind: this.kind,
      type,
      elapsedMs: now - this.#start,
      sent: this.sent,
      received: this.received,
      wrongBytes: this.wrongBytes,
      reconnects: this.reconnects,
      answers: this.answers,
      lost: this.lost,
      noRoom: this.noRoom,
      longestGapMs: Math.max(this.#longestGapMs, type === "progress" ? now - this.#last : 0),
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
