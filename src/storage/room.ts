/** Room on file systems. */
import { statfsSync } from "node:fs";

/** Bytes that are free for everybody where `path` is. Throws an Error if it is not there. */
export function freeBytes(path: string): number {
  const { bavail, bsize } = statfsSync(path);
  return bavail * bsize;
}
