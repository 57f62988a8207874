/** iproute2's `ip`, in this network namespace or in a named one, and what it prints as JSON. */
import { z } from "zod";
import { jsonAs } from "./json.ts";
import { runToEnd } from "./run_to_end.ts";

export class NetworkSetupError extends Error {
  override name = "NetworkSetupError";
}

/**
 * Runs `ip` with these words and returns its standard output. Throws {@link NetworkSetupError} with its
 * complaint.
 */
export type Ip = (...words: string[]) => Promise<string>;

/** `ip` in the network namespace `namespace` (of `ip netns`); undefined: in this process's own. */
export function ipIn(namespace: string | undefined): Ip {
  const inside = namespace === undefined ? [] : ["-n", namespace];
  return async (...words) => {
    const command = ["ip", ...inside, ...words];
    const { output, complaint, status } = await runToEnd(command);
    if (status !== 0) throw new NetworkSetupError(`${command.join(" ")}: ${complaint}`);
    return output;
  };
}

/** `ip` in this process's network namespace. */
export const ip: Ip = ipIn(undefined);

/**
 * Runs `ip -json` with these words and checks the list that it prints. Throws {@link NetworkSetupError} or
 * MalformedError.
 */
export async function ipJson<V>(item: z.ZodType<V>, ...words: string[]): Promise<V[]> {
  return jsonAs(z.array(item), await ip("-json", ...words), `ip -json ${words.join(" ")}`);
}
