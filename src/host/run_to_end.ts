/** Other programs that are run for what they do or say. */

export interface Finished {
  /** Standard output and standard error. */
  output: string;
  complaint: string;
  /** The exit status. */
  status: number;
}

/**
 * Runs a command, while this thread waits, and returns its standard output. Throws an Error with its
 * complaint.
 */
export function runSync(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command);
  if (exitCode !== 0) {
    throw new Error(`${command.join(" ")}: ${stderr.toString().trim() || `exit status ${exitCode}`}`);
  }
  return stdout.toString();
}

/** Runs a command with nothing on its standard input. Throws an Error if there is no such program. */
export async function runToEnd(
  command: readonly string[],
  environment: Readonly<Record<string, string>> = {},
): Promise<Finished> {
  const child = Bun.spawn([...command], {
    stdio: ["ignore", "pipe", "pipe"],
    env: { ...process.env, ...environment },
  });
  const [output, complaint, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { output, complaint: complaint.trim(), status };
}
