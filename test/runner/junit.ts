/** What a run of `bun test` counted, from the report it wrote with --reporter=junit. */

export interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

/** @param report its text; undefined if there is none, because the process died before it could write it */
export function countsOf(report: string | undefined, status: number): Counts {
  const head = /<testsuites [^>]*>/.exec(report ?? "")?.[0] ?? "";
  const number = (name: string) => Number(new RegExp(` ${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const [tests, failures, skipped] = [number("tests"), number("failures"), number("skipped")];
  // A file that ran no test has not passed: a crash, a wrong path, an error outside of the tests.
  const unexplained = failures === 0 && (status !== 0 || tests === 0) ? 1 : 0;
  return { passed: tests - failures - skipped, failed: failures + unexplained, skipped };
}

/** The line that ends a run, alone on its line. */
export function summary({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}
