import { expect } from "bun:test";
import { unlinkSync } from "node:fs";
import { type CompareCapturesOptions, compareCaptures } from "../../src/capture/compare_captures.ts";
import type { CaptureReport } from "../../src/capture/report.ts";
import type { CaptureFolder } from "./capture_files.ts";

/** Compares two files in this process, and checks that the report accounts for every frame. */
export function compareFiles(
  primary: string,
  secondary: string,
  options: Partial<CompareCapturesOptions> = {},
): CaptureReport {
  const report = compareCaptures({ primary, secondary, ...options });
  expectConsistent(report);
  return report;
}

/** The same for frames, by way of two files in this folder. */
export function comparer(folder: CaptureFolder) {
  return (
    primary: readonly Uint8Array[],
    secondary: readonly Uint8Array[],
    options: Partial<CompareCapturesOptions> = {},
  ): CaptureReport => {
    const files = [folder.capture(primary), folder.capture(secondary)] as const;
    // A small window is quicker to make, and large enough for everything here.
    const report = compareFiles(...files, { windowMib: 8, ...options });
    for (const file of files) unlinkSync(file);
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
