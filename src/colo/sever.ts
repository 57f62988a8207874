/**
 * Ends TCP connections of this network namespace from outside of who has them: both sides see them aborted
 * (SOCK_DESTROY, net/core/sock_diag.c; `ss -K`). For a QEMU whose main loop waits for the other one in a call
 * that no yank ends. A kernel without CONFIG_INET_DIAG_DESTROY does nothing; Debian's has it.
 */
import { bracketed, type Endpoint } from "../host/endpoint.ts";
import { runToEnd } from "../host/run_to_end.ts";

/**
 * Ends all connections from here to these addresses.
 * @returns how many there were; 0 also if the kernel cannot do it
 * @throws Error if ss cannot be run
 */
export async function severConnections(endpoints: readonly Endpoint[]): Promise<number> {
  let count = 0;
  for (const { host, port } of endpoints) {
    const command = ["ss", "--kill", "-tnH", "dst", `${bracketed(host)}:${port}`];
    const { output, complaint, status } = await runToEnd(command);
    if (status !== 0) throw new Error(`ss --kill: ${complaint}`);
    count += output.split("\n").filter((line) => line !== "").length;
  }
  return count;
}
