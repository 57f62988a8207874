/** tcpdump on a link, for its opinion of the checksums of what arrives there. */
import { until } from "../until.ts";

export class ChecksumWatch {
  /** TCP checksums found right, and lines with a wrong one, of TCP or IP. */
  right = 0;
  readonly wrong: string[] = [];

  readonly #process: Bun.Subprocess<"ignore", "pipe", "pipe">;
  readonly #reading: Promise<void>;
  #started = "";

  constructor(namespace: string, device: string) {
    this.#process = Bun.spawn(
      ["ip", "netns", "exec", namespace, "tcpdump", "-i", device, "-Q", "in", "-nnvv", "-B", "8192", "tcp"],
      { stdin: "ignore", stdout: "pipe", stderr: "pipe" },
    );
    this.#reading = Promise.all([this.#read(), this.#readErrors()]).then(() => undefined);
  }

  async ready(): Promise<void> {
    await until("capture", () => this.#started.includes("listening on"));
  }

  async end(): Promise<void> {
    this.#process.kill("SIGINT");
    await this.#reading;
  }

  async #read(): Promise<void> {
    let rest = "";
    for await (const chunk of this.#process.stdout) {
      const lines = (rest + Buffer.from(chunk).toString()).split("\n");
      rest = lines.pop()!;
      for (const line of lines) {
        if (/incorrect|bad cksum/.test(line)) this.wrong.push(line.trim());
        else if (line.includes("(correct)")) this.right++;
      }
    }
  }

  async #readErrors(): Promise<void> {
    for await (const chunk of this.#process.stderr) this.#started += Buffer.from(chunk).toString();
  }
}
