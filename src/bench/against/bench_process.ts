/**
 * One run of a benchmark as a process of its own: the command line of any commit that knows `bench NAME
 * --json`.
 */
import { join } from "node:path";
import { z } from "zod";
import { jsonAs } from "../../host/json.ts";
import { runToEnd } from "../../host/run_to_end.ts";
import type { BenchName, BenchResult, BenchSkipped } from "../result.ts";

/** Above the longest benchmark with the most repetitions that it has by itself. */
const RUN_MS_MAX = 3_600_000;
/** After SIGTERM a benchmark first takes its VMs down. */
const END_MS_MAX = 60_000;
/** Lines of a failed run that its error quotes. */
const COMPLAINT_LINES_MAX = 15;

export interface BenchOutput {
  results: BenchResult[];
  skipped: BenchSkipped[];
}

const BENCH_NAME = z.enum(["compare", "path", "vm", "checkpoint"]);
const RESULT = z.object({
  bench: BENCH_NAME,
  case: z.string(),
  subject: z.string(),
  metric: z.string(),
  unit: z.string(),
  median: z.number(),
  min: z.number(),
  max: z.number(),
  runs: z.int().positive(),
});
const SKIPPED = z.object({ bench: BENCH_NAME, subject: z.string(), skipped: z.string() });

/** Reads what `bench --json` has printed. Throws MalformedError if it is something else. */
export function parseBenchOutput(text: string): BenchOutput {
  const list = jsonAs(z.array(z.union([RESULT, SKIPPED])), text, "the output of bench --json");
  return {
    results: list.filter((one) => "metric" in one),
    skipped: list.filter((one) => "skipped" in one),
  };
}

const program = (folder: string): string => join(folder, "scripts/colo-agent");

/**
 * Whether the checkout in `folder` has an option. Throws an Error if it has no benchmarks for machines at
 * all.
 */
export async function hasBenchOption(folder: string, option: string): Promise<boolean> {
  const { output, complaint, status } = await runToEnd([program(folder), "bench", "--help"]);
  if (status !== 0 || !output.includes("--json")) {
    const said = complaint.split("\n")[0];
    throw new Error(`the checkout in ${folder} has no \`bench --json\`${said === "" ? "" : ` (${said})`}`);
  }
  return new RegExp(`^\\s*${option}\\b`, "m").test(output);
}

interface BenchProcessOptions {
  name: BenchName;
  /** Options of the command line that follow `bench NAME --json`. */
  options: readonly string[];
  /** Ends the run; it takes down what it has started. */
  signal: AbortSignal;
  /** Lines of its standard error. */
  progress: (text: string) => void;
}

/**
 * Runs one benchmark of the checkout in `folder`.
 *
 * @throws Error with the end of what it said, if it fails, is ended or takes longer than an hour
 */
export async function runBenchOf(
  folder: string,
  { name, options, signal, progress }: BenchProcessOptions,
): Promise<BenchOutput> {
  signal.throwIfAborted();
  const child = Bun.spawn([program(folder), "bench", name, "--json", ...options], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let late = false;
  let ending: Timer | undefined;
  const end = () => {
    child.kill("SIGTERM");
    ending ??= setTimeout(() => child.kill("SIGKILL"), END_MS_MAX);
  };
  const limit = setTimeout(() => {
    late = true;
    end();
  }, RUN_MS_MAX);
  signal.addEventListener("abort", end);
  try {
    const [output, lines] = await Promise.all([
      new Response(child.stdout).text(),
      forwardLines(child.stderr, progress),
      child.exited,
    ]);
    signal.throwIfAborted();
    if (late) throw new Error(`bench ${name} in ${folder} took more than ${RUN_MS_MAX / 60_000} minutes`);
    if (child.exitCode !== 0) {
      const said = lines.slice(-COMPLAINT_LINES_MAX).join("\n");
      throw new Error(`bench ${name} in ${folder} failed with status ${child.exitCode}:\n${said}`);
    }
    return parseBenchOutput(output);
  } finally {
    clearTimeout(limit);
    clearTimeout(ending);
    signal.removeEventListener("abort", end);
  }
}

/** Hands on each line as it comes. Returns the last of them. */
async function forwardLines(
  stream: ReadableStream<Uint8Array>,
  take: (line: string) => void,
): Promise<string[]> {
  const last: string[] = [];
  const decoder = new TextDecoder();
  let rest = "";
  const line = (text: string) => {
    if (text === "") return;
    last.push(text);
    if (last.length > COMPLAINT_LINES_MAX) last.shift();
    take(text);
  };
  for await (const chunk of stream) {
    const pieces = (rest + decoder.decode(chunk, { stream: true })).split("\n");
    rest = pieces.pop() ?? "";
    for (const piece of pieces) line(piece);
  }
  line(rest);
  return last;
}
