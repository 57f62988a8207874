/**
 * Errors that a person can do something about: what is wrong, and the remedy, kept apart. The command line,
 * the doctor and their JSON show both; a log shows the message, which has both.
 */

/** @example throw new Problem('there is no lab "a"', "start one with: colo-agent lab up") */
export class Problem extends Error {
  override name = "Problem";

  /**
   * @param problem what is wrong, a sentence without its full stop
   * @param advice what to do, in the imperative, without a full stop
   */
  constructor(
    readonly problem: string,
    readonly advice: string,
    options?: ErrorOptions,
  ) {
    super(`${problem}: ${advice}`, options);
  }
}

interface Explained {
  problem: string;
  /** A sentence; left out where none is known. */
  advice?: string;
}

/** What to show of anything that was thrown. */
export function explained(error: unknown): Explained {
  if (error instanceof Problem) return { problem: error.problem, advice: asSentence(error.advice) };
  return { problem: error instanceof Error ? error.message : String(error) };
}

/** With a capital letter at its beginning and a full stop at its end. */
function asSentence(advice: string): string {
  const text = advice.replace(/\.$/, "");
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}.`;
}

/**
 * The causes of an error, outermost first, without those whose message is part of the one before: most
 * messages of this program quote their cause.
 */
export function causesOf(error: unknown): Error[] {
  const causes: Error[] = [];
  let said = error instanceof Error ? error.message : "";
  for (let cause = next(error); cause !== undefined && causes.length < CAUSES_MAX; cause = next(cause)) {
    if (!said.includes(cause.message)) causes.push(cause);
    said = cause.message;
  }
  return causes;
}

/** An error may be, by mistake, its own cause. */
const CAUSES_MAX = 10;

function next(error: unknown): Error | undefined {
  return error instanceof Error && error.cause instanceof Error ? error.cause : undefined;
}
