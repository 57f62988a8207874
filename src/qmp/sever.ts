/**
 * Ends TCP connections of this network namespace from outside of who has them: both sides see them aborted (SOCK_DESTROY,
 * net/core/sock_diag.c; `ss -K`). For a QEMU whose main loop waits for the other one in a call that no yank ends. A kernel without
 * CONFIG_INET_DIAG_DESTROY does nothing; Debian's has it.
 */
import { isIPv6 } from "node:net";

export interface Endpoint {
  host: string;
  port: number;
}

/**
 * Ends all connections from here to these addresses.
 * @returns how many there were; 0 also if the kernel cannot do it
 * @throws Error if ss cannot be run
 */
export async function severConnections(endpoints: readonly Endpoint[]): Promise<number> {
  let count = 0;
  for (const { host, port } of endpoints) {
    const address = isIPv6(host) ? `[${host}]` : host;
    const ss = Bun.spawn(["ss", "--kill", "-tnH", "dst", `${address}:${port}`], {
      stdin: "ignore",
      stdout: "pipe",
      stderr: "pipe",
    });
    const [out, err, status] = await Promise.all([
      new Response(ss.stdout).text(),
      new Response(ss.stderr).text(),
      ss.exited,
    ]);
    if (status !== 0) throw new Error(`ss --kill: ${err.trim()}`);
    count += out.split("\n").filter((line) => line !== "").length;
  }
  return count;
}
