/** Both frames side by side around the first difference, as text: primary left, secondary right. */
import type { Colors } from "picocolors/types";
import { byteAt, describeCut } from "./kept_frame.ts";
import { primarySide, type Side, secondarySide } from "./payloads.ts";
import type { DivergenceRecord } from "./record.ts";

const ROW_BYTES = 8;
/** Shown in front of the first difference, and from it on. */
const CONTEXT_BYTES = 32;
const COLUMN_GAP = "   ";

interface Cell {
  /** Two characters. */
  hex: string;
  ascii: string;
  different: boolean;
}

/** Lines of the view; none when no frame was kept. */
export function hexView(record: DivergenceRecord, colors: Colors): string[] {
  const primary = primarySide(record);
  const secondary = secondarySide(record);
  if (primary === undefined && secondary === undefined) return [];
  const aligned = record.difference !== undefined && primary !== undefined && secondary !== undefined;
  // Datagrams begin at the same place; segments of a stream do not, so without a known difference nothing is
  // marked.
  const marked =
    aligned || (primary !== undefined && secondary !== undefined && record.flow.protocol !== "tcp");
  const starts = { primary: startOf(primary), secondary: startOf(secondary) };
  const from = record.difference === undefined ? 0 : -CONTEXT_BYTES;
  const to = from + 2 * CONTEXT_BYTES;
  const offsetDigits = Math.max(starts.primary + to, starts.secondary + to) > 0xffff ? 5 : 4;

  const rows: string[] = [];
  for (let row = from; row < to; row += ROW_BYTES) {
    const left: Cell[] = [];
    const right: Cell[] = [];
    for (let i = row; i < row + ROW_BYTES; i++) {
      const p = cellOf(primary, starts.primary + i, record.redacted === true);
      const s = cellOf(secondary, starts.secondary + i, record.redacted === true);
      const hidden = record.redacted === true && i !== 0;
      p.different = s.different =
        marked && i >= 0 && !hidden && (p.hex !== s.hex || record.redacted === true);
      left.push(p);
      right.push(s);
    }
    if ([...left, ...right].every((cell) => cell.hex === "  ")) continue;
    const leftText = rowText(left, primary, starts.primary + row, offsetDigits, colors);
    const rightText = rowText(right, secondary, starts.secondary + row, offsetDigits, colors);
    rows.push(`${leftText}${COLUMN_GAP}${rightText}`.trimEnd());
  }
  const width = offsetDigits + ROW_BYTES * 3 + 2 + ROW_BYTES;
  const head = `${title("primary", primary).padEnd(width)}${COLUMN_GAP}${title("secondary", secondary)}`;
  const lines = [colors.bold(head), ...rows];
  for (const [name, side] of [
    ["primary", primary],
    ["secondary", secondary],
  ] as const) {
    const cut = side === undefined ? undefined : describeCut(side.frame);
    if (cut !== undefined && !record.redacted) lines.push(`${name}: ${cut}`);
  }
  if (marked && !record.redacted) lines.push("[ ] differ; numbers on the left are offsets in the frame");
  if (record.redacted) lines.push(".. is hidden payload; checksums and unknown options are zero here");
  return lines;
}

function title(name: string, side: Side | undefined): string {
  if (side === undefined) return `${name}: nothing`;
  return `${name}: ${side.frameBytes} bytes, ${side.payloadBytes} of payload`;
}

/**
 * Where the view has its zero: at the difference, else where the payload begins, else (no payload) at the
 * transport header.
 */
function startOf(side: Side | undefined): number {
  if (side === undefined) return 0;
  if (side.differenceAt !== undefined) return side.differenceAt;
  const { headerBytes, payloadEnd, transportOffset } = side.layout;
  return headerBytes < payloadEnd ? headerBytes : (transportOffset ?? 0);
}

function cellOf(side: Side | undefined, offset: number, redacted: boolean): Cell {
  if (side === undefined || offset < 0 || offset >= side.frameBytes) {
    return { hex: "  ", ascii: " ", different: false };
  }
  const byte = byteAt(side.frame, offset);
  if (byte === undefined) return { hex: redacted ? ".." : "??", ascii: " ", different: false };
  const printable = byte >= 0x20 && byte < 0x7f;
  return {
    hex: byte.toString(16).padStart(2, "0"),
    ascii: printable ? String.fromCharCode(byte) : ".",
    different: false,
  };
}

function rowText(
  cells: Cell[],
  side: Side | undefined,
  offset: number,
  digits: number,
  colors: Colors,
): string {
  const shown = side !== undefined && cells.some((cell) => cell.hex !== "  ");
  let text = shown ? colors.dim(Math.max(0, offset).toString(16).padStart(digits, "0")) : " ".repeat(digits);
  let before = false;
  for (const { hex, different } of cells) {
    text += different && !before ? "[" : !different && before ? "]" : " ";
    text += different ? colors.yellow(hex) : hex;
    before = different;
  }
  text += before ? "]" : " ";
  text += " ";
  for (const { ascii, different } of cells) text += different ? colors.yellow(ascii) : ascii;
  return text;
}
