/**
 * The lab's checkable byte stream: 8-byte big-endian counters 0, 1, 2, …, so each byte follows from its
 * position.
 */

const WORD_BYTES = 8;

/** The `length` bytes of the pattern from position `start` on. */
export function patternBytes(start: number, length: number): Buffer {
  const firstWord = Math.floor(start / WORD_BYTES);
  const skip = start - firstWord * WORD_BYTES;
  const words = Math.ceil((skip + length) / WORD_BYTES);
  const buffer = Buffer.allocUnsafe(words * WORD_BYTES);
  for (let i = 0; i < words; i++) {
    const word = firstWord + i;
    buffer.writeUInt32BE(Math.floor(word / 2 ** 32), i * WORD_BYTES);
    buffer.writeUInt32BE(word >>> 0, i * WORD_BYTES + 4);
  }
  return buffer.subarray(skip, skip + length);
}

/**
 * Position of the first byte of `chunk` that is not the pattern's, if `chunk` begins at `start`; -1 if all
 * are.
 */
export function firstWrongByte(start: number, chunk: Uint8Array): number {
  const expected = patternBytes(start, chunk.length);
  if (Buffer.compare(expected, chunk) === 0) return -1;
  return start + expected.findIndex((byte, index) => byte !== chunk[index]);
}
