import { expect } from "bun:test";
import { type CompareCapturesOptions, compareCaptures } from "../../src/capture/compare_captures.ts";
import type { CaptureReport } from "../../src/capture/report.ts";
import type { CaptureFolder } from "./capture_files.ts";

/** Compares frames by way of two files in this process, and checks that the report accounts for each of them. */
export class Comparison {
  constructor(private readonly folder: CaptureFolder) {}

  readonly compare = (
    primary: readonly Uint8Array[],
    secondary: readonly Uint8Array[],
    options: Partial<CompareCapturesOptions> = {},
  ): CaptureReport => {
    const report = compareCaptures({
      primary: this.folder.capture(primary),
      secondary: this.folder.capture(secondary),
      ...options,
    });
    expectConsistent(report);
    expect(report.primary.frames).toBe(primary.length);
    expect(report.secondary.frames).toBe(secondary.length);
    return report;
  };
}

/** What holds for every report. */
export function expectConsistent(report: CaptureReport): void {
  for (const side of [report.primary, report.secondary]) {
    const { frames, frames_compared, frames_not_compared, frames_ignored, frames_filtered } = side;
    const sum =
      frames_compared + frames_not_compared + frames_ignored + frames_filtered + side.frames_before_start;
    expect(sum).toBe(frames);
  }
  expect(report.same).toBe(report.divergences_total === 0);
  expect(report.divergences.length).toBeLessThanOrEqual(report.divergences_total);
}
