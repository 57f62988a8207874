/**
 * Writes frames of divergences as a pcapng file: two interfaces, "primary" and "secondary", a comment at each
 * packet.
 *
 * Source of the format: draft-ietf-opsawg-pcapng, sections 4.1 (section header), 4.2 (interface description),
 * 4.3 (enhanced packet). Written in little-endian order; readers tell it from the byte-order magic.
 */
import { VERSION } from "../host/version.ts";
import {
  describeCut,
  frameBytesOf,
  type KeptFrame,
  primaryOf,
  secondaryOf,
  withGapFilled,
} from "./kept_frame.ts";
import type { DivergenceRecord } from "./record.ts";

const SECTION_HEADER = 0x0a0d0d0a;
const INTERFACE_DESCRIPTION = 1;
const ENHANCED_PACKET = 6;
const BYTE_ORDER_MAGIC = 0x1a2b3c4d;
const LINKTYPE_ETHERNET = 1;
/** tcpdump's own largest; frames that the VM's NIC would have segmented reach 64 KiB. */
const SNAPLEN = 262_144;

const OPTION_END = 0;
const OPTION_COMMENT = 1;
const SHB_USERAPPL = 4;
const IF_NAME = 2;
const IF_TSRESOL = 9;
const NANOSECONDS = 9;

const PRIMARY_INTERFACE = 0;
const SECONDARY_INTERFACE = 1;

type Option = [code: number, value: Uint8Array];

/** The frames of all these records, in the order given; each record's primary frame first. */
export function writePcapng(records: readonly DivergenceRecord[]): Uint8Array<ArrayBuffer> {
  const blocks = [
    sectionHeader(),
    interfaceDescription("primary", "frames that the primary VM sent, held by colo-agent"),
    interfaceDescription("secondary", "frames that the secondary VM sent"),
  ];
  for (const record of records) {
    const primary = primaryOf(record);
    const secondary = secondaryOf(record);
    if (primary !== undefined) blocks.push(packet(record, PRIMARY_INTERFACE, primary));
    if (secondary !== undefined) blocks.push(packet(record, SECONDARY_INTERFACE, secondary));
  }
  const file = new Uint8Array(blocks.reduce((sum, block) => sum + block.length, 0));
  let at = 0;
  for (const block of blocks) {
    file.set(block, at);
    at += block.length;
  }
  return file;
}

function sectionHeader(): Uint8Array {
  const fixed = new DataView(new ArrayBuffer(16));
  fixed.setUint32(0, BYTE_ORDER_MAGIC, true);
  fixed.setUint16(4, 1, true); // version 1.0
  fixed.setBigInt64(8, -1n, true); // length of the section: not told
  return block(SECTION_HEADER, fixed, new Uint8Array(), [[SHB_USERAPPL, text(`colo-agent ${VERSION}`)]]);
}

function interfaceDescription(name: string, comment: string): Uint8Array {
  const fixed = new DataView(new ArrayBuffer(8));
  fixed.setUint16(0, LINKTYPE_ETHERNET, true);
  fixed.setUint32(4, SNAPLEN, true);
  return block(INTERFACE_DESCRIPTION, fixed, new Uint8Array(), [
    [OPTION_COMMENT, text(comment)],
    [IF_NAME, text(name)],
    [IF_TSRESOL, Uint8Array.of(NANOSECONDS)],
  ]);
}

function packet(record: DivergenceRecord, side: number, frame: KeptFrame): Uint8Array {
  const bytes = withGapFilled(frame);
  const timeNs = BigInt(Math.round(record.timeMs)) * 1_000_000n;
  const fixed = new DataView(new ArrayBuffer(20));
  fixed.setUint32(0, side, true);
  fixed.setUint32(4, Number(timeNs >> 32n), true);
  fixed.setUint32(8, Number(timeNs & 0xffffffffn), true);
  fixed.setUint32(12, bytes.length, true);
  fixed.setUint32(16, frameBytesOf(frame), true);
  return block(ENHANCED_PACKET, fixed, bytes, [[OPTION_COMMENT, text(commentOf(record, side, frame))]]);
}

function commentOf(record: DivergenceRecord, side: number, frame: KeptFrame): string {
  const name = side === PRIMARY_INTERFACE ? "primary" : "secondary";
  const parts = [`${name}, divergence ${record.id} of ${record.vm}: ${record.class}`];
  const { difference } = record;
  if (difference !== undefined) {
    const at = side === PRIMARY_INTERFACE ? difference.primaryFrameOffset : difference.secondaryFrameOffset;
    parts.push(`first differing byte at ${at} of the frame`);
  }
  if (record.redacted) parts.push("payload hidden");
  else {
    const cut = describeCut(frame);
    if (cut !== undefined) parts.push(bytesAreZero(frame) ? `${cut}, those between are zero here` : cut);
  }
  return parts.join("; ");
}

function bytesAreZero(frame: KeptFrame): boolean {
  return frame.cut !== undefined && frame.bytes.length > frame.cut.gapOffset;
}

function text(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

const padded = (bytes: number) => (bytes + 3) & ~3;

function block(type: number, fixed: DataView, body: Uint8Array, options: Option[]): Uint8Array {
  const optionBytes = options.reduce((sum, [, value]) => sum + 4 + padded(value.length), 4);
  const total = 12 + fixed.byteLength + padded(body.length) + optionBytes;
  const bytes = new Uint8Array(total);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, type, true);
  view.setUint32(4, total, true);
  bytes.set(new Uint8Array(fixed.buffer), 8);
  let at = 8 + fixed.byteLength;
  bytes.set(body, at);
  at += padded(body.length);
  for (const [code, value] of options) {
    view.setUint16(at, code, true);
    view.setUint16(at + 2, value.length, true);
    bytes.set(value, at + 4);
    at += 4 + padded(value.length);
  }
  view.setUint16(at, OPTION_END, true);
  view.setUint32(total - 4, total, true);
  return bytes;
}
