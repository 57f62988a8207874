/** Writes capture files byte by byte, so that they do not come from the library that reads them. */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { concat } from "../compare/frames.ts";

export interface CaptureFormat {
  kind?: "pcap" | "pcapng";
  bigEndian?: boolean;
  nanoseconds?: boolean;
  /** LINKTYPE_*; Ethernet if not given. */
  linkType?: number;
  /** What each frame is said to have had on the wire beyond what is in the file. */
  cutBytes?: number;
}

const SNAP_LENGTH = 262_144;

/** The whole file. */
export function captureBytes(frames: readonly Uint8Array[], format: CaptureFormat = {}): Uint8Array {
  return format.kind === "pcapng" ? pcapng(frames, format) : pcap(frames, format);
}

function words(bigEndian: boolean, ...values: [2 | 4, number][]): Uint8Array {
  const view = new DataView(new ArrayBuffer(values.reduce((sum, [bytes]) => sum + bytes, 0)));
  let at = 0;
  for (const [bytes, value] of values) {
    if (bytes === 2) view.setUint16(at, value, !bigEndian);
    else view.setUint32(at, value, !bigEndian);
    at += bytes;
  }
  return new Uint8Array(view.buffer);
}

/** draft-ietf-opsawg-pcap */
function pcap(frames: readonly Uint8Array[], format: CaptureFormat): Uint8Array {
  const { bigEndian = false, nanoseconds = false, linkType = 1, cutBytes = 0 } = format;
  const magic = nanoseconds ? 0xa1b23c4d : 0xa1b2c3d4;
  const fields: [2 | 4, number][] = [
    [4, magic],
    [2, 2],
    [2, 4],
    [4, 0],
    [4, 0],
    [4, SNAP_LENGTH],
    [4, linkType],
  ];
  const records = frames.map((frame, i) => {
    const onWire = frame.length + cutBytes;
    return concat(words(bigEndian, [4, 1_700_000_000 + i], [4, i], [4, frame.length], [4, onWire]), frame);
  });
  return concat(words(bigEndian, ...fields), ...records);
}

/** draft-ietf-opsawg-pcapng: a section header, one interface, an enhanced packet block for each frame. */
function pcapng(frames: readonly Uint8Array[], format: CaptureFormat): Uint8Array {
  const { bigEndian = false, nanoseconds = false, linkType = 1, cutBytes = 0 } = format;
  const block = (type: number, body: Uint8Array) => {
    const padded = concat(body, new Uint8Array(-body.length & 3));
    const length = padded.length + 12;
    return concat(words(bigEndian, [4, type], [4, length]), padded, words(bigEndian, [4, length]));
  };
  const section = words(bigEndian, [4, 0x1a2b3c4d], [2, 1], [2, 0], [4, 0xffffffff], [4, 0xffffffff]);
  // if_tsresol 9: nanoseconds.
  const resolution = nanoseconds
    ? concat(words(bigEndian, [2, 9], [2, 1]), Uint8Array.of(9, 0, 0, 0), words(bigEndian, [2, 0], [2, 0]))
    : new Uint8Array(0);
  const description = concat(words(bigEndian, [2, linkType], [2, 0], [4, SNAP_LENGTH]), resolution);
  const packets = frames.map((frame, i) => {
    const onWire = frame.length + cutBytes;
    return block(6, concat(words(bigEndian, [4, 0], [4, 0], [4, i], [4, frame.length], [4, onWire]), frame));
  });
  return concat(block(0x0a0d0d0a, section), block(1, description), ...packets);
}

const FOLDER_PREFIX = "colo-test-capture-";

/** A folder for a test's files. What earlier runs left behind is removed first. */
export class CaptureFolder {
  readonly path: string;
  #files = 0;

  constructor() {
    for (const name of readdirSync(tmpdir())) {
      const pid = new RegExp(`^${FOLDER_PREFIX}(\\d+)-`).exec(name)?.[1];
      if (pid !== undefined && !isRunning(Number(pid))) {
        rmSync(join(tmpdir(), name), { recursive: true, force: true });
      }
    }
    this.path = mkdtempSync(join(tmpdir(), `${FOLDER_PREFIX}${process.pid}-`));
  }

  /** Path of a file that is not there yet. */
  next(): string {
    return join(this.path, `${++this.#files}.pcap`);
  }

  /** Writes a file of these bytes; returns its path. */
  file(bytes: Uint8Array): string {
    const path = this.next();
    writeFileSync(path, bytes);
    return path;
  }

  /** Writes a capture; returns its path. */
  capture(frames: readonly Uint8Array[], format: CaptureFormat = {}): string {
    return this.file(captureBytes(frames, format));
  }

  remove(): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}
