/** A benchmark that is interrupted while it starts VMs leaves nothing behind. */
import { expect, test } from "bun:test";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { namespacePath, namespacesOf } from "../../src/lab/network.ts";

const TIMEOUT_MS = 120_000;
const LAB = "bench-cp";

/** Processes whose command line names the benchmark's directory or machine. */
function processesOf(lab: string): string[] {
  return readdirSync("/proc")
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return readFileSync(`/proc/${pid}/cmdline`, "latin1");
      } catch {
        return "";
      }
    })
    .filter((line) => line.includes(`/${lab}/`));
}

test(
  "SIGINT takes VMs and namespaces down",
  async () => {
    const main = join(import.meta.dir, "../../src/cli/main.ts");
    const bench = Bun.spawn([process.execPath, main, "bench", "checkpoint", "--quick"], {
      stdin: "ignore",
      stdout: "ignore",
      stderr: "pipe",
    });
    let seen = "";
    let sent = false;
    for await (const chunk of bench.stderr) {
      seen += new TextDecoder().decode(chunk);
      if (sent || processesOf(LAB).length === 0) continue;
      sent = true;
      bench.kill("SIGINT");
    }
    expect(sent).toBe(true);
    expect(await bench.exited).toBe(130);
    expect(seen).toContain("interrupted");
    expect(processesOf(LAB)).toEqual([]);
    for (const name of Object.values(namespacesOf(LAB))) expect(existsSync(namespacePath(name))).toBe(false);
  },
  TIMEOUT_MS,
);
