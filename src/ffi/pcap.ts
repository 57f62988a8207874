/**
 * libpcap (libpcap.so.0.8), for reading capture files only: classic pcap with micro- or nanoseconds in either
 * byte order, the modified formats that libpcap knows, and pcapng whose interfaces all have one link type.
 *
 * Nothing is captured here. The npm packages `pcap` and `cap` end the process when they open a file under
 * Bun.
 */

import { FFIType, read } from "bun:ffi";
import { Problem } from "../errors/problem.ts";
import { Arena, libc, temporaryString, textAt } from "./libc.ts";
import type { Address } from "./native.ts";
import { openLibrary } from "./native.ts";

const { i32, ptr } = FFIType;

const PCAP_ERRBUF_SIZE = 256;
/** pcap_next_ex(): a packet was read, and the end of the file was reached. */
const NEXT_PACKET = 1;
const NEXT_END = -2;

function open() {
  try {
    return openLibrary("libpcap.so.0.8", {
      pcap_open_offline: { args: [ptr, ptr], returns: ptr },
      pcap_next_ex: { args: [ptr, ptr, ptr], returns: i32 },
      pcap_datalink: { args: [ptr], returns: i32 },
      pcap_datalink_val_to_name: { args: [i32], returns: ptr },
      pcap_is_swapped: { args: [ptr], returns: i32 },
      pcap_geterr: { args: [ptr], returns: ptr },
      pcap_close: { args: [ptr], returns: FFIType.void },
      pcap_lib_version: { args: [], returns: ptr },
    });
  } catch (cause) {
    throw new Problem(
      "libpcap.so.0.8 cannot be loaded",
      "install libpcap 1.0 or later (Debian: libpcap0.8)",
      {
        cause,
      },
    );
  }
}

let loaded: ReturnType<typeof open> | undefined;

function libpcap(): ReturnType<typeof open> {
  loaded ??= open();
  return loaded;
}

/** What libpcap says of itself, for example "libpcap version 1.10.3 (with TPACKET_V3)". */
export function pcapVersion(): string {
  return textAt(Number(libpcap().pcap_lib_version()));
}

/** A capture file that cannot be opened or read on, in libpcap's words. */
export class PcapError extends Error {
  override readonly name = "PcapError";
}

/**
 * A capture file, read from its beginning to its end.
 *
 *     const capture = new PcapFile(path);
 *     while (capture.next()) capture.copyTo(address);
 *     capture.close();
 */
export class PcapFile {
  /** DLT_* of pcap/dlt.h. */
  readonly linkType: number;
  /** "EN10MB", or "DLT 299" for one that libpcap has no name for. */
  readonly linkTypeName: string;
  /** The file was written on a machine of the other byte order. */
  readonly swapped: boolean;
  /** Of the packet that next() read: the bytes that the file has of it, and those it had on the wire. */
  capturedBytes = 0;
  wireBytes = 0;
  /** Where libpcap keeps the packet; good until the next call of next() or close(). */
  address: Address = 0;
  readonly #pcap: Address;
  readonly #arena: Arena;
  readonly #out: number;

  /** @throws PcapError when there is no such file, or it is not a capture */
  constructor(path: string) {
    const library = libpcap();
    this.#arena = new Arena(4096);
    this.#out = this.#arena.allocate(16);
    const error = this.#arena.address + this.#arena.allocate(PCAP_ERRBUF_SIZE);
    const pcap = library.pcap_open_offline(temporaryString(path), error);
    if (pcap === null || Number(pcap) === 0) {
      const text = textAt(error);
      this.#arena.close();
      throw new PcapError(text);
    }
    this.#pcap = Number(pcap);
    this.linkType = library.pcap_datalink(this.#pcap);
    const name = library.pcap_datalink_val_to_name(this.linkType);
    this.linkTypeName = name === null ? `DLT ${this.linkType}` : textAt(Number(name));
    this.swapped = library.pcap_is_swapped(this.#pcap) === 1;
  }

  /**
   * Reads a packet; false at the end of the file.
   * @throws PcapError when the file is cut off or damaged
   */
  next(): boolean {
    const out = this.#arena.address + this.#out;
    const result = libpcap().pcap_next_ex(this.#pcap, out, out + 8);
    if (result === NEXT_END) return false;
    if (result !== NEXT_PACKET) {
      throw new PcapError(textAt(Number(libpcap().pcap_geterr(this.#pcap))));
    }
    // struct pcap_pkthdr: struct timeval ts (16 bytes), caplen, len.
    const header = read.ptr(out, 0);
    this.capturedBytes = read.u32(header, 16);
    this.wireBytes = read.u32(header, 20);
    this.address = read.ptr(out, 8);
    return true;
  }

  /** Copies the packet without its first `skipBytes` bytes to native memory, which must have room for it. */
  copyTo(address: Address, skipBytes = 0): void {
    const bytes = this.capturedBytes - skipBytes;
    if (bytes > 0) libc.memcpy(address, this.address + skipBytes, bytes);
  }

  /** A byte of the packet. */
  byte(offset: number): number {
    return read.u8(this.address, offset);
  }

  close(): void {
    libpcap().pcap_close(this.#pcap);
    this.#arena.close();
  }
}
