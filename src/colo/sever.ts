/**
 * Ends TCP connections of this network namespace from outside of who has them: both sides see them aborted (SOCK_DESTROY,
 * net/core/sock_diag.c; `ss -K`). For a QEMU whose main loop waits for the other one in a call that no yank ends. A kernel without
 * CONFIG_INET_DIAG_DESTROY does nothing; Debian's has it.
 */
import { isIPv6 } from "node:net";
import { runToEnd } from "../host/run_to_end.ts";

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
    const command = ["ss", "--kill", "-tnH", "dst", `${address}:${port}`];
    const { output, complaint, status } = await runToEnd(command);
    if (status !== 0) throw new Error(`ss --kill: ${complaint}`);
    count += output.split("\n").filter((line) => line !== "").length;
  }
  return count;
}
