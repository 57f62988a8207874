/**
 * A program of these tests that runs in a network namespace and can be killed: a command a line, an answer a
 * line.
 */
import { join } from "node:path";

export class Child {
  readonly #child;
  readonly #lines: AsyncIterator<string>;

  constructor(namespace: string, program: string, ...words: string[]) {
    this.#child = Bun.spawn(
      [
        ...["nsenter", `--net=/run/netns/${namespace}`, process.execPath],
        ...[join(import.meta.dir, program), ...words],
      ],
      { stdin: "pipe", stdout: "pipe", stderr: "inherit" },
    );
    this.#lines = lines(this.#child.stdout);
  }

  /** The next line that it prints; throws when it has ended. */
  async hear(): Promise<string> {
    const { value, done } = await this.#lines.next();
    if (done) throw new Error(`the process ended with ${await this.#child.exited}`);
    return value;
  }

  say(command: string): Promise<string> {
    this.#child.stdin.write(`${command}\n`);
    this.#child.stdin.flush();
    return this.hear();
  }

  async kill(): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#child.exited;
  }
}

async function* lines(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of stream) {
    const parts = (rest + Buffer.from(chunk).toString()).split("\n");
    rest = parts.pop()!;
    yield* parts;
  }
}
