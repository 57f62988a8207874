/** How tests wait: for a condition, with a limit; or to see that something does not happen. */

/** Enough for a busy machine: reached only if the condition never comes true. */
const LIMIT_MS = 30_000;
const POLL_MS = 1;

interface UntilOptions {
  limitMs?: number;
  /** Pause between two looks. Default 1 ms. */
  pollMs?: number;
  /** What a failure adds to its message: a state that tells how far it came. */
  seen?: () => unknown;
}

/**
 * Waits until `look` finds something, and resolves with that: anything but undefined, null and false.
 *
 * @param what what is waited for, for the message: "both frames have arrived", "an answer"
 * @throws Error with `what`, if it does not come true within the limit; what `look` throws ends the wait too
 */
export async function until<T>(
  what: string,
  look: () => T | undefined | null | false | Promise<T | undefined | null | false>,
  { limitMs = LIMIT_MS, pollMs = POLL_MS, seen }: UntilOptions = {},
): Promise<T> {
  const end = performance.now() + limitMs;
  for (;;) {
    const found = await look();
    if (found !== undefined && found !== null && found !== false) return found;
    if (performance.now() > end) {
      const state = seen === undefined ? "" : `; seen: ${JSON.stringify(seen())}`;
      throw new Error(`not within ${limitMs} ms: ${what}${state}`);
    }
    await Bun.sleep(pollMs);
  }
}

/** Awaits `promise` for at most `limitMs`. Throws Error with `what`, the statement that did not come true. */
export async function within<T>(what: string, promise: Promise<T>, limitMs = LIMIT_MS): Promise<T> {
  let timer: Timer | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${limitMs} ms: ${what}`)), limitMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Waits for `ms`, in which something must not happen; the test looks afterwards. On a slow machine a fault
 * may need longer to show, so such a test can miss a fault there. It never fails without one.
 */
export function quiet(ms: number): Promise<void> {
  return Bun.sleep(ms);
}

/**
 * Lets a fault last for `ms`, or a state in which nothing that the test could wait for happens. No
 * assertion may depend on how far something else comes meanwhile.
 */
export function lasting(ms: number): Promise<void> {
  return Bun.sleep(ms);
}
