/**
 * The comparer by itself, on records in memory: no ring, no system call. The working set is several times the
 * caches, as in a ring that the kernel has just written: each record is looked at once, cold. Beside it the
 * limit, the C library's memcmp called once for each record on the same bytes.
 */
import { Comparer } from "../compare/comparer.ts";
import { Intake } from "../compare/intake.ts";
import { BATCH_RECORDS } from "../datapath/loop.ts";
import { RECORD_HEADER_BYTES, SOURCE, VNET_BYTES } from "../ffi/layout.ts";
import { memcmp } from "../ffi/libc.ts";
import { RecordedTraffic, recordStride } from "./record_memory.ts";
import { HEADER_BYTES, Traffic } from "./segments.ts";
import type { Usage } from "./usage.ts";
import { measureUsage } from "./usage.ts";

interface AloneCase {
  payloadBytes: number;
  flows: number;
  /** The secondary has cut the same streams elsewhere. */
  resegmented: boolean;
}

/** One case's memory and comparer, for as many runs as wanted. */
export class CompareAlone {
  /** Frames of the primary in a run. */
  readonly packets: number;
  readonly frameBytes: number;
  readonly #primary: RecordedTraffic;
  readonly #secondary: RecordedTraffic;
  readonly #comparer: Comparer;
  readonly #intake: Intake;
  readonly #payloadBytes: number;
  #released = 0;
  #finished = 0;
  #divergence: string | undefined;

  /** @param workingSetBytes of both sides' records together */
  constructor({ payloadBytes, flows, resegmented }: AloneCase, workingSetBytes: number) {
    const stride = recordStride(VNET_BYTES + HEADER_BYTES + payloadBytes);
    const rounds = Math.max(1, Math.ceil(workingSetBytes / 2 / stride / flows));
    const traffic = { payloadBytes, flows, rounds };
    this.#primary = new RecordedTraffic(new Traffic(traffic), SOURCE.PRIMARY);
    this.#secondary = new RecordedTraffic(
      new Traffic({ ...traffic, shifted: resegmented }),
      SOURCE.SECONDARY,
    );
    this.packets = rounds * flows;
    this.frameBytes = HEADER_BYTES + payloadBytes;
    this.#payloadBytes = payloadBytes;
    this.#comparer = new Comparer({
      primary: this.#primary,
      secondary: this.#secondary,
      memcmp,
      sink: {
        permit: () => {
          this.#released++;
        },
        finish: () => {
          this.#finished++;
        },
        diverged: (divergence) => {
          this.#divergence ??= `${divergence.class}: ${divergence.detail}`;
        },
      },
    });
    this.#intake = new Intake(this.#comparer, this.#primary, this.#secondary);
  }

  /** Compares everything once. Throws if not every frame was released by comparison. */
  compare(): Usage {
    const comparer = this.#comparer;
    const { packets } = this;
    const before = { ...comparer.stats };
    this.#released = 0;
    this.#finished = 0;
    const usage = measureUsage(() => {
      while (this.#intake.take(BATCH_RECORDS) > 0);
    });
    const comparedBytes = comparer.stats.comparedBytes - before.comparedBytes;
    const expectedBytes = packets * this.#payloadBytes;
    if (this.#divergence !== undefined || this.#released !== packets || comparedBytes !== expectedBytes) {
      throw new Error(
        `The comparer released ${this.#released} of ${packets} frames and compared ${comparedBytes} of ` +
          `${expectedBytes} bytes ` +
          `(${this.#divergence ?? "no divergence"}, ${this.#finished} records finished).`,
      );
    }
    // The next run begins like the first one: no flow is known.
    this.#primary.rewind();
    this.#secondary.rewind();
    comparer.releaseAll();
    return usage;
  }

  /** The limit: memcmp of each record's payload, nothing else; of a stream that is cut elsewhere too. */
  memcmp(): Usage {
    const { offsets: primary } = this.#primary;
    const { offsets: secondary } = this.#secondary;
    const payload = this.#payloadBytes;
    const a = this.#primary.address + RECORD_HEADER_BYTES + HEADER_BYTES;
    const b = this.#secondary.address + RECORD_HEADER_BYTES + HEADER_BYTES;
    // Cut elsewhere: whole segments stand one round later, and the last round has the two halves instead.
    const shift = secondary.length - primary.length;
    const whole = shift === 0 ? primary.length : primary.length - shift;
    const half = payload / 2;
    let different = 0;
    const usage = measureUsage(() => {
      for (let i = 0; i < whole; i++) {
        if (memcmp(a + primary[i], b + secondary[i + shift], payload) !== 0) different++;
      }
      for (let i = whole; i < primary.length; i++) {
        if (memcmp(a + primary[i], b + secondary[i - whole], half) !== 0) different++;
        if (memcmp(a + half + primary[i], b + secondary[i + shift], half) !== 0) different++;
      }
    });
    if (different !== 0) throw new Error(`${different} records differ that were made alike.`);
    return usage;
  }

  close(): void {
    this.#primary.close();
    this.#secondary.close();
  }
}
