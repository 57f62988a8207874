/**
 * Cuts a byte stream into lines. QMP is one JSON object a line (docs/interop/qmp-spec.rst), but a read may
 * end anywhere: in the middle of a line, of a multi-byte character, or after several lines.
 */
export class LineSplitter {
  readonly #parts: Buffer[] = [];
  #pendingBytes = 0;

  /** @param lineBytesMax longest line accepted, without its line feed */
  constructor(readonly lineBytesMax: number) {}

  /**
   * Lines completed by `chunk`, without line ends; empty ones are left out. The chunk's memory is not kept.
   * @throws RangeError when a line is longer than lineBytesMax, even before its end has been seen
   */
  push(chunk: Buffer): string[] {
    const lines: string[] = [];
    let start = 0;
    for (;;) {
      const end = chunk.indexOf(0x0a, start);
      if (end < 0) break;
      const line = this.#take(chunk.subarray(start, end));
      if (line.length > 0) lines.push(line);
      start = end + 1;
    }
    if (start < chunk.length) {
      this.#check(chunk.length - start);
      this.#parts.push(Buffer.from(chunk.subarray(start)));
      this.#pendingBytes += chunk.length - start;
    }
    return lines;
  }

  #take(tail: Buffer): string {
    this.#check(tail.length);
    const whole = this.#parts.length === 0 ? tail : Buffer.concat([...this.#parts, tail]);
    this.#parts.length = 0;
    this.#pendingBytes = 0;
    return whole.toString("utf8").trim();
  }

  #check(moreBytes: number): void {
    const bytes = this.#pendingBytes + moreBytes;
    if (bytes > this.lineBytesMax) throw new RangeError(`a line of more than ${this.lineBytesMax} bytes`);
  }
}
