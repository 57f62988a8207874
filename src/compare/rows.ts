/**
 * Tables whose columns are ordinary typed arrays and whose rows nevertheless lie together: all columns look
 * into one buffer, each from a word further on, and an id is the place of its row, a multiple of ID_STEP. So
 * `sequence[id]` and `end[id]` are neighbours in one cache line.
 *
 * With a column each in a memory of its own, what is asked of one flow would take twenty cache lines instead
 * of two. And all of these would begin at a page boundary, so that the elements of one id fell into the same
 * set of the first-level cache, which has room for twelve lines at most: they would push each other out.
 */

/** Ids of such a table are multiples of it: words of 4 bytes in a row, which is one cache line. */
export const ID_STEP = 16;

/** The row of an id, counted from 0: for what is kept elsewhere, in an array of its own. */
export const rowOf = (id: number): number => id / ID_STEP;

const WORD_BYTES = 4;
const LONG_BYTES = 8;

export class Rows {
  #words = new ArrayBuffer(0);
  #word = ID_STEP;
  #longs = new ArrayBuffer(0);
  #long = ID_STEP;

  readonly #count: number;

  /** @param count of ids: 0, ID_STEP, ... (count - 1) * ID_STEP */
  constructor(count: number) {
    this.#count = count;
  }

  /** The next column, 16 of which are in a line; those taken one after the other lie side by side. */
  int32(initial = 0): Int32Array {
    if (this.#word === ID_STEP) {
      this.#words = new ArrayBuffer(this.#count * ID_STEP * WORD_BYTES);
      this.#word = 0;
    }
    const column = new Int32Array(this.#words, this.#word++ * WORD_BYTES);
    if (initial !== 0) for (let row = 0; row < this.#count; row++) column[row * ID_STEP] = initial;
    return column;
  }

  /** The next columns of words are not to share a line with those before. */
  nextLine(): void {
    this.#word = ID_STEP;
  }

  /** The next column of floating-point numbers, eight of which are in a line. */
  float64(): Float64Array {
    if (this.#long === ID_STEP) {
      this.#longs = new ArrayBuffer(this.#count * ID_STEP * LONG_BYTES);
      this.#long = 0;
    }
    return new Float64Array(this.#longs, this.#long++ * LONG_BYTES);
  }
}
