/** JSON from outside the process: files, other programs, other hosts. */
import type { z } from "zod";

/** The text is no JSON, or not of the expected shape. The message begins with where it came from. */
export class MalformedError extends Error {
  override name = "MalformedError";
}

const SHOWN_CHARACTERS = 80;

/** Parses `text` and checks it. `origin` names the source in messages. Throws {@link MalformedError}. */
export function jsonAs<V>(schema: z.ZodType<V>, text: string, origin: string): V {
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new MalformedError(`${origin}: not JSON: ${text.slice(0, SHOWN_CHARACTERS)}`, { cause: error });
  }
  return checkedAs(schema, json, origin);
}

/** Checks a parsed value. Throws {@link MalformedError}. */
export function checkedAs<V>(schema: z.ZodType<V>, value: unknown, origin: string): V {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const mistakes = result.error.issues.map(({ path, message }) => [...path.map(String), message].join(": "));
  throw new MalformedError(`${origin}: ${mistakes.join("; ")}`, { cause: result.error });
}
