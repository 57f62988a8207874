/** Runs spin on model/failover.pml: generates the verifier, compiles it, searches all states. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export const MODEL = join(import.meta.dir, "../../model/failover.pml");

/** The deepest search of a bound used here is about 11 000 steps. */
const MAX_DEPTH = 100_000;
const MEMORY_LIMIT_MIB = 1500;

export interface Search {
  /** pan's own words. */
  output: string;
  errors: number;
  states: number;
  /** Whether all states within the bounds were looked at. */
  exhaustive: boolean;
}

/** Searches the model with these defines (`MAX_TERM=2`). Throws with the tool's output if a tool fails. */
export async function search(defines: string[]): Promise<Search> {
  const output = await verify(defines);
  const errors = /errors: (\d+)/.exec(output);
  const states = /([\d.e+]+) states, stored/.exec(output);
  if (errors === null || states === null) throw new Error(`this is not a result of pan:\n${output}`);
  return {
    output,
    errors: Number(errors[1]),
    states: Number(states[1]),
    exhaustive: !/Search not completed|max search depth too small|out of memory|MEMLIM/i.test(output),
  };
}

/** The steps that happen in some run of the model with these defines. */
export async function stepsThatHappen(defines: string[]): Promise<Set<string>> {
  const output = await verify(defines, ["-DPRINTF"]);
  return new Set([...output.matchAll(/host \d: (\w+)/g)].map(([, step]) => step!));
}

async function verify(defines: string[], compilerFlags: string[] = []): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), "colo-test-model-"));
  try {
    const generated = await run(folder, ["spin", "-a", ...defines.map((name) => `-D${name}`), MODEL]);
    if (generated.code !== 0) throw new Error(`spin failed:\n${generated.output}`);
    const flags = ["-O2", "-DSAFETY", "-DNOREDUCE", "-DCOLLAPSE", `-DMEMLIM=${MEMORY_LIMIT_MIB}`];
    const compiled = await run(folder, ["gcc", ...flags, ...compilerFlags, "-o", "pan", "pan.c"]);
    if (compiled.code !== 0) throw new Error(`gcc failed:\n${compiled.output}`);
    return (await run(folder, ["./pan", `-m${MAX_DEPTH}`])).output;
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

async function run(folder: string, command: string[]): Promise<{ code: number; output: string }> {
  const child = Bun.spawn(command, { cwd: folder, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr, code] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
    child.exited,
  ]);
  return { code, output: stdout + stderr };
}
