/** What `colo-agent bench` is asked for. */

export interface BenchOptions {
  json?: boolean;
  quick?: boolean;
  runs?: number;
  only?: RegExp;
  /** A name of a commit, as git takes it. */
  against?: string;
  repetitions: number;
  /** In percent. */
  worseBy: number;
  uncommitted?: boolean;
}

/** Whether a case is wanted. */
export const wantedBy =
  ({ only }: Pick<BenchOptions, "only">) =>
  (caseName: string): boolean =>
    only === undefined || only.test(caseName);
