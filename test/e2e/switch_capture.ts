/** What comes into the clients' switch from each host with the VM's MAC, whole cycles long. */
import { join } from "node:path";
import type { Lab } from "../../src/lab/lab.ts";
import { GUEST_MAC, type HostLetter, inNamespace } from "../../src/lab/network.ts";
import { quiet } from "../until.ts";

/** Headers are enough; what a client reads of the rest is checked at the client. */
const SNAPSHOT_BYTES = 96;
/** For frames on their way to tcpdump. */
const SETTLE_MS = 100;

const PORTS: readonly HostLetter[] = ["a", "b"];

interface PortCapture {
  path: string;
  child: Bun.Subprocess<"ignore", "ignore", "pipe">;
  /** Everything it has said once it has ended. */
  said: Promise<string>;
}

export class SwitchCapture {
  private constructor(private readonly ports: Record<HostLetter, PortCapture>) {}

  /** Resolves when both ports are being captured, to `directory`/`name`-a.pcap and -b.pcap. */
  static async start(lab: Lab, directory: string, name: string): Promise<SwitchCapture> {
    const [a, b] = await Promise.all(
      PORTS.map((port) => startPort(lab, port, join(directory, `${name}-${port}.pcap`))),
    );
    return new SwitchCapture({ a: a!, b: b! });
  }

  get paths(): Record<HostLetter, string> {
    return { a: this.ports.a.path, b: this.ports.b.path };
  }

  /** Ends the capture. Throws when it is not complete: then it proves nothing. */
  async stop(): Promise<void> {
    await quiet(SETTLE_MS);
    for (const port of PORTS) {
      const { child, said, path } = this.ports[port];
      child.kill("SIGINT");
      const text = await said;
      const status = await child.exited;
      if (status !== 0 || !/^0 packets dropped by kernel$/m.test(text)) {
        throw new Error(`the capture ${path} is not complete (status ${status}): ${text}`);
      }
    }
  }

  [Symbol.dispose](): void {
    for (const port of PORTS) this.ports[port].child.kill("SIGKILL");
  }
}

async function startPort(lab: Lab, port: HostLetter, path: string): Promise<PortCapture> {
  const options = ["-Z", "root", "-U", "--immediate-mode", "--time-stamp-precision=nano"];
  const what = ["-i", `to-${port}`, "-Q", "in", "-s", String(SNAPSHOT_BYTES), "-w", path];
  const child = Bun.spawn(
    [...inNamespace(lab.namespaces.switch), "tcpdump", ...options, ...what, "ether", "src", GUEST_MAC],
    { stdin: "ignore", stdout: "ignore", stderr: "pipe" },
  );
  const listening = Promise.withResolvers<void>();
  const follow = async () => {
    const decoder = new TextDecoder();
    let text = "";
    for await (const chunk of child.stderr) {
      text += decoder.decode(chunk, { stream: true });
      if (text.includes("listening on")) listening.resolve();
    }
    listening.reject(new Error(`tcpdump ended: ${text}`));
    return text;
  };
  const said = follow();
  await listening.promise;
  return { path, child, said };
}
