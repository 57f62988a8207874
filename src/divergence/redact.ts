/**
 * Takes the payload out of a record. Of each frame the headers stay, but for what of them tells something of
 * the payload or could be anything (layout.ts: sensitive), which is zero. Lengths and offsets stay.
 * Everything that shows a record without its payload starts from here.
 */
import { frameBytesOf, type KeptFrame, primaryOf, secondaryOf } from "./kept_frame.ts";
import { layoutOf } from "./layout.ts";
import type { DivergenceRecord } from "./record.ts";

export function redact(record: DivergenceRecord): DivergenceRecord {
  const { primaryFrame: _p, primaryCut: _pc, secondaryFrame: _s, secondaryCut: _sc, ...rest } = record;
  const redacted: DivergenceRecord = { ...rest, detail: redactText(record.detail), redacted: true };
  const primary = primaryOf(record);
  if (primary !== undefined) {
    const { bytes, cut } = headersOf(primary);
    redacted.primaryFrame = bytes;
    if (cut !== undefined) redacted.primaryCut = cut;
  }
  const secondary = secondaryOf(record);
  if (secondary !== undefined) {
    const { bytes, cut } = headersOf(secondary);
    redacted.secondaryFrame = bytes;
    if (cut !== undefined) redacted.secondaryCut = cut;
  }
  return redacted;
}

function headersOf(frame: KeptFrame): KeptFrame {
  const frameBytes = frameBytesOf(frame);
  const head = frame.bytes.subarray(0, frame.cut?.gapOffset ?? frame.bytes.length);
  const { headerBytes, sensitive } = layoutOf(head, frameBytes);
  const bytes = head.slice(0, headerBytes);
  for (const part of sensitive) bytes.fill(0, part.offset, part.offset + part.bytes);
  if (headerBytes === frameBytes) return { bytes };
  return { bytes, cut: { frameBytes, gapOffset: headerBytes, gapBytes: frameBytes - headerBytes } };
}

/**
 * The comparer names differing bytes in hexadecimal ("0x61 on the primary"); nothing of that may stay, nor
 * anything quoted.
 */
export function redactText(text: string): string {
  return text
    .replace(/"(?:[^"\\]|\\.)*"|`[^`]*`/g, '".."')
    .replace(/\b(?:0x)?[0-9a-f]{2}(?:[ :][0-9a-f]{2}\b)+/gi, "..")
    .replace(/\b0x[0-9a-f]+/gi, "0x..");
}
