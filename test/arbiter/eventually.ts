/** Asks an arbiter until there is an answer: a server that has just started may not take requests yet. */
import { ArbiterUnreachableError } from "../../src/arbiter/arbiter.ts";
import { until } from "../until.ts";

const POLL_MS = 20;

export async function eventually<T>(ask: () => Promise<T>): Promise<T> {
  const answered = async () => {
    try {
      return { answer: await ask() };
    } catch (error) {
      if (!(error instanceof ArbiterUnreachableError)) throw error;
      return undefined;
    }
  };
  return (await until("the arbiter answers", answered, { limitMs: 60_000, pollMs: POLL_MS })).answer;
}
