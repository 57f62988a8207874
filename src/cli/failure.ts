/** How a command that failed says so, on standard error. */
import { inspect } from "node:util";
import { causesOf, explained } from "../errors/problem.ts";

/**
 * The problem, its causes and the remedy, a line each, with a newline at the end.
 * @param prefix who says it
 * @param verbose with the stacks of the error and of its causes, for a report of a defect
 */
export function failureText(prefix: string, error: unknown, { verbose }: { verbose: boolean }): string {
  const { problem, advice } = explained(error);
  const lines = [`${prefix}: ${problem}`, ...causesOf(error).map(({ message }) => `  because: ${message}`)];
  if (advice !== undefined) lines.push(`  ${advice}`);
  if (verbose) lines.push(inspect(error, { depth: null }));
  return `${lines.join("\n")}\n`;
}
