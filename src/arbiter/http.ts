/** One HTTP exchange with an arbiter, over a connection that stays open: usually one round trip. */

import type { TlsFiles } from "../certificates/read.ts";
import { ArbiterUnreachableError } from "./arbiter.ts";

interface Exchange {
  method: "GET" | "PUT" | "POST";
  body?: string;
  headers?: Record<string, string>;
  tls: TlsFiles | undefined;
  /** From now to the last byte of the answer, connecting included. */
  timeoutMs: number;
}

/**
 * Throws {@link ArbiterUnreachableError} when no whole answer arrives in time; the request may have been
 * carried out.
 */
export async function exchange(url: URL, options: Exchange): Promise<{ status: number; text: string }> {
  const { method, body, headers, tls, timeoutMs } = options;
  try {
    const response = await fetch(url, {
      method,
      ...(body === undefined ? {} : { body }),
      ...(headers === undefined ? {} : { headers }),
      ...(tls === undefined ? {} : { tls }),
      redirect: "error",
      proxy: false, // whatever the environment says: a proxy's loss must not be the arbiter's
      signal: AbortSignal.timeout(timeoutMs),
    });
    return { status: response.status, text: await response.text() };
  } catch (error) {
    throw new ArbiterUnreachableError(`${url.origin} does not answer: ${(error as Error).message}`, {
      cause: error,
    });
  }
}

/**
 * The answer's JSON. Throws {@link ArbiterUnreachableError}: who answers something else is not an arbiter.
 */
export function parseJson(url: URL, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new ArbiterUnreachableError(
      `${url.origin} answered with text that is not JSON: ${text.slice(0, 200)}`,
      { cause: error },
    );
  }
}
