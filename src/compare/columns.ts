/**
 * Large arrays of which one element each is looked at together (struct of arrays). Memory of that size begins at a page
 * boundary, so the elements of one index would all fall into the same set of the first-level cache, which has room for
 * eight or twelve lines, and push each other out. Here each array begins one cache line further than the one before.
 */

const LINE_BYTES = 64;
/** After so many lines the sets come round again: 4 KiB for every x86-64 and arm64 processor with pages of that size. */
const LINES = 64;

let columns = 0;

function place(byteLength: number): { buffer: ArrayBuffer; at: number } {
  const at = (columns++ % LINES) * LINE_BYTES;
  return { buffer: new ArrayBuffer(at + byteLength), at };
}

export function int32Column(length: number): Int32Array {
  const { buffer, at } = place(length * 4);
  return new Int32Array(buffer, at, length);
}

export function uint32Column(length: number): Uint32Array {
  const { buffer, at } = place(length * 4);
  return new Uint32Array(buffer, at, length);
}

export function float64Column(length: number): Float64Array {
  const { buffer, at } = place(length * 8);
  return new Float64Array(buffer, at, length);
}

export function uint16Column(length: number): Uint16Array {
  const { buffer, at } = place(length * 2);
  return new Uint16Array(buffer, at, length);
}

export function uint8Column(length: number): Uint8Array {
  const { buffer, at } = place(length);
  return new Uint8Array(buffer, at, length);
}
