/**
 * Procedures that take simulated time: generators that yield pauses. Unlike promises they run in a fixed
 * order.
 */
export type Pause = (resume: (value?: unknown) => void, fail: (error: ProcedureError) => void) => void;
// biome-ignore lint/suspicious/noExplicitAny: what a pause gives back depends on the pause
export type Procedure<T> = Generator<Pause, T, any>;

/** What a simulated procedure fails with. */
export class ProcedureError extends Error {
  override name = "ProcedureError";
}

export interface Running {
  abort(reason: string): void;
}

export function run<T>(
  procedure: Procedure<T>,
  done: (value: T) => void,
  failed: (error: ProcedureError) => void,
): Running {
  let over = false;
  let turn = 0;
  const go = (continueIt: () => IteratorResult<Pause, T>) => {
    const mine = ++turn;
    let result: IteratorResult<Pause, T>;
    try {
      result = continueIt();
    } catch (error) {
      if (!(error instanceof ProcedureError)) throw error;
      over = true;
      failed(error);
      return;
    }
    if (result.done) {
      over = true;
      done(result.value);
      return;
    }
    const current = () => !over && turn === mine;
    result.value(
      (value) => {
        if (current()) go(() => procedure.next(value));
      },
      (error) => {
        if (current()) go(() => procedure.throw(error));
      },
    );
  };
  go(() => procedure.next());
  return {
    abort: (reason) => {
      if (!over) go(() => procedure.throw(new ProcedureError(reason)));
    },
  };
}
