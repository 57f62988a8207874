/** `colo-agent compare` as a process of its own. */
import { join } from "node:path";
import type { CaptureReport } from "../../src/capture/report.ts";

const repository = join(import.meta.dir, "../..");

interface CommandResult {
  status: number;
  stdout: string;
  stderr: string;
  /** Largest resident set of the process. */
  peakBytes: number;
}

export async function compareCommandLine(...args: string[]): Promise<CommandResult> {
  const child = Bun.spawn([process.execPath, "src/cli/main.ts", "compare", ...args], {
    cwd: repository,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [stdout, stderr, status] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { status, stdout, stderr, peakBytes: child.resourceUsage()?.maxRSS ?? 0 };
}

export function reportOf(result: CommandResult): CaptureReport {
  return JSON.parse(result.stdout) as CaptureReport;
}
