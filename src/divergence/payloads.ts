/** What both sides have sent at the place of the difference, from the record's frames. */
import { byteAt, frameBytesOf, type KeptFrame, primaryOf, secondaryOf } from "./kept_frame.ts";
import { type FrameLayout, layoutOf } from "./layout.ts";
import type { DivergenceRecord } from "./record.ts";

export interface Side {
  frame: KeptFrame;
  layout: FrameLayout;
  frameBytes: number;
  payloadBytes: number;
  /** Offset in the frame of the first differing byte; undefined when it is not known. */
  differenceAt: number | undefined;
}

export function primarySide(record: DivergenceRecord): Side | undefined {
  return sideOf(primaryOf(record), record.difference?.primaryFrameOffset);
}

export function secondarySide(record: DivergenceRecord): Side | undefined {
  return sideOf(secondaryOf(record), record.difference?.secondaryFrameOffset);
}

function sideOf(frame: KeptFrame | undefined, differenceAt: number | undefined): Side | undefined {
  if (frame === undefined) return undefined;
  const frameBytes = frameBytesOf(frame);
  const head = frame.bytes.subarray(0, frame.cut?.gapOffset ?? frame.bytes.length);
  const layout = layoutOf(head, frameBytes);
  const payloadBytes = Math.max(0, layout.payloadEnd - layout.headerBytes);
  return { frame, layout, frameBytes, payloadBytes, differenceAt };
}

/** Offset of the difference in the payload; undefined when not known or not in it. */
export function payloadDifference(side: Side): number | undefined {
  if (side.differenceAt === undefined || side.differenceAt < side.layout.headerBytes) return undefined;
  return side.differenceAt - side.layout.headerBytes;
}

/** A byte of the payload; undefined where it is not kept or there is none. */
export function payloadByte(side: Side, offset: number): number | undefined {
  const at = side.layout.headerBytes + offset;
  return at < side.layout.payloadEnd ? byteAt(side.frame, at) : undefined;
}

/** How many of the bytes from the difference on differ, as far as both are kept and at most `limit`. */
export function countDifferent(
  primary: Side,
  secondary: Side,
  limit: number,
): { compared: number; different: number } {
  let compared = 0;
  let different = 0;
  for (let i = 0; i < limit; i++) {
    const p = byteFrom(primary, i);
    const s = byteFrom(secondary, i);
    if (p === undefined || s === undefined) break;
    compared++;
    if (p !== s) different++;
  }
  return { compared, different };
}

function byteFrom(side: Side, distance: number): number | undefined {
  const at = (side.differenceAt ?? side.layout.headerBytes) + distance;
  return at < side.layout.payloadEnd ? byteAt(side.frame, at) : undefined;
}

/** The line of text that holds the difference, for protocols of lines; Latin-1, at most 512 bytes. */
export function lineAround(side: Side): string | undefined {
  const at = payloadDifference(side);
  if (at === undefined) return undefined;
  const isEnd = (byte: number | undefined) => byte === undefined || byte === 10 || byte === 13;
  let from = at;
  while (from > 0 && at - from < 256 && !isEnd(payloadByte(side, from - 1))) from--;
  let line = "";
  for (let i = from; i < at + 256; i++) {
    const byte = payloadByte(side, i);
    if (byte === undefined || isEnd(byte)) break;
    line += String.fromCharCode(byte);
  }
  return line;
}
