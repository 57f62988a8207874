/**
 * Something that keeps two captures from being compared; the message says what and what to do. Exit status 2.
 */
export class CaptureError extends Error {
  override readonly name = "CaptureError";
}
