/** Frames as records keep them: at most 2048 bytes, with the place of the difference among them. */
import type { DivergenceRecord, FrameCut } from "./record.ts";

const KEPT_BYTES_MAX = 2048;
/** Kept on either side of the first differing byte. */
const WINDOW_BYTES = 32;

export interface KeptFrame {
  bytes: Uint8Array;
  cut?: FrameCut;
}

/**
 * A copy of the frame that is small enough to keep: its head and, where the difference is further back, 32
 * bytes on either side of it.
 */
export function keepFrame(frame: Uint8Array, differenceOffset?: number): KeptFrame {
  const frameBytes = frame.length;
  if (frameBytes <= KEPT_BYTES_MAX) return { bytes: frame.slice() };
  const at = differenceOffset ?? 0;
  const end = Math.min(frameBytes, at + WINDOW_BYTES + 1);
  if (end <= KEPT_BYTES_MAX) {
    const gapBytes = frameBytes - KEPT_BYTES_MAX;
    return {
      bytes: frame.slice(0, KEPT_BYTES_MAX),
      cut: { frameBytes, gapOffset: KEPT_BYTES_MAX, gapBytes },
    };
  }
  const from = Math.min(at, frameBytes) - WINDOW_BYTES;
  const gapOffset = KEPT_BYTES_MAX - (end - from);
  const bytes = new Uint8Array(KEPT_BYTES_MAX);
  bytes.set(frame.subarray(0, gapOffset));
  bytes.set(frame.subarray(from, end), gapOffset);
  return { bytes, cut: { frameBytes, gapOffset, gapBytes: from - gapOffset } };
}

/** Length of the whole frame, kept or not. */
export function frameBytesOf(frame: KeptFrame): number {
  return frame.cut?.frameBytes ?? frame.bytes.length;
}

/** The byte at an offset of the whole frame; undefined where it is not kept. */
export function byteAt(frame: KeptFrame, offset: number): number | undefined {
  const { bytes, cut } = frame;
  if (offset < 0) return undefined;
  if (cut === undefined || offset < cut.gapOffset) return bytes[offset];
  if (offset < cut.gapOffset + cut.gapBytes) return undefined;
  return bytes[offset - cut.gapBytes];
}

/** Offset behind the last byte that is kept. */
function keptEnd(frame: KeptFrame): number {
  const { bytes, cut } = frame;
  return cut === undefined || bytes.length <= cut.gapOffset ? bytes.length : bytes.length + cut.gapBytes;
}

/** The frame from its first byte to the last one kept; what is not kept in between is zero. */
export function withGapFilled(frame: KeptFrame): Uint8Array {
  const { bytes, cut } = frame;
  const end = keptEnd(frame);
  if (cut === undefined || end === bytes.length) return bytes;
  const whole = new Uint8Array(end);
  whole.set(bytes.subarray(0, cut.gapOffset));
  whole.set(bytes.subarray(cut.gapOffset), cut.gapOffset + cut.gapBytes);
  return whole;
}

/** What was not kept, in words; undefined when nothing lacks. */
export function describeCut(frame: KeptFrame): string | undefined {
  const { cut } = frame;
  if (cut === undefined) return undefined;
  const end = keptEnd(frame);
  if (end <= cut.gapOffset) return `the first ${end} of ${cut.frameBytes} bytes were kept`;
  return (
    `of ${cut.frameBytes} bytes, ${cut.gapOffset} from the beginning and those from ` +
    `${cut.gapOffset + cut.gapBytes} to ${end - 1} were kept`
  );
}

export function primaryOf(record: DivergenceRecord): KeptFrame | undefined {
  return keptFrame(record.primaryFrame, record.primaryCut);
}

export function secondaryOf(record: DivergenceRecord): KeptFrame | undefined {
  return keptFrame(record.secondaryFrame, record.secondaryCut);
}

function keptFrame(bytes: Uint8Array | undefined, cut: FrameCut | undefined): KeptFrame | undefined {
  if (bytes === undefined) return undefined;
  return cut === undefined ? { bytes } : { bytes, cut };
}
