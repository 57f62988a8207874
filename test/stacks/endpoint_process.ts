import { join } from "node:path";
import { until } from "../until.ts";
import type { Answer, Order } from "./task.ts";

/** endpoint.ts in a namespace. */
export class Endpoint {
  readonly #process: Bun.Subprocess<"pipe", "pipe", "inherit">;
  readonly #reading: Promise<void>;
  #answers: Answer[] = [];

  constructor(readonly namespace: string) {
    const program = join(import.meta.dir, "endpoint.ts");
    this.#process = Bun.spawn(["ip", "netns", "exec", namespace, process.execPath, program], {
      stdin: "pipe",
      stdout: "pipe",
      stderr: "inherit",
    });
    this.#reading = this.#read();
  }

  tell(order: Order): void {
    this.#process.stdin.write(`${JSON.stringify(order)}\n`);
    this.#process.stdin.flush();
  }

  /** Whether it has said that since the last forget(). */
  said(what: Answer["answer"]): boolean {
    return this.#answers.some(({ answer }) => answer === what);
  }

  /** What was wrong, if anything. */
  failure(): string | undefined {
    const failed = this.#answers.find((answer) => answer.answer === "failed");
    return failed?.answer === "failed" ? `${this.namespace}: ${failed.detail}` : undefined;
  }

  async hear(what: Answer["answer"], limitMs = 30_000): Promise<Answer> {
    await until(`answer "${what}" from ${this.namespace}`, () => this.said(what) || this.failure(), {
      limitMs,
    });
    const failure = this.failure();
    if (failure !== undefined) throw new Error(failure);
    return this.#answers.find(({ answer }) => answer === what)!;
  }

  forget(): void {
    this.#answers = [];
  }

  async end(): Promise<void> {
    this.#process.kill("SIGKILL");
    await this.#reading;
  }

  async #read(): Promise<void> {
    let rest = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (rest + Buffer.from(chunk).toString()).split("\n");
      rest = lines.pop()!;
      for (const line of lines) this.#answers.push(JSON.parse(line) as Answer);
    }
  }
}
