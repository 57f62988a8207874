import { expect, test } from "bun:test";
import { LineSplitter } from "../../src/qmp/lines.ts";

/** A small generator with a seed (mulberry32), so that a failure can be repeated. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

test("the same lines come out wherever the stream is cut", () => {
  const alphabet = ["a", "ü", "€", "😀", '"', "}"];
  for (let seed = 1; seed <= 300; seed++) {
    const next = random(seed);
    const lines = Array.from({ length: 1 + Math.floor(next() * 8) }, () =>
      Array.from(
        { length: 1 + Math.floor(next() * 30) },
        () => alphabet[Math.floor(next() * alphabet.length)],
      ).join(""),
    );
    const stream = Buffer.from(lines.map((line) => line + (next() < 0.5 ? "\n" : "\r\n")).join(""));
    const splitter = new LineSplitter(1_000);
    const got: string[] = [];
    for (let at = 0; at < stream.length; ) {
      const bytes = 1 + Math.floor(next() * 12);
      const chunk = Buffer.from(stream.subarray(at, at + bytes));
      got.push(...splitter.push(chunk));
      chunk.fill(0x58); // the caller may reuse its memory
      at += bytes;
    }
    expect(got, `seed ${seed}`).toEqual(lines);
  }
});

test("empty lines are left out", () => {
  expect(new LineSplitter(10).push(Buffer.from("\n\r\na\n\nb\n"))).toEqual(["a", "b"]);
});

test("a line may be as long as the limit and no longer, in one piece or in many", () => {
  const whole = new LineSplitter(8);
  expect(whole.push(Buffer.from("12345678\n"))).toEqual(["12345678"]);
  expect(() => whole.push(Buffer.from("123456789\n"))).toThrow("a line of more than 8 bytes");
  const pieces = new LineSplitter(8);
  expect(pieces.push(Buffer.from("1234"))).toEqual([]);
  expect(pieces.push(Buffer.from("5678"))).toEqual([]);
  expect(() => pieces.push(Buffer.from("9"))).toThrow(RangeError); // without its end having come
});
