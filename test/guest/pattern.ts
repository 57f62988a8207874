/** The guest's pattern: the stream of 8-byte big-endian counters 0, 1, 2, …, so that each byte follows from its position. */

/** `bytes` bytes of the pattern from byte `position` on. */
export function pattern(position: number, bytes: number): Buffer {
  const first = Math.floor(position / 8);
  const last = Math.ceil((position + bytes) / 8);
  const words = Buffer.alloc((last - first) * 8);
  for (let word = first; word < last; word++) {
    words.writeUInt32BE(Math.floor(word / 2 ** 32), (word - first) * 8);
    words.writeUInt32BE(word >>> 0, (word - first) * 8 + 4);
  }
  return words.subarray(position - first * 8, position - first * 8 + bytes);
}

/** Throws if `data` is not the pattern from byte `position` on. */
export function checkPattern(data: Buffer, position: number): void {
  const right = pattern(position, data.length);
  if (data.equals(right)) return;
  let offset = 0;
  while (data[offset] === right[offset]) offset++;
  throw new Error(`byte ${position + offset} is ${data[offset]}, the pattern has ${right[offset]}`);
}
