/** One capture file, frame by frame, as Ethernet frames. */
import { statSync } from "node:fs";
import { PcapError, PcapFile } from "../ffi/pcap.ts";
import { ETHERNET_HEADER_BYTES } from "../packet/protocol_numbers.ts";
import { CaptureError } from "./error.ts";
import type { FrameWindow } from "./frame_window.ts";
import { type LinkType, linkTypeOf, repairIpv4Length, SUPPORTED_LINK_TYPES } from "./link_types.ts";

/** struct pcap_pkthdr in a file; those of pcapng are larger. For bytesLeft, which need not be exact. */
const RECORD_HEADER_BYTES = 16;

export class CaptureReader {
  /** Read so far. */
  frames = 0;
  bytes = 0;
  /** Of the frame that next() read, as an Ethernet frame. */
  frameBytes = 0;
  readonly linkTypeName: string;
  readonly #file: PcapFile;
  readonly #linkType: LinkType;
  readonly #fileBytes: number;

  /**
   * @throws CaptureError when there is no such file, it is not a capture, or its link type is not supported
   */
  constructor(readonly path: string) {
    this.#fileBytes = fileBytes(path);
    try {
      this.#file = new PcapFile(path);
    } catch (cause) {
      if (!(cause instanceof PcapError)) throw cause;
      throw new CaptureError(`${path} cannot be opened as a capture: ${explain(path, cause.message)}.`, {
        cause,
      });
    }
    this.linkTypeName = this.#file.linkTypeName;
    const linkType = linkTypeOf(this.#file.linkType);
    if (linkType === undefined) {
      const name = this.linkTypeName;
      this.#file.close();
      throw new CaptureError(
        `${path} has the link type ${name}, which cannot be compared; supported are ${SUPPORTED_LINK_TYPES}.`,
      );
    }
    this.#linkType = linkType;
  }

  /** Number of the frame that next() read, from 1. */
  get frameNumber(): number {
    return this.frames;
  }

  /** About how much of the file there is still to read. */
  get bytesLeft(): number {
    return this.#fileBytes - this.bytes - this.frames * RECORD_HEADER_BYTES;
  }

  /** "frame 12 of a.pcap" */
  where(): string {
    return `frame ${this.frames} of ${this.path}`;
  }

  /**
   * Reads a frame; false at the end of the file.
   * @throws CaptureError when the file is cut off or damaged, or the frame was cut off when it was captured
   */
  next(): boolean {
    const file = this.#file;
    try {
      if (!file.next()) return false;
    } catch (cause) {
      if (!(cause instanceof PcapError)) throw cause;
      const text = explain(this.path, cause.message);
      throw new CaptureError(`${this.path} cannot be read beyond frame ${this.frames}: ${text}.`, { cause });
    }
    this.frames++;
    const { capturedBytes, wireBytes } = file;
    const { headerBytes, addedBytes } = this.#linkType;
    if (capturedBytes < wireBytes) {
      throw new CaptureError(
        `${this.where()} was cut off by the capture: ${capturedBytes} of ${wireBytes} bytes; ` +
          "capture whole frames (tcpdump -s 0).",
      );
    }
    if (capturedBytes < headerBytes) {
      throw new CaptureError(
        `${this.where()} has ${capturedBytes} bytes, fewer than its ${this.linkTypeName} header.`,
      );
    }
    this.bytes += capturedBytes;
    this.frameBytes = capturedBytes - headerBytes + addedBytes;
    return true;
  }

  /** Writes the frame to a window, at this byte offset. */
  write(window: FrameWindow, at: number): void {
    const { headerBytes, addedBytes } = this.#linkType;
    if (addedBytes > 0) {
      window.bytes.fill(0, at, at + ETHERNET_HEADER_BYTES);
      this.#linkType.writeHeader(this.#file, window.bytes, at);
    }
    this.#file.copyTo(window.address + at + addedBytes, headerBytes);
    repairIpv4Length(window.bytes, at, this.frameBytes);
  }

  close(): void {
    this.#file.close();
  }
}

function fileBytes(path: string): number {
  let size: number;
  try {
    const status = statSync(path);
    if (status.isDirectory()) throw new CaptureError(`${path} is a directory, not a capture.`);
    if (!status.isFile()) return 0;
    size = status.size;
  } catch (cause) {
    if (cause instanceof CaptureError) throw cause;
    const code = (cause as NodeJS.ErrnoException).code;
    const text = code === "ENOENT" ? "there is no such file" : (cause as Error).message;
    throw new CaptureError(`${path} cannot be opened as a capture: ${text}.`, { cause });
  }
  if (size === 0) throw new CaptureError(`${path} is empty: not a capture.`);
  return size;
}

/** libpcap's words, without the file's name that it puts in front of some, and with what to do about it. */
function explain(path: string, message: string): string {
  const text = message.startsWith(`${path}: `) ? message.slice(path.length + 2) : message;
  if (!/different from the (type|snapshot length) of the first interface/.test(text)) return text;
  const advice =
    "libpcap reads pcapng files of one kind of interface only, so write one file for each interface";
  return `${text}; ${advice}`;
}
